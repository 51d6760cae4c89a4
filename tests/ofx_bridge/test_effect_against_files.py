"""The effect gives the mattes that the command line makes from files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest

from stm_plugin.settings import Settings
from stm_plugin.shot.propagate import propagate
from tests.conftest import write_exr
from tests.hosts.ofx_fixtures import REPOSITORY, EngineHome
from tests.hosts.ofx_host import ALPHA, HALF, OK, REPLY_NO, Clip, Effect, FloatArray, OfxHost, nodes_of

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

    host.options.project = (float(WIDTH), float(HEIGHT))
    node = host.create(clips_of(frames, mask))
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


OTHER_HOST = """
import json, sys
from pathlib import Path
import numpy as np
from tests.hosts.ofx_fixtures import *
from tests.hosts.ofx_host import *
from tests.ofx_bridge.test_effect_against_files import FRAMES, HEIGHT, WIDTH, clips_of, footage

binary, data, folder = map(Path, sys.argv[1:])
host = OfxHost(binary)
host.options.project = (float(WIDTH), float(HEIGHT))
saved = json.loads((folder / "saved.json").read_text())
node = host.create(clips_of(*footage(data)), saved=saved)
with nodes_of(host, node):
    for frame in reversed(FRAMES):
        status, image = node.render(frame)
        assert status == OK, node.persistent
        np.save(folder / f"{frame}.npy", image.picture()[..., 3])
"""


def clips_of(frames: list[FloatArray], mask: FloatArray) -> dict[str, Clip]:
    """The opaque source, and one mask for every frame."""
    opaque = [np.dstack([frame, np.ones_like(mask)]) for frame in frames]
    options = {"frames": (FRAMES[0], FRAMES[-1]), "size": (WIDTH, HEIGHT), "depth": HALF}
    return {
        "Source": Clip(lambda frame: opaque[frame - FRAMES[0]], **options),  # type: ignore[arg-type]
        "Mask": Clip(lambda frame: mask[..., None], components=ALPHA, **options),  # type: ignore[arg-type]
    }


@pytest.mark.slow
def test_a_day_with_a_real_clip(
    engine: EngineHome, effect_binary: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Keys, a cancelled and a killed propagation, any order, reload, two nodes and hosts: the same mattes."""
    frames, mask = footage(shared_data)
    # A library of its own: the one of the other tests may have started as many engines as it may in a minute.
    host = OfxHost(Path(shutil.copy(effect_binary, tmp_path / "STM.ofx")))
    host.options.project = (float(WIDTH), float(HEIGHT))
    clips = clips_of(frames, mask)
    one, two = host.create(clips), host.create(clips)
    for node in (one, two):
        node.set("workingSize", HEIGHT)
    with nodes_of(host, one, two):
        for node in (one, two):
            assert node.press("setKey", FRAMES[0]) == OK, node.persistent
        two.press("propagateForward", FRAMES[0])
        undisturbed = {frame: matte(two, frame) for frame in FRAMES}

        one.progress_answer = lambda part: REPLY_NO if part > 0.5 else OK
        assert one.press("propagateForward", FRAMES[0]) == OK
        assert one.value("status").startswith("Stopped")
        assert one.render(FRAMES[-1])[0] != OK
        killed: list[int | None] = []

        def kill_once(part: float) -> int:
            if part > 0.7 and not killed:
                killed.append(engine.process())
                engine.kill()
            return OK

        one.progress_answer = kill_once
        assert one.press("propagateForward", FRAMES[0]) == OK, one.persistent
        assert killed and engine.process() not in (None, *killed)
        for frame in np.random.default_rng(4).permutation(FRAMES):
            np.testing.assert_array_equal(matte(one, int(frame)), undisturbed[int(frame)])

        (tmp_path / "saved.json").write_text(json.dumps(one.saved()))
        command = [sys.executable, "-c", OTHER_HOST, str(effect_binary), str(shared_data), str(tmp_path)]
        other = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        while other.poll() is None:
            for frame in FRAMES:
                np.testing.assert_array_equal(matte(one, frame), undisturbed[frame])
        assert other.returncode == 0, other.communicate()[1]
        other.communicate()
        for frame in FRAMES:
            np.testing.assert_array_equal(np.load(tmp_path / f"{frame}.npy"), undisturbed[frame])


def matte(node: Effect, frame: int) -> FloatArray:
    """The rendered matte, (h, w)."""
    status, image = node.render(frame)
    assert status == OK, node.persistent
    return image.picture()[..., 3]


def read_alpha(path: Path) -> FloatArray:
    """The channel A of an EXR."""
    picture = oiio.ImageBuf(str(path))
    names = list(picture.spec().channelnames)
    pixels = picture.get_pixels("float")
    assert pixels is not None
    return pixels[..., names.index("A")]
