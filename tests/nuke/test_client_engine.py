"""A host's work with the real engine in a separate process: push, key, propagate, correct, crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from stm_nuke.client import Engine, EngineError, EngineGoneError, Image, Matte, Shot

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import Manifest, save_network
from stm_plugin.images.matte import read_matte
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot as EngineShot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import Window
from tests.stm_plugin.server_process import REPOSITORY, ServerProcess, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

FIRST, LAST = 1001, 1010
WIDTH, HEIGHT = 128, 72
PATIENCE = 120.0
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """A few small frames of real footage: bytes (h, w, 3) as RGB, and masks in [0, 1] by frame."""

    pictures: dict[int, npt.NDArray[np.uint8]]
    masks: dict[int, FloatArray]


@pytest.fixture(scope="module")
def clip(shared_data: Path) -> Clip:
    folder = shared_data / "clips" / "chair"
    pictures, masks = {}, {}
    for index, frame in enumerate(range(FIRST, LAST + 1)):
        picture = cv2.imread(str(folder / "JPEGImages" / f"frame_{index:06d}.jpg"))
        mask = cv2.imread(str(folder / "Annotations" / f"frame_{index:06d}.png"), cv2.IMREAD_GRAYSCALE)
        assert picture is not None and mask is not None
        small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        pictures[frame] = np.ascontiguousarray(small[..., ::-1], np.uint8)
        soft = cv2.resize((mask > 0).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        masks[frame] = np.ascontiguousarray(soft, np.float32)
    return Clip(pictures, masks)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A weights file with random weights; these tests do not depend on their quality."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = SpaceTimeMemoryNetwork(network_config("stm-lite"))
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_network(network, Manifest("random", "stm-lite", "none"), path)
    return str(path)


@pytest.fixture(scope="module")
def runtime() -> Iterator[ServerProcess]:
    """A runtime folder for the engines of this file."""
    server = ServerProcess("stm_plugin.server")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STM_RUNTIME_DIR", "STM_TRANSPORT", "OMP_NUM_THREADS"):
            patch.setenv(name, server.environment[name])
        patch.setenv("STM_ENGINE_PYTHON", sys.executable)
        patch.setenv("STM_ENGINE_ROOT", str(REPOSITORY))
        yield server
        with suppress(EngineError):
            Engine("the end", may_start=False).shutdown()
        assert wait_for(lambda: not (server.folder / "endpoint.json").exists(), PATIENCE)
    server.clean()


@pytest.fixture
def engine(runtime: ServerProcess) -> Iterator[Engine]:
    one = Engine("test host")
    yield one
    one.close()


def settings_of(weights: str) -> dict[str, Any]:
    return {"weights": weights, "working_size": 48, "memory_rule": "every:2", "device": "cpu"}


def new_shot(engine: Engine, folder: Path, weights: str) -> Shot:
    """A shot that is not opened yet."""
    plate = {
        "kind": "pushed", "frames": [FIRST, LAST], "display_window": [0, 0, WIDTH, HEIGHT], "fps": 24.0,
        "colour_space": "sRGB - Texture",
    }  # fmt: skip
    return engine.shot(
        {"folder": str(folder), "create": True, "plate": plate, "settings": settings_of(weights)}
    )


def push_plate(shot: Shot, clip: Clip) -> list[int]:
    """Send the plate frames that the engine lacks; returns their numbers."""
    digests = {frame: f"v1-{frame}" for frame in clip.pictures}
    frames = [frame for first, last in shot.plate_needed(digests=digests) for frame in range(first, last + 1)]
    for frame in frames:
        picture = clip.pictures[frame]
        image = Image("byte", ("R", "G", "B"), (0, 0, WIDTH, HEIGHT), picture.tobytes())
        shot.push_plate(frame, image, digest=digests[frame])
    return frames


def push_key(shot: Shot, clip: Clip, frame: int, **fields: Any) -> dict[str, Any]:
    """Send a key's mask with the bottom row first, as hosts with y upwards do."""
    mask = clip.masks[frame][::-1].tobytes()
    image = Image.bottom_up("float", ("A",), (0, 0, WIDTH, HEIGHT), mask)
    return shot.push_key(frame, image, {"chair": "A"}, **fields)


def pixels(matte: Matte) -> FloatArray:
    """A matte's values, top row first."""
    assert matte.image.format == "float"
    values = np.frombuffer(matte.image.data, np.float32).reshape(HEIGHT, WIDTH)
    return values if matte.image.to_json()["row_bytes"] > 0 else values[::-1]


def all_mattes(shot: Shot) -> dict[int, bytes]:
    return {frame: bytes(shot.matte(frame, format="float").image.data) for frame in range(FIRST, LAST + 1)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, clip: Clip, weights: str) -> dict[int, FloatArray]:
    """The mattes computed in this process, without a server."""
    plate = PlateDescription(
        "pushed", frames=(FIRST, LAST), display_window=Window(0, 0, WIDTH, HEIGHT), fps=24.0
    )
    settings = Settings.from_json({**settings_of(weights), "colour_space": "sRGB - Texture"})
    folder = tmp_path_factory.mktemp("undisturbed") / "shot.stmshot"
    with one_thread(), EngineShot.create(folder, plate, settings) as shot:
        for frame, picture in clip.pictures.items():
            values = picture.astype(np.float32) * np.float32(1 / 255)  # as the engine reads bytes
            shot.plate.push(frame, values, Window(0, 0, WIDTH, HEIGHT))  # type: ignore[attr-defined]
        for frame in (FIRST, LAST):
            shot.add_key(frame, {"chair": clip.masks[frame]})
        shot.propagate()
        return {frame: shot.matte(frame).mattes["chair"] for frame in range(FIRST, LAST + 1)}


@contextmanager
def one_thread() -> Iterator[None]:
    """The thread count of the engine's process: the last digits of float sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_host_gets_the_same_mattes_as_a_terminal(
    engine: Engine, tmp_path: Path, clip: Clip, weights: str, undisturbed: dict[int, FloatArray]
) -> None:
    shot = new_shot(engine, tmp_path / "a.stmshot", weights)
    assert shot.status()["missing"] == [[FIRST, LAST]]
    assert push_plate(shot, clip) == list(range(FIRST, LAST + 1))
    assert push_plate(shot, clip) == [], "nothing is sent twice"
    with pytest.raises(EngineError) as caught:
        shot.propagate()
    assert caught.value.code == "key"
    assert push_key(shot, clip, FIRST, digest="k1")["changed"] is True
    assert push_key(shot, clip, FIRST, digest="k1")["changed"] is False
    push_key(shot, clip, LAST)
    assert [(key["frame"], key["digest"]) for key in shot.list_keys()] == [(FIRST, "k1"), (LAST, None)]
    plan = shot.plan()
    assert plan["compute"] == 2 * (LAST - FIRST), "each pass runs on to the other key"
    assert plan["plate_needed"] == []
    states: list[dict[str, Any]] = []
    end = engine.wait(shot.propagate(), on_progress=states.append)
    assert end["finished"] == [[FIRST, LAST]]
    assert [state["done"] for state in states] == sorted(state["done"] for state in states)
    status = shot.status()
    assert (status["done"], status["text"]) == ([[FIRST, LAST]], "10 frames done")
    for frame, expected in undisturbed.items():
        matte = shot.matte(frame, format="float", rows="up" if frame % 2 else "down")
        np.testing.assert_array_equal(pixels(matte), expected, err_msg=str(frame))
        assert matte.source == ("key" if frame in (FIRST, LAST) else "propagated")
    key = shot.matte(FIRST, format="float")
    np.testing.assert_array_equal(pixels(key), clip.masks[FIRST])
    named = shot.matte(1005, objects=["chair"], format="float")
    np.testing.assert_array_equal(pixels(named), undisturbed[1005])
    export = shot.export(str(tmp_path / "m.%04d.exr"))
    assert engine.wait(export)["done"] == 10
    written = read_matte(tmp_path / "m.1005.exr").channels["A"]
    np.testing.assert_allclose(written, undisturbed[1005], atol=1e-3)
    shot.close()


def test_a_correction_recomputes_its_spans_and_a_changed_plate_what_depends_on_it(
    engine: Engine, tmp_path: Path, clip: Clip, weights: str
) -> None:
    shot = new_shot(engine, tmp_path / "a.stmshot", weights)
    push_plate(shot, clip)
    for frame in (FIRST, 1005, LAST):
        push_key(shot, clip, frame)
    engine.wait(shot.propagate())
    before = all_mattes(shot)
    answer = shot.remove_key(LAST)
    assert answer["dirty"] == [[1002, 1004], [1006, LAST]], "the first span is fused anew"
    assert push_key(shot, clip, LAST)["changed"] is True
    assert shot.status()["done"] == [[FIRST, LAST]], "the same mask again makes nothing stale"
    changed = Image("byte", ("R", "G", "B"), (0, 0, WIDTH, HEIGHT), bytes(WIDTH * HEIGHT * 3))
    assert shot.plate_needed(digests={1008: "v2", 1009: "v1-1009"}) == [(1008, 1008)]
    pushed = shot.push_plate(1008, changed, digest="v2")
    assert (pushed["changed"], pushed["dirty"]) == (True, [[1002, 1004], [1006, 1009]])
    with pytest.raises(EngineError, match=r"frame 1007.*stale|frame 1007") as caught:
        shot.matte(1007)
    assert (caught.value.code, caught.value.details["state"]) == ("matte_missing", "stale")
    assert shot.matte(1007, stale=True, format="float").state == "stale"
    assert bytes(shot.matte(1003, stale=True, format="float").image.data) == before[1003]
    engine.wait(shot.propagate())
    after = all_mattes(shot)
    same = [frame for frame in before if before[frame] == after[frame]]
    assert set(same) >= {1001, 1005, LAST}
    shot.close()


@pytest.mark.slow
def test_a_killed_engine_is_started_again_and_goes_on_to_the_same_bytes(
    engine: Engine, runtime: ServerProcess, tmp_path: Path, clip: Clip, weights: str,
    undisturbed: dict[int, FloatArray],
) -> None:  # fmt: skip
    shot = new_shot(engine, tmp_path / "a.stmshot", weights)
    push_plate(shot, clip)
    for frame in (FIRST, LAST):
        push_key(shot, clip, frame)
    everything = shot.plan()["compute"]
    computed = []
    for kill_at in (6, 12):  # the last two results may not be stored yet

        def kill(state: dict[str, Any], kill_at: int = kill_at) -> None:
            if state["done"] >= kill_at and state["state"] == "running":
                os.kill(runtime.endpoint()["pid"], signal.SIGKILL)

        with pytest.raises(EngineGoneError):
            engine.wait(shot.propagate(), on_progress=kill)
        computed.append(shot.plan()["compute"])  # by a new engine, started on demand
    assert everything > computed[0] > computed[1], "what was computed is kept"
    engine.wait(shot.propagate())
    for frame, expected in undisturbed.items():
        np.testing.assert_array_equal(pixels(shot.matte(frame, format="float")), expected)
    shot.close()


def test_two_hosts_work_at_once_and_a_cancelled_job_goes_on_later(
    request: pytest.FixtureRequest,
    engine: Engine,
    tmp_path: Path,
    clip: Clip,
    weights: str,
    undisturbed: dict[int, FloatArray],
) -> None:
    other_engine = Engine("another host")
    request.addfinalizer(other_engine.close)
    shots = [
        new_shot(engine, tmp_path / "a.stmshot", weights),
        new_shot(other_engine, tmp_path / "b.stmshot", weights),
    ]
    for shot in shots:
        push_plate(shot, clip)
        for frame in (FIRST, LAST):
            push_key(shot, clip, frame)
    jobs = [shot.propagate() for shot in shots]

    def cancel(state: dict[str, Any]) -> None:
        engine.cancel(jobs[0])

    with pytest.raises(EngineError, match=r"frames are kept") as caught:
        engine.wait(jobs[0], on_progress=cancel)
    assert caught.value.code == "cancelled"
    assert other_engine.wait(jobs[1])["state"] == "finished"
    assert shots[0].plan()["compute"] > 0
    engine.wait(shots[0].propagate())
    for frame in (1004, 1007):
        for shot in shots:
            np.testing.assert_array_equal(pixels(shot.matte(frame, format="float")), undisturbed[frame])


def test_what_cannot_be_is_told_in_words(engine: Engine, tmp_path: Path, clip: Clip, weights: str) -> None:
    shot = new_shot(engine, tmp_path / "a.stmshot", weights)
    push_key(shot, clip, FIRST)
    with pytest.raises(EngineError) as caught:
        shot.propagate()
    assert caught.value.code == "plate_missing"
    assert caught.value.details["frames"] == [[FIRST, LAST]]
    push_plate(shot, clip)
    beyond = Image("byte", ("R", "G", "B"), (-4, 0, WIDTH, HEIGHT), bytes(WIDTH * HEIGHT * 3))
    for problem, code in (
        (lambda: shot.push_plate(FIRST, beyond), "plate"),
        (lambda: shot.push_plate(LAST + 1, beyond), "plate"),
        (lambda: push_key(shot, Clip({}, {5: clip.masks[FIRST]}), 5), "key"),
        (lambda: shot.remove_key(1004), "key"),
        (lambda: shot.set_settings({"working_size": 3}), "settings"),
        (lambda: shot.set_settings({"colour": "blue"}), "settings"),
        (lambda: shot.set_settings({"region": [0, 0, 5]}), "settings"),
        (lambda: shot.matte(1004), "matte_missing"),
        (lambda: shot.matte(LAST + 5), "matte_missing"),
        (lambda: engine.wait(shot.export(str(tmp_path / "m.%04d.exr"))), "matte"),
        (lambda: engine.shot({"folder": str(tmp_path / "none.stmshot")}).open(), "store"),
    ):
        with pytest.raises(EngineError) as caught:
            problem()
        assert caught.value.code == code, str(caught.value)
        assert str(caught.value)
    assert list(tmp_path.glob("m.*")) == []
    nothing = Image("byte", ("A",), (0, 0, WIDTH, HEIGHT), bytes(WIDTH * HEIGHT))
    with pytest.raises(EngineError, match="empty") as caught:
        shot.push_key(1005, nothing, {"chair": "A"})
    assert caught.value.code == "mask"
    assert shot.push_key(1005, nothing, {"chair": "A"}, allow_empty=True)["changed"] is True
    wanted = {"finish.radius": 6, "region": [0, 0, 64, 48]}
    shot.set_settings(wanted)
    settings = shot.settings()
    assert {name: settings[name] for name in wanted} == wanted
    assert set(engine.info()["settings"]) == set(settings)
    shot.close()


def test_a_host_that_leaves_a_running_engine_leaves_without_a_word(runtime: ServerProcess) -> None:
    with suppress(EngineError):
        Engine("the one before", may_start=False).shutdown()
    assert wait_for(lambda: not (runtime.folder / "endpoint.json").exists(), PATIENCE)
    visit = "from stm_nuke.client import Engine; e = Engine('visit'); print(e.ping()['clients']); e.close()"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "nuke")}
    host = subprocess.run(
        [sys.executable, "-W", "always", "-c", visit],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert (host.stdout.strip(), host.stderr) == ("1", "")
    assert wait_for(lambda: not (runtime.folder / "endpoint.json").exists(), PATIENCE)  # it ended too


def test_objects_are_named_renamed_and_removed(
    engine: Engine, tmp_path: Path, clip: Clip, weights: str
) -> None:
    shot = new_shot(engine, tmp_path / "a.stmshot", weights)
    push_plate(shot, clip)
    both = np.stack([clip.masks[FIRST], 1 - clip.masks[FIRST]], axis=-1)
    image = Image("float", ("R", "G"), (0, 0, WIDTH, HEIGHT), np.ascontiguousarray(both).tobytes())
    shot.push_key(FIRST, image, {"chair": "R", "rest": "G"})
    assert shot.status()["objects"] == ["chair", "rest"]
    matte = shot.matte(FIRST, objects=["rest", "chair"], format="float")
    planes = np.frombuffer(matte.image.data, np.float32).reshape(2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(planes[1], clip.masks[FIRST])
    assert matte.image.channels == ("rest", "chair")
    assert shot.set_objects(rename={"rest": "room"})["objects"] == ["chair", "room"]
    assert shot.set_objects(remove=["room"])["objects"] == ["chair"]
    with pytest.raises(EngineError, match="no object rest"):
        shot.matte(FIRST, objects=["rest"])
    shot.close()


@pytest.mark.slow
def test_the_artists_shot_is_found_again_by_a_new_host(
    runtime: ServerProcess, tmp_path: Path, clip: Clip, weights: str
) -> None:
    first = Engine("first")
    shot = new_shot(first, tmp_path / "a.stmshot", weights)
    push_plate(shot, clip)
    push_key(shot, clip, FIRST)
    first.wait(shot.propagate(frames=(FIRST, 1004), direction="forward"))
    first.shutdown()
    second = Engine("second")
    again = second.shot({"folder": str(tmp_path / "a.stmshot")})
    status = again.status()
    assert (status["done"], status["keys"]) == ([[FIRST, 1004]], [FIRST])
    assert push_plate(again, clip) == []
    assert again.matte(1004, format="float").state == "done"
    second.close()
