"""The engine reads the files of an untouched plate itself; Nuke renders every other plate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_image
from tests.nuke.comps import FRAMES, read_node

Touch = Callable[[Any, Any, Any], Any]
SIZE = (64, 48)


def write_plate(path: Path, kind: str = "half") -> None:
    """A plain frame with values that a half holds and that show any conversion."""
    rng = np.random.default_rng(int(path.suffixes[0][1:]) if len(path.suffixes) > 1 else 0)
    values = (rng.random((SIZE[1], SIZE[0], 3)) * 2).astype(np.float32)
    write_image(path, values, kind, channels=("R", "G", "B"))


@pytest.fixture
def plain(nuke: Any, comp: Any, tmp_path: Path) -> Any:
    """The comp on a plate of plain EXR files."""
    for frame in FRAMES:
        write_plate(tmp_path / f"plain.{frame}.exr")
    read = read_node(nuke, str(tmp_path / "plain.%04d.exr"), FRAMES)
    comp.group.setInput(0, read)
    return comp


def source(node: Any) -> Any:
    from stm_nuke import untouched

    return untouched.source_of(node.plate, "main")


def behind(nuke: Any, node: Any, class_name: str, **values: Any) -> None:
    between = getattr(nuke.nodes, class_name)(**values)
    between.setInput(0, node.plate)
    node.group.setInput(0, between)


def test_a_read_of_plain_files_is_untouched_and_dots_and_groups_do_not_matter(
    nuke: Any, plain: Any, tmp_path: Path
) -> None:
    read = plain.plate
    assert source(plain).file(1002) == tmp_path / "plain.1002.exr"
    behind(nuke, plain, "Dot")
    assert source(plain).file(1001) == tmp_path / "plain.1001.exr"
    for name, value in (("raw", True), ("colorspace", "linear"), ("colorspace", "default (linear)")):
        read[name].setValue(value)
        assert source(plain) is not None
        read["raw"].setValue(False)
    nuke.root()["proxy"].setValue(True)
    from stm_nuke.node import full_size

    with full_size():
        assert source(plain).file(1001) is not None
    outer = nuke.nodes.Group()
    with outer:
        inside = nuke.nodes.Input()
        outer.setInput(0, read)
        from stm_nuke import untouched

        assert untouched.source_of(inside, "main") is not None


TOUCHES: dict[str, Touch] = {
    "a grade": lambda nuke, node, read: behind(nuke, node, "Grade"),
    "a node that does nothing": lambda nuke, node, read: behind(nuke, node, "NoOp"),
    "a retime": lambda nuke, node, read: behind(nuke, node, "Retime"),
    "a crop": lambda nuke, node, read: behind(nuke, node, "Crop"),
    "a time offset": lambda nuke, node, read: behind(nuke, node, "TimeOffset"),
    "nothing connected": lambda nuke, node, read: node.group.setInput(0, None),
    "a colour space": lambda nuke, node, read: read["colorspace"].setValue("sRGB"),
    "unknown default": lambda nuke, node, read: nuke.root()["floatLut"].setValue("rec709"),
    "another working space": lambda nuke, node, read: nuke.root()["workingSpaceLUT"].setValue("ACEScg"),
    "ocio": lambda nuke, node, read: nuke.root()["colorManagement"].setValue("OCIO"),
    "a transform": lambda nuke, node, read: read["out_colorspace"].setValue("sRGB"),
    "a list of files": lambda nuke, node, read: read["sequence"].setValue("/a/b.exr"),
    "premultiplied": lambda nuke, node, read: read["premultiplied"].setValue(True),
    "disabled": lambda nuke, node, read: read["disable"].setValue(True),
    "a lifetime": lambda nuke, node, read: read["useLifetime"].setValue(True),
    "a frame expression": lambda nuke, node, read: read["frame"].setValue("frame+1"),
    "a frame offset": lambda nuke, node, read: read["frame_mode"].setValue("offset"),
    "a start": lambda nuke, node, read: read["frame_mode"].setValue("start at"),
    "an animated knob": lambda nuke, node, read: read["first"].setAnimated(),
    "a switch with an expression": lambda nuke, node, read: read["disable"].setExpression("frame < 1002"),
    "a local copy": lambda nuke, node, read: read["localizationPolicy"].setValue("on"),
    "tcl": lambda nuke, node, read: read["file"].setValue("/a/[value shot].%04d.exr"),
    "a relative path": lambda nuke, node, read: read["file"].setValue("plain.%04d.exr"),
    "a still": lambda nuke, node, read: read["file"].setValue("/plain.exr"),
    "two numbers": lambda nuke, node, read: read["file"].setValue("/%04d/plain.%04d.exr"),
    "another kind": lambda nuke, node, read: read["file"].setValue("/plain.%04d.dpx"),
    "a filter": lambda nuke, node, read: nuke.addFilenameFilter(lambda name: name.replace("plain", "plan")),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_nuke_renders_a_plate_that_anything_touches(
    nuke: Any, plain: Any, touch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(nuke._host.listeners, "filenameFilter", [])
    assert source(plain) is not None
    TOUCHES[touch](nuke, plain, plain.plate)
    assert source(plain) is None


def test_nuke_renders_files_that_its_reader_may_treat_in_its_own_way(
    nuke: Any, plain: Any, tmp_path: Path
) -> None:
    path = tmp_path / "plain.1002.exr"
    pixels = np.zeros((SIZE[1], SIZE[0], 4), np.float32)
    names = ("R", "G", "B")
    others: list[tuple[Any, dict[str, Any]]] = [
        (pixels[..., :3], {"channels": names, "data": (1, 0)}),
        (pixels[..., :3], {"channels": names, "display": (0, 0, 80, 48)}),
        (pixels[..., :3], {"channels": names, "attributes": {"PixelAspectRatio": 2.0}}),
        (pixels[..., :3], {"channels": names, "attributes": {"compression": "dwaa"}}),
        (pixels[..., :3], {"channels": ("r", "g", "b")}),
        (pixels[..., :1], {"channels": ("Y",)}),
        (pixels, {"channels": (*names, "red")}),
        (pixels, {"channels": (*names, "main.Z")}),
        (pixels[:24], {"channels": (*names, "A")}),
    ]
    for values, more in others:
        write_image(path, values, "half", **more)
        assert source(plain).file(1002) is None, more
        assert source(plain).file(1001) is not None
    for kind in ("half", "float"):
        for compression in ("none", "rle", "zips", "zip", "piz"):
            write_image(path, pixels, kind, channels=(*names, "A"), attributes={"compression": compression})
            assert source(plain).file(1002) == path
    path.write_bytes(path.read_bytes()[:100])
    assert source(plain).file(1002) is None
    path.unlink()
    assert source(plain).file(1002) is None
    assert [source(plain).file(frame) for frame in (1000, 1004)] == [None, None], "outside the Read's range"


@pytest.mark.parametrize("kind", ["half", "float"])
def test_both_ways_give_the_same_content_and_nuke_renders_nothing(
    nuke: Any, plain: Any, engine: Path, tmp_path: Path, kind: str
) -> None:
    import stm_nuke
    from stm_nuke import cache, session

    for frame in FRAMES:
        write_plate(tmp_path / f"plain.{frame}.exr", kind=kind)
    stm_nuke.set_key(plain, 1001, tmp_path / "plate.mask.1001.png")
    rendered = len(nuke._host.executed)
    assert stm_nuke.propagate(plain) == list(FRAMES)
    assert len(nuke._host.executed) == rendered
    mattes = [cache.matte_path(plain.cache, "main", frame).read_bytes() for frame in FRAMES]
    behind(nuke, plain, "NoOp")
    stm_nuke.check_plate(plain)
    assert len(nuke._host.executed) == rendered + len(FRAMES), "now Nuke renders it"
    assert cache.fresh_mattes(plain.cache, "main", FRAMES) == set(FRAMES), "the content is the same"
    assert stm_nuke.propagate(plain) == list(FRAMES)
    assert [cache.matte_path(plain.cache, "main", frame).read_bytes() for frame in FRAMES] == mattes
    session.leave_engine()


def test_a_file_that_the_engine_cannot_read_is_rendered_and_the_error_is_nukes(
    nuke: Any, plain: Any, engine: Path, tmp_path: Path
) -> None:
    import stm_nuke
    from stm_nuke import session
    from stm_nuke.errors import PlateError

    stm_nuke.set_key(plain, 1001, tmp_path / "plate.mask.1001.png")
    path = tmp_path / "plain.1002.exr"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(PlateError, match=r"frame 1002: The plate of STM1 cannot be rendered: .*plain.1002"):
        stm_nuke.propagate(plain)
    write_plate(path)
    assert stm_nuke.propagate(plain) == list(FRAMES)
    session.leave_engine()
