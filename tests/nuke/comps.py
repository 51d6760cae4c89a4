"""Small comps for tests: a plate and a mask in files, and the nodes that read them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio

from tests.conftest import write_exr

FIRST = 1001
FRAMES = range(FIRST, FIRST + 3)
"""Of the comp that needs no engine."""


def small_clip(footage: Path, folder: Path, count: int, size: tuple[int, int] = (320, 180)) -> None:
    """The first frames of a given clip, made small: `plate.####.png` and `mask.####.png` from 1001 on."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted((footage / "JPEGImages").iterdir())[:count]
    assert len(pictures) == count, f"{footage} has too few frames"
    whole = oiio.ROI(0, size[0], 0, size[1])
    for frame, picture in enumerate(pictures, FIRST):
        plate = oiio.ImageBufAlgo.resize(oiio.ImageBuf(str(picture)), roi=whole)
        assert plate.write(str(folder / f"plate.{frame}.png"), "uint8"), plate.geterror()
        labels = oiio.ImageBuf(str(footage / "Annotations" / f"{picture.stem}.png")).get_pixels("float")
        assert labels is not None
        inside = np.ascontiguousarray(
            (labels.max(axis=-1, keepdims=True) > 0).astype(np.float32)
        )  # (h, w, 1)
        mask = oiio.ImageBufAlgo.resize(oiio.ImageBuf(inside), roi=whole)
        assert mask.write(str(folder / f"mask.{frame}.png"), "uint8"), mask.geterror()


def read_node(nuke: Any, pattern: str, frames: Sequence[int], raw: bool = False) -> Any:
    """A Read of a sequence."""
    return nuke.nodes.Read(file=pattern, first=frames[0], last=frames[-1], raw=raw)


def stm_comp(nuke: Any, folder: Path, count: int, working_size: int = 112) -> Any:
    """An STM node on a small clip that has a mask for every frame."""
    import stm_nuke

    frames = range(FIRST, FIRST + count)
    plate = read_node(nuke, (folder / "plate.%04d.png").as_posix(), frames)
    mask = read_node(nuke, (folder / "mask.%04d.png").as_posix(), frames, raw=True)
    node = stm_nuke.create(plate, mask)
    node.set("objects", "chair = rgba.red")
    node.set("working_size", working_size)
    return node


def write_of(nuke: Any, node: Any, folder: Path, name: str = "out") -> Any:
    """A Write behind a node: float RGBA."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = (folder / f"{name}.%04d.exr").as_posix()
    write = nuke.nodes.Write(
        file=pattern, channels="rgba", file_type="exr", datatype="32 bit float", raw=True
    )
    write.setInput(0, node.group)
    return write


def captured(node: Any, frame: int, view: str = "main") -> Any:
    """One frame of the plate that the node renders for the engine, as `exr.Picture`."""
    from stm_nuke import capture, exr

    with tempfile.TemporaryDirectory() as scratch:
        found = capture.render_plate(node, (frame, frame), view, Path(scratch))
        try:
            return exr.read(found.path(frame))
        finally:
            found.close()


def make_mattes(node: Any, frames: range, value: float = 0.5) -> None:
    """Write matte files as a propagation does."""
    from stm_nuke import cache

    for frame in frames:
        path = cache.matte_path(node.cache, "main", frame)
        write_exr(path, np.full((48, 64, 1), value, np.float32), channels=("A",))


def idle(nuke: Any) -> None:
    """Run the calls that wait until Nuke is idle."""
    for thread in threading.enumerate():
        if thread.name == "STM when idle":
            thread.join()
    nuke._host.pump(lambda: True)


def pixels(path: Path) -> Any:
    """An image file as float32 (h, w, C)."""
    return oiio.ImageBuf(str(path)).get_pixels("float")
