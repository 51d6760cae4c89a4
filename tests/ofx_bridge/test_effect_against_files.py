"""The effect's mattes are those that the command line makes from files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest

from stm_plugin.propagate import propagate
from stm_plugin.settings import Settings
from tests.conftest import write_exr
from tests.hosts.ofx_fixtures import EngineHome
from tests.hosts.ofx_host import ALPHA, HALF, OK, Clip, FloatArray, OfxHost, nodes_of

CLIP = "bus"
FRAMES = range(1001, 1007)
WIDTH, HEIGHT = 192, 108
HALF_STEP = 2.0**-11
"""The distance of neighbouring halves just below 1, in which matte files are written."""


def resized(path: Path) -> FloatArray:
    """A picture (h, w, 3) from 0 to 255 in OpenCV's order of channels."""
    whole = cv2.imread(str(path))
    assert whole is not None
    return cv2.resize(whole, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)


def footage(shared_data: Path) -> tuple[list[FloatArray], FloatArray]:
    """Frames (h, w, 3) of a given clip, made linear as half floats, and the mask (h, w) of the first one."""
    training = shared_data / "davis2016_train"
    frames = []
    for path in sorted((training / "JPEGImages" / CLIP).iterdir())[: len(FRAMES)]:
        encoded = resized(path)
        linear = (encoded[..., ::-1] / 255) ** np.float32(2.2)
        frames.append(linear.astype(np.float16).astype(np.float32))
    labels = resized(sorted((training / "Annotations" / CLIP).iterdir())[0])
    return frames, (labels.max(axis=-1) > 0).astype(np.float32)


@pytest.mark.slow
def test_a_real_clip_gets_the_mattes_of_the_command_line(
    host: OfxHost, engine: EngineHome, shared_data: Path, tmp_path: Path
) -> None:
    frames, mask = footage(shared_data)
    for frame, pixels in zip(FRAMES, frames, strict=True):
        write_exr(tmp_path / f"plate.{frame}.exr", pixels)
    settings = Settings(working_size=HEIGHT)
    mattes = str(tmp_path / "matte.####.exr")
    keys = {FRAMES[0]: {"matte": mask}}
    made = propagate(str(tmp_path / "plate.####.exr"), keys, mattes, settings=settings)

    def opaque(frame: int) -> FloatArray:
        return np.dstack([frames[frame - FRAMES[0]], np.ones_like(mask)])

    host.options.project = (float(WIDTH), float(HEIGHT))
    node = host.create(
        {
            "Source": Clip(opaque, frames=(FRAMES[0], FRAMES[-1]), size=(WIDTH, HEIGHT), depth=HALF),
            "Mask": Clip(
                lambda frame: mask[..., None],
                frames=(FRAMES[0], FRAMES[-1]),
                size=(WIDTH, HEIGHT),
                components=ALPHA,
                depth=HALF,
            ),
        }
    )
    node.set("workingSize", HEIGHT)
    with nodes_of(host, node):
        assert node.press("setKey", FRAMES[0]) == OK, node.persistent
        assert node.press("propagateForward", FRAMES[0]) == OK, node.persistent
        areas = []
        for frame in FRAMES:
            from_file = read_alpha(tmp_path / f"matte.{frame}.exr")
            status, image = node.render(frame)
            assert status == OK, node.persistent
            np.testing.assert_allclose(image.picture()[..., 3], from_file, atol=HALF_STEP, err_msg=f"{frame}")
            areas.append(from_file.mean())
        # The other way: a node without keys of its own shows what the command line has computed.
        node.set("shotStore", str(made.shot))
        node.set("keyFrames", "")
        node.set("state", "")
        status, image = node.render(FRAMES[-1])
        assert status == OK, node.persistent
        from_file = read_alpha(tmp_path / f"matte.{FRAMES[-1]}.exr")
        np.testing.assert_allclose(image.picture()[..., 3], from_file, atol=HALF_STEP)
        assert min(areas) > 0.3 * areas[0], "the clip's mattes vanish: nothing would be compared"


def read_alpha(path: Path) -> FloatArray:
    """The channel A of an EXR."""
    picture = oiio.ImageBuf(str(path))
    names = list(picture.spec().channelnames)
    pixels = picture.get_pixels("float")
    assert pixels is not None
    return pixels[..., names.index("A")]
