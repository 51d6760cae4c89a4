"""The promises of the OpenFX effect, in a host that checks every call, with the real engine.

The file needs no conftest of the suite: `test_sanitized.py` runs it again with sanitizers preloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.ofx_fixtures import (
    FIRST,
    HEIGHT,
    LAST,
    REPOSITORY,
    WIDTH,
    EngineHome,
    Rig,
    disc,
    make_rig,
    picture,
)
from tests.hosts.ofx_host import (
    ALPHA,
    BYTE,
    FILTER,
    FLOAT,
    GENERAL,
    HALF,
    OK,
    REPLY_NO,
    RGB,
    RGBA,
    SHORT,
    Clip,
    Effect,
    FloatArray,
    OfxHost,
    box_scaled,
    nodes_of,
)

STEPS = {BYTE: 1 / 255, SHORT: 1 / 65535, HALF: 1 / 1024, FLOAT: 0.0}
UNTOUCHED = 0xCD


def alpha_of(node: Effect, frame: float, **options: object) -> FloatArray:
    """The rendered matte, (h, w)."""
    status, image = node.render(frame, **options)  # type: ignore[arg-type]
    assert status == OK, node.persistent
    return image.picture()[..., -1]


def keyed(host: OfxHost, **options: object) -> Rig:
    """A node with a key on the first frame."""
    rig = make_rig(host, **options)  # type: ignore[arg-type]
    assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
    return rig


# ---- what hosts see before there is a node


def test_describing_is_repeatable_and_starts_nothing(effect_binary: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.hosts.ofx_host import *\n"
        "host = OfxHost(Path(sys.argv[1]))\n"
        "for context in (GENERAL, FILTER, GENERAL): host.describe(context)\n"
        "host.create({'Source': Clip(lambda frame: None)}).destroy(); host.unload()\n"
        "assert host.violations == [], host.violations\n"
    )
    variables = {"STM_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-c", code, str(effect_binary)]
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


CLOSED_AND_LEFT = """
import _ctypes, sys
from pathlib import Path
from tests.hosts.ofx_fixtures import *
from tests.hosts.ofx_host import *

host = OfxHost(Path(sys.argv[1]))
rig = make_rig(host)
rig.node.set("shotStore", "relative")
assert rig.node.press("setKey", FIRST) != OK
rig.node.destroy()
host.unload()
assert host.violations == [], host.violations
_ctypes.dlclose(host.library._handle)
"""


def test_a_host_that_closes_the_library_can_exit(effect_binary: Path, engine: EngineHome) -> None:
    command = [sys.executable, "-c", CLOSED_AND_LEFT, str(effect_binary)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mask_input_is_offered_in_the_general_context_only(host: OfxHost) -> None:
    assert set(host.describe(GENERAL).clips) == {"Source", "Mask", "Fix", "Output"}
    assert set(host.describe(FILTER).clips) == {"Source", "Output"}
    assert host.violations == []


def test_hosts_are_told_that_instances_are_safe_and_frames_are_not_shared(host: OfxHost) -> None:
    described = host.descriptor.properties.values
    assert described["OfxImageEffectPluginRenderThreadSafety"] == ["OfxImageEffectRenderInstanceSafe"]
    assert described["OfxImageEffectPluginPropHostFrameThreading"] == [0]
    assert described["OfxImageEffectPropSupportsTiles"] == [0]
    assert described["OfxImageEffectPropTemporalClipAccess"] == [1]


# ---- keys are law, whatever the pixels look like


@pytest.mark.parametrize("negative_rows", [False, True])
@pytest.mark.parametrize("depth", [BYTE, SHORT, HALF, FLOAT])
def test_a_keys_matte_is_the_mask_in_every_pixel_layout(
    host: OfxHost, engine: EngineHome, depth: str, negative_rows: bool
) -> None:
    rig = make_rig(host, depth=depth, negative_rows=negative_rows, padding=12)
    rig.mask.negative_rows, rig.mask.padding = not negative_rows, 4
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        status, image = rig.node.render(FIRST, depth=depth, negative_rows=negative_rows, padding=20)
        assert status == OK, rig.node.persistent
        rendered = image.picture()
        np.testing.assert_allclose(rendered[..., 3], disc(FIRST)[..., 0], atol=STEPS[depth])
        expected = picture(FIRST)[..., :3]
        if depth in (BYTE, SHORT):
            expected = np.clip(expected, 0, 1)
        np.testing.assert_allclose(rendered[..., :3], expected, atol=STEPS[depth])


def test_only_the_render_window_is_written(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        window = (5, 7, 40, 31)
        status, image = rig.node.render(FIRST, window=window, depth=BYTE, padding=6)
        assert status == OK, rig.node.persistent
        x1, y1, x2, y2 = window
        inside = np.zeros((HEIGHT, WIDTH), bool)
        inside[HEIGHT - y2 : HEIGHT - y1, x1:x2] = True
        raw = image.raw()
        assert (raw[~inside] == UNTOUCHED).all()
        truth = np.floor(disc(FIRST)[..., 0] * 255 + 0.5)
        np.testing.assert_array_equal(raw[inside][:, 3], truth[inside])


def test_overscan_and_negative_origins_stay_in_place(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host, origin=(-8, -6))
    host.options.project = (WIDTH - 16.0, HEIGHT - 12.0)
    rig.node.properties.set("OfxImageEffectPropProjectSize", *host.options.project)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), disc(FIRST)[..., 0])
        assert rig.node.region_of_definition(FIRST) == [-8, -6, WIDTH - 8, HEIGHT - 6]


def test_pixel_aspect_is_not_mistaken_for_size(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host, aspect=2.0)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), disc(FIRST)[..., 0])
        assert rig.node.region_of_definition(FIRST) == [0, 0, 2.0 * WIDTH, HEIGHT]


@pytest.mark.parametrize("factor", [2, 4])
def test_a_proxy_is_the_full_matte_made_smaller(host: OfxHost, engine: EngineHome, factor: int) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        proxy = alpha_of(rig.node, FIRST, scale=1 / factor)
        np.testing.assert_allclose(proxy, box_scaled(disc(FIRST), factor)[..., 0], atol=1e-6)


def test_a_premultiplied_source_comes_back_unpremultiplied(host: OfxHost, engine: EngineHome) -> None:
    def premultiplied(frame: int) -> FloatArray:
        pixels = picture(frame)
        pixels[..., 3] = 0.5
        pixels[..., :3] *= 0.5
        return pixels

    rig = make_rig(host)
    rig.source.read, rig.source.premultiplied = premultiplied, True
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        _, image = rig.node.render(FIRST)
        np.testing.assert_allclose(image.picture()[..., :3], picture(FIRST)[..., :3], atol=1e-6)
        name = "OfxImageEffectPropPreMultiplication"
        assert rig.node.clip_preferences()[name] == "OfxImageAlphaUnPremultiplied"


def test_outputs_are_rgba_matte_and_overlay(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    node, matte = rig.node, disc(FIRST)
    with nodes_of(host, node):
        assert node.clip_preferences()["OfxImageClipPropComponents_Output"] == RGBA
        node.set("output", 1)
        assert node.clip_preferences()["OfxImageClipPropComponents_Output"] == ALPHA
        np.testing.assert_array_equal(node.render(FIRST, components=ALPHA)[1].picture(), matte)
        np.testing.assert_array_equal(node.render(FIRST)[1].picture(), np.repeat(matte, 4, axis=-1))
        node.set("output", 2)
        overlay = node.render(FIRST, components=RGB)[1].picture()
        plain = picture(FIRST)[..., :3]
        outside = matte[..., 0] == 0
        np.testing.assert_array_equal(overlay[outside], plain[outside])
        assert (np.abs(overlay - plain).max(axis=-1)[matte[..., 0] > 0.5] > 0.05).all()


def test_several_objects_come_in_the_masks_channels(host: OfxHost, engine: EngineHome) -> None:
    def masks(frame: int) -> FloatArray:
        both = np.zeros((HEIGHT, WIDTH, 4), np.float32)
        both[..., 0] = disc(frame)[..., 0]
        both[:10, :10, 1] = 1.0
        return both

    rig = make_rig(host)
    rig.mask.read, rig.mask.components = masks, RGBA
    rig.node.set("objects", "ball, corner")
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        rig.node.set("outputObject", "corner")
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), masks(FIRST)[..., 1])
        rig.node.set("outputObject", "")
        np.testing.assert_allclose(alpha_of(rig.node, FIRST), masks(FIRST)[..., :2].max(axis=-1), atol=1e-6)


def test_objects_that_are_no_longer_listed_are_gone_from_the_matte(host: OfxHost, engine: EngineHome) -> None:
    def masks(frame: int) -> FloatArray:
        both = np.ones((HEIGHT, WIDTH, 4), np.float32)  # the alpha of a mask in colours is often solid
        both[..., 0] = disc(frame)[..., 0]
        both[..., 1:3] = 0.0
        return both

    rig = make_rig(host)
    rig.mask.read, rig.mask.components = masks, RGBA
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), 1.0)
        rig.node.set("objects", "ball, other")
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), disc(FIRST)[..., 0])
        rig.node.set("objects", "a, b, c, d, e")
        assert rig.node.render(FIRST)[0] != OK
        assert rig.node.persistent is not None and "at most" in rig.node.persistent


def test_the_whole_source_is_asked_for_and_keys_around_the_frame(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        rig.node.set("keyFrames", f"{FIRST}, {FIRST + 4}, {LAST + 50}")
        assert rig.node.frames_needed(FIRST + 2) == {
            "Source": [FIRST + 2, FIRST + 2],
            "Mask": [FIRST, FIRST, FIRST + 4, FIRST + 4],
            "Fix": [FIRST + 2, FIRST + 2],
        }
        assert rig.node.frames_needed(FIRST + 6)["Mask"] == [FIRST + 4, FIRST + 4, LAST, LAST]
        regions = rig.node.regions_of_interest(FIRST, (1.0, 1.0, 2.0, 2.0))
        for name in ("Source", "Mask"):
            assert regions[name] == [0.0, 0.0, WIDTH, HEIGHT]


# ---- propagation


def test_propagation_answers_every_frame_in_any_order(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        status, _ = rig.node.render(FIRST + 3)
        assert status != OK
        assert rig.node.persistent is not None and f"frame {FIRST + 3}" in rig.node.persistent
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert rig.node.value("status").splitlines()[0] == f"{LAST - FIRST + 1} frames done"
        reading, computing = rig.node.progress_bars[-2:]
        assert reading == sorted(reading) and computing == sorted(computing)
        rig.source.reads.clear()
        first = {frame: alpha_of(rig.node, frame) for frame in range(FIRST, LAST + 1)}
        for frame in np.random.default_rng(1).permutation(range(FIRST, LAST + 1)):
            np.testing.assert_array_equal(alpha_of(rig.node, int(frame)), first[int(frame)])
        assert sorted(rig.source.reads) == sorted(2 * list(range(FIRST, LAST + 1)))
        assert rig.node.persistent is None


def test_a_second_key_recomputes_from_both_sides(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateBoth", FIRST) == OK
        assert rig.node.press("setKey", LAST) == OK
        assert rig.node.value("keyFrames") == f"{FIRST}, {LAST}"
        assert "stale" in rig.node.value("status")
        assert rig.node.press("propagateBoth", FIRST) == OK
        np.testing.assert_array_equal(alpha_of(rig.node, LAST), disc(LAST)[..., 0])
        assert rig.node.press("deleteKey", LAST) == OK
        assert rig.node.value("keyFrames") == f"{FIRST}"
        assert rig.node.render(LAST)[0] != OK


def test_a_changed_mask_is_seen_by_the_next_render(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        rig.mask.read = lambda frame: disc(frame) * np.float32(0.5)
        assert rig.node.render(FIRST + 1)[0] != OK
        assert rig.node.persistent is not None and "mask" in rig.node.persistent
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), disc(FIRST)[..., 0] * np.float32(0.5))


def test_a_changed_plate_is_never_answered_with_the_old_matte(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        rig.source.read = lambda frame: picture(frame) * np.float32(0.5)
        assert rig.node.render(FIRST + 2)[0] != OK
        assert rig.node.persistent is not None and "plate" in rig.node.persistent
        assert rig.node.press("propagateForward", FIRST) == OK
        for frame in range(FIRST, LAST + 1):
            alpha_of(rig.node, frame)


def test_rendering_in_order_computes_forward_and_pushes_each_frame_once(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        rig.source.reads.clear()
        in_order = [alpha_of(rig.node, frame, in_order=True) for frame in range(FIRST, LAST + 1)]
        assert set(rig.source.reads) == set(range(FIRST, LAST + 1))
        again = make_rig(host)
        with nodes_of(host, again.node):
            assert again.node.press("setKey", FIRST) == OK
            assert again.node.press("propagateForward", FIRST) == OK
            for frame, matte in enumerate(in_order, FIRST):
                np.testing.assert_array_equal(alpha_of(again.node, frame), matte)


WITHOUT_TIME = """
import sys
from pathlib import Path
from tests.hosts.ofx_fixtures import *
from tests.hosts.ofx_host import *

simple = HostOptions(temporal=False, progress=False, persistent_messages=False, frame_ranges=False)
host = OfxHost(Path(sys.argv[1]), simple)
safety = host.descriptor.properties.values["OfxImageEffectPluginRenderThreadSafety"]
assert safety == ["OfxImageEffectRenderUnsafe"], safety
now = 0

def read(frame):
    assert frame == now, "another frame than the current one"
    pixels = picture(frame + FIRST)
    pixels[..., 3] = disc(frame + FIRST)[..., 0]
    return pixels

source = Clip(read, frames=(0, 99), size=(WIDTH, HEIGHT), depth=BYTE)
saved = {"keyFrames": "0", "shotStore": sys.argv[2], "workingSize": WIDTH}
node = host.create({"Source": source}, FILTER, saved)
with nodes_of(host, node):
    for now in range(4):
        status, image = node.render(now, depth=BYTE)
        assert status == OK, host.messages
        if now == 0:
            assert np.abs(image.picture()[..., 3] - disc(FIRST)[..., 0]).max() <= 1 / 255
    now = 7
    assert node.render(now, depth=BYTE)[0] != OK
    assert "4, 5, 6" in host.messages[-1][1], host.messages
"""


def test_a_host_without_time_works_frame_by_frame(
    effect_binary: Path, engine: EngineHome, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", WITHOUT_TIME, str(effect_binary), str(tmp_path / "simple.stmshot")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_frames_before_the_first_key_are_refused_in_words(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST + 3) == OK
        assert rig.node.render(FIRST, in_order=True)[0] != OK
        assert rig.node.persistent is not None and "before the first key" in rig.node.persistent
        assert rig.node.press("propagateBackward", FIRST + 3) == OK
        alpha_of(rig.node, FIRST)


def test_holding_the_last_matte_is_an_option_that_is_off(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.value("missingFrames") == 0
        assert rig.node.render(FIRST + 2)[0] != OK
        rig.node.set("missingFrames", 1)
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST + 2), disc(FIRST)[..., 0])
        assert any(kind == "OfxMessageLog" and str(FIRST) in text for kind, text in host.messages)


# ---- stopping, dying, coming back


def test_cancelling_keeps_what_is_finished(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        rig.node.progress_answer = lambda part: REPLY_NO if part > 0.4 else OK
        assert rig.node.press("propagateForward", FIRST) == OK
        assert rig.node.value("status").startswith("Stopped")
        statuses = [rig.node.render(frame)[0] for frame in range(FIRST, LAST + 1)]
        assert statuses[0] == OK and statuses[-1] != OK
        rig.node.progress_answer = lambda part: OK
        assert rig.node.press("propagateForward", FIRST) == OK
        assert [rig.node.render(frame)[0] for frame in range(FIRST, LAST + 1)] == [OK] * (LAST - FIRST + 1)


def test_an_aborted_render_fails_without_a_message_and_the_next_one_works(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        before = len(host.messages)
        rig.node.abort_answer = lambda: 1
        status, image = rig.node.render(FIRST)
        assert status != OK
        assert (image.memory == UNTOUCHED).all()
        calls = iter(range(1000))
        rig.node.abort_answer = lambda: int(next(calls) > 8)
        assert rig.node.render(LAST, in_order=True)[0] != OK
        assert len(host.messages) == before
        rig.node.abort_answer = lambda: 0
        alpha_of(rig.node, LAST, in_order=True)


def test_a_killed_engine_is_started_again_by_the_next_render(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        before = alpha_of(rig.node, LAST)
        killed = engine.process()
        engine.kill()
        np.testing.assert_array_equal(alpha_of(rig.node, LAST), before)
        assert engine.process() not in (None, killed)


def test_an_engine_killed_in_mid_propagation_loses_nothing(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    killed = False

    def kill_once(part: float) -> int:
        nonlocal killed
        if part > 0.5 and not killed:
            killed = True
            engine.kill()
        return OK

    with nodes_of(host, rig.node):
        rig.node.progress_answer = kill_once
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert killed
        for frame in range(FIRST, LAST + 1):
            alpha_of(rig.node, frame)


def test_a_saved_node_comes_back_with_its_mattes(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        before = alpha_of(rig.node, LAST)
        saved = rig.node.saved()
        assert "status" not in saved
        assert json.loads(saved["state"])["keys"] == [FIRST]
    again = host.create({"Source": rig.source, "Mask": rig.mask}, saved=saved)
    with nodes_of(host, again):
        np.testing.assert_array_equal(alpha_of(again, LAST), before)
        again.progress_values.clear()
        assert again.press("propagateForward", FIRST) == OK
        np.testing.assert_array_equal(alpha_of(again, LAST), before)


def test_a_copy_that_sets_a_key_gets_a_store_of_its_own(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    copy = host.create({"Source": rig.source, "Mask": rig.mask}, saved=rig.node.saved())
    with nodes_of(host, rig.node, copy):
        np.testing.assert_array_equal(alpha_of(copy, FIRST), disc(FIRST)[..., 0])
        assert copy.press("setKey", LAST) == OK, copy.persistent
        assert copy.value("state") != rig.node.value("state")
        for frame in (FIRST, LAST):
            np.testing.assert_array_equal(alpha_of(copy, frame), disc(frame)[..., 0])
        assert rig.node.value("keyFrames") == f"{FIRST}"
        assert rig.node.render(LAST)[0] != OK
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), disc(FIRST)[..., 0])


def test_two_nodes_keep_their_shots_apart(host: OfxHost, engine: EngineHome) -> None:
    one, two = keyed(host), make_rig(host)
    two.mask.read = lambda frame: 1 - disc(frame)
    with nodes_of(host, one.node, two.node):
        assert two.node.press("setKey", FIRST) == OK
        np.testing.assert_array_equal(alpha_of(one.node, FIRST), disc(FIRST)[..., 0])
        np.testing.assert_array_equal(alpha_of(two.node, FIRST), 1 - disc(FIRST)[..., 0])


def test_another_host_reads_the_same_shot_at_the_same_time(
    host: OfxHost, engine: EngineHome, effect_binary: Path, tmp_path: Path
) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        expected = np.stack([alpha_of(rig.node, frame) for frame in range(FIRST, LAST + 1)])
        (tmp_path / "saved.json").write_text(json.dumps(rig.node.saved()))
        code = (
            "import json, sys; from pathlib import Path; import numpy as np\n"
            "from tests.hosts.ofx_fixtures import *; from tests.hosts.ofx_host import *\n"
            "host = OfxHost(Path(sys.argv[1])); rig = make_rig(host); rig.node.destroy()\n"
            "saved = json.loads((Path(sys.argv[2]) / 'saved.json').read_text())\n"
            "node = host.create({'Source': rig.source, 'Mask': rig.mask}, saved=saved)\n"
            "with nodes_of(host, node):\n"
            "    mattes = []\n"
            "    for frame in range(FIRST, LAST + 1):\n"
            "        status, image = node.render(frame); assert status == OK, node.persistent\n"
            "        mattes.append(image.picture()[..., 3])\n"
            "np.save(Path(sys.argv[2]) / 'mattes.npy', np.stack(mattes))\n"
        )
        command = [sys.executable, "-c", code, str(effect_binary), str(tmp_path)]
        other = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        while other.poll() is None:
            for frame in range(FIRST, LAST + 1):
                np.testing.assert_array_equal(alpha_of(rig.node, frame), expected[frame - FIRST])
            time.sleep(0.01)
        assert other.stderr is not None
        assert other.wait() == 0, other.stderr.read()
        other.stderr.close()
        np.testing.assert_array_equal(np.load(tmp_path / "mattes.npy"), expected)


# ---- what artists do


def test_a_mask_that_is_not_there_is_said_in_words(host: OfxHost, engine: EngineHome) -> None:
    source = Clip(picture, frames=(FIRST, LAST), size=(WIDTH, HEIGHT))
    connected_but_empty = Clip(lambda frame: None, frames=(FIRST, LAST), size=(WIDTH, HEIGHT))
    for mask in (None, connected_but_empty):
        node = host.create({"Source": source} if mask is None else {"Source": source, "Mask": mask})
        with nodes_of(host, node):
            assert node.press("setKey", FIRST) != OK
            words = "no mask" if mask is None else "is connected, but gives no picture"
            assert node.persistent is not None and words in node.persistent
            assert node.value("keyFrames") == ""


def test_a_store_that_is_not_there_is_said_and_not_made(
    host: OfxHost, engine: EngineHome, tmp_path: Path
) -> None:
    rig = make_rig(host)
    rig.node.set("shotStore", str(tmp_path / "typo.stmshot"))
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST)[0] != OK
        assert rig.node.persistent is not None and "typo.stmshot" in rig.node.persistent
        assert list(tmp_path.iterdir()) == []


def test_masks_can_come_in_the_sources_alpha(host: OfxHost, engine: EngineHome) -> None:
    def with_alpha(frame: int) -> FloatArray:
        pixels = picture(frame)
        pixels[..., 3] = disc(frame)[..., 0]
        return pixels

    node = host.create({"Source": Clip(with_alpha, frames=(FIRST, LAST), size=(WIDTH, HEIGHT))})
    node.set("maskFrom", 1)
    with nodes_of(host, node):
        assert node.press("setKey", FIRST) == OK, node.persistent
        np.testing.assert_array_equal(alpha_of(node, FIRST), disc(FIRST)[..., 0])


@pytest.mark.parametrize("components", [RGBA, RGB])
@pytest.mark.parametrize("depth", [BYTE, SHORT, FLOAT])
def test_an_alpha_that_the_host_has_filled_in_is_no_mask(
    host: OfxHost, engine: EngineHome, depth: str, components: str
) -> None:
    clip = Clip(picture, frames=(FIRST, LAST), size=(WIDTH, HEIGHT), depth=depth, components=components)
    node = host.create({"Source": clip})
    node.set("maskFrom", 1)
    with nodes_of(host, node):
        assert node.press("setKey", FIRST) != OK
        assert node.persistent is not None and "no mask in its alpha" in node.persistent
        node.set("keyFrames", f"{FIRST}")
        assert node.press("propagateBoth", FIRST) != OK
        assert "no mask in its alpha" in node.persistent


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("shotStore", "relative/folder", "whole path"),
        ("keyFrames", "1001, next", "next"),
        ("objects", "two words", "two words"),
        ("colourSpace", "no such space", "no such space"),
        ("state", '{"version": 99, "shot": "abc"}', "newer version"),
        ("state", "{", "saved state"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    host: OfxHost, engine: EngineHome, parameter: str, value: str, words: str
) -> None:
    rig = make_rig(host)
    rig.node.set(parameter, value)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) != OK
        assert rig.node.persistent is not None and words in rig.node.persistent
        assert words in rig.node.value("status")


def test_frames_between_frames_are_refused_in_words(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST + 0.5)[0] != OK
        assert rig.node.persistent is not None and "whole frames" in rig.node.persistent


def test_plate_frames_are_not_taken_from_proxies(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST + 1, scale=0.5, in_order=True)[0] != OK
        assert rig.node.press("propagateForward", FIRST) == OK
        full = alpha_of(rig.node, FIRST + 1)
        proxy = alpha_of(rig.node, FIRST + 1, scale=0.5)
        np.testing.assert_allclose(proxy, box_scaled(full[..., None], 2)[..., 0], atol=1e-6)


def test_settings_of_the_node_reach_the_shot(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    rig.node.set("memoryRule", 2)
    rig.node.set("useRegion", 1)
    rig.node.set("regionCorner", (16.0, 8.0))
    rig.node.set("regionSize", (40.0, 32.0))
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        shot = json.loads(rig.node.value("state"))["shot"]
        folder = engine.home / ".local" / "share" / "stm-for-nuke" / "shots" / f"ofx-{shot}.stmshot"
        settings = json.loads((folder / "shot.json").read_text())["settings"]
        assert settings["memory_rule"] == "first+previous"
        assert settings["working_size"] == WIDTH
        region = {"x": 16, "y": HEIGHT - 40, "width": 40, "height": 32}
        assert settings["region"] in (region, list(region.values()))
