"""One call from plate and keys to matte files; after every interruption the written files are correct."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio
import pytest
import torch

from stm_plugin.errors import KeyframeError, MaskError, MatteError, PropagationCancelled, StoreError
from stm_plugin.images import provenance
from stm_plugin.images.matte import MatteImage, read_matte
from stm_plugin.images.plate import Plate
from stm_plugin.images.provenance import FoundMatte, inspect_matte
from stm_plugin.planning.values import Request
from stm_plugin.propagation.events import Event, FrameFinished, Notice
from stm_plugin.propagation.results import FrameResult, Results
from stm_plugin.propagation.workers import Workers, most_workers
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.propagate import RunOptions, Summary, default_shot_folder, propagate
from stm_plugin.shot.shot import Shot
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

SETTINGS = Settings(working_size=WORKING_SIZE, memory_rule="every:3", colour_space="lin_rec709_scene")
FRAMES = range(1001, 1011)
WHOLE = Request()
MakePlate = Callable[..., str]
KILLS = int(os.environ.get("STM_TEST_KILLS", "10"))
"""How often the suite kills a propagation; 50 and more for a thorough run."""


class Order:
    """A plate with its masks, and where the mattes go."""

    def __init__(self, folder: Path, plate: str) -> None:
        self.folder, self.plate = folder, plate
        self.out = str(folder / "out" / "matte.####.exr")
        self.network = CountingNetwork()

    def mask(self, frame: int) -> str:
        return self.plate.replace("####.exr", f"mask.{frame}.png")

    def run(
        self, *keys: int, settings: Settings = SETTINGS, request: Request = WHOLE, **running: Any
    ) -> Summary:
        self.network.calls.clear()
        return propagate(
            self.plate,
            {frame: self.mask(frame) for frame in keys},
            self.out,
            settings=settings,
            request=request,
            run=RunOptions(network=self.network.factory, **running),
        )

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "out").glob("*.exr")}


@pytest.fixture
def order(tmp_path: Path, make_plate: MakePlate) -> Order:
    attributes = {"smpte:TimeCode": "01:00:00:00", "FramesPerSecond": 24.0, "artist": "someone"}
    return Order(tmp_path, make_plate(frames=FRAMES, overscan=3, attributes=attributes))


def test_confidence_is_a_channel_beside_the_matte_where_it_is_asked_for(order: Order) -> None:
    order.run(1004)
    assert list(read_matte(order.out.replace("####", "1007")).channels) == ["A"]
    order.run(1004, settings=dataclasses.replace(SETTINGS, confidence=True))
    assert not order.network.calls, "files are written again, nothing is computed"
    propagated = read_matte(order.out.replace("####", "1007"))
    assert list(propagated.channels) == ["A", "stm.confidence"]
    assert propagated.is_as_written
    sure = propagated.channels["stm.confidence"]
    assert 0 <= sure.min() < sure.max() <= 1
    assert (read_matte(order.out.replace("####", "1004")).channels["stm.confidence"] == 1).all(), "on the key"


def test_a_matte_that_nobody_touched_is_replaced_without_being_read(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def inspected(path: Path, frame: int | None) -> FoundMatte:
        read.append(path)
        return inspect_matte(path, frame)

    order.run(1004)
    os.utime(order.out.replace("####", "1005"))
    monkeypatch.setattr("stm_plugin.shot.export.inspect_matte", inspected)
    order.run(1004, settings=dataclasses.replace(SETTINGS, confidence=True))
    assert {path.name for path in read} == {"matte.1005.exr"}
    assert {len(read_matte(order.out.replace("####", str(frame))).channels) for frame in FRAMES} == {2}


def test_a_frame_is_fused_once(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[int] = []
    real = Results.frame_result

    def counted(self: Results, frame: int) -> FrameResult:
        fused.append(frame)
        return real(self, frame)

    monkeypatch.setattr(Results, "frame_result", counted)
    order.run(1003, 1008)
    assert sorted(fused) == list(FRAMES)


def test_the_foregrounds_colours_are_a_layer_beside_the_matte_where_they_are_asked_for(order: Order) -> None:
    order.run(1004)
    before = read_matte(order.out.replace("####", "1007")).channels["A"]
    order.run(1004, settings=dataclasses.replace(SETTINGS, foreground=True))
    assert not order.network.calls, "files are written again, nothing is computed"
    found = read_matte(order.out.replace("####", "1007"))
    assert set(found.channels) == {"A", "fg.R", "fg.G", "fg.B"} and found.is_as_written
    assert (found.channels["A"] == before).all()
    colours = np.stack([found.channels[f"fg.{one}"] for one in "RGB"], axis=-1)
    plate = Plate.open(order.plate).read(1007).pixels.astype(np.float32)
    matte = before[..., None]
    inside = np.broadcast_to(matte == 1, plate.shape)
    assert np.allclose(colours[inside], plate[inside], rtol=1e-3, atol=1e-4)
    assert np.isfinite(colours).all()
    key = read_matte(order.out.replace("####", "1004"))
    assert (key.channels["fg.R"] > 0).any(), "on the key too"
    order.run(1004)
    assert list(read_matte(order.out.replace("####", "1007")).channels) == ["A"]


def test_every_frame_gets_a_matte_that_fits_its_plate(order: Order) -> None:
    summary = order.run(1004)
    assert [one.frame for one in summary.files] == list(FRAMES)
    assert all(one.written for one in summary.files)
    assert summary.propagation.computed == 9
    plate = oiio.ImageBuf(order.plate.replace("####", "1007")).spec()
    matte = read_matte(summary.files[6].path)
    assert (matte.data_window.x, matte.data_window.width) == (plate.x, plate.width) == (-3, 70)
    assert matte.metadata.getattribute("artist") == "someone"
    assert matte.metadata.getattribute("stm:keys") == "1004"
    assert matte.metadata.getattribute("stm:source") == "propagated"


def test_on_a_key_the_file_holds_the_mask(order: Order) -> None:
    summary = order.run(1004)
    matte = read_matte(summary.files[3].path)
    pixels = oiio.ImageBuf(order.mask(1004)).get_pixels(oiio.FLOAT)
    assert pixels is not None
    given = pixels[..., 0]
    assert np.array_equal(matte.channels["A"][3:-3, 3:-3], given.astype(np.float16).astype(np.float32))
    assert matte.metadata.getattribute("stm:source") == "key"


def test_running_again_computes_and_writes_nothing(order: Order) -> None:
    order.run(1004)
    before = order.files()
    summary = order.run(1004)
    assert not order.network.calls
    assert not any(one.written for one in summary.files)
    assert order.files() == before


def test_files_that_are_as_they_were_written_are_not_read_again(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    order.run(1004)
    read: list[Path] = []

    def noted(path: Path, *, frame: int | None = None) -> MatteImage:
        read.append(path)
        return read_matte(path, frame=frame)

    monkeypatch.setattr(provenance, "read_matte", noted)
    order.run(1004)
    assert not read
    touched = order.folder / "out" / "matte.1006.exr"
    touched.write_bytes(touched.read_bytes())
    summary = order.run(1004)
    assert read == [touched] and not any(one.written for one in summary.files)
    order.run(1004)
    assert len(read) == 1, "and what was read once is known"


def test_files_that_were_lost_or_damaged_are_written_again(order: Order) -> None:
    order.run(1004)
    before = order.files()
    (order.folder / "out" / "matte.1006.exr").unlink()
    damaged = order.folder / "out" / "matte.1008.exr"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    summary = order.run(1004)
    assert [one.frame for one in summary.files if one.written] == [1006, 1008]
    assert not order.network.calls
    assert order.files() == before


def test_a_correction_writes_only_what_it_changes(order: Order) -> None:
    order.run(1001, 1004, 1005, 1006)
    summary = order.run(1001, 1004, 1005, 1006, 1010)
    # 1002 and 1003 have three keys nearer on their right.
    assert [one.frame for one in summary.files if one.written] == [1007, 1008, 1009, 1010]
    assert order.network.calls["read and decode"] == 4, "1009 back to 1006, where it arrives"


def test_a_key_that_is_not_given_again_is_kept_and_named(order: Order) -> None:
    order.run(1001, 1008)
    before = order.files()
    heard: list[Event] = []
    summary = order.run(1001, on_event=heard.append)
    assert order.files() == before
    told = [one.text for one in heard if isinstance(one, Notice)]
    assert any("The key on 1008, not given here, is kept" in text for text in told), told
    with Shot.open(summary.shot, network=order.network.factory) as shot:
        shot.remove_key(1008)
    heard.clear()
    order.run(1001, on_event=heard.append)
    assert order.files() != before
    assert not any("is kept" in one.text for one in heard if isinstance(one, Notice))


def test_an_object_that_is_not_given_again_on_its_key_is_kept_and_named(order: Order) -> None:
    summary = order.run(1001)
    with Shot.open(summary.shot, network=order.network.factory) as shot:
        hand = np.zeros((54, 70), np.float32)
        hand[10:40, 40:60] = 1
        key = shot.add_key(1001, {"hand": hand}, replace_all=False)
        assert key.kept == ("object1",)
    heard: list[Event] = []
    order.run(1001, on_event=heard.append)
    assert any("keeps its mask of hand" in one.text for one in heard if isinstance(one, Notice))


def test_mattes_are_whole_as_soon_as_they_are_final(order: Order) -> None:
    seen: list[int] = []

    def look(event: Event) -> None:
        if isinstance(event, FrameFinished):
            assert read_matte(order.out.replace("####", str(event.frame))).channels
            seen.append(event.frame)

    with pytest.raises(PropagationCancelled):
        order.run(1001, on_event=look, cancelled=lambda: len(seen) >= 4)
    workers = most_workers()
    at_work = Workers(workers, workers).frames_waiting + 1  # submitted before the fourth failed
    assert seen == list(range(1001, 1001 + len(seen))) and 4 <= len(seen) <= 4 + at_work
    assert len(order.files()) == len(seen)


@pytest.mark.slow
def test_no_number_of_threads_changes_a_byte(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    results = {}
    for workers, threads in ((1, 1), (2, 2), (5, 3)):
        monkeypatch.setattr("stm_plugin.propagation.propagation.most_workers", lambda count=workers: count)
        torch.set_num_threads(threads)
        try:
            shutil.rmtree(order.folder / "out", ignore_errors=True)
            order.run(1003, 1008)
            assert torch.get_num_threads() == threads, "given back after the run"
        finally:
            torch.set_num_threads(before)
        stored = default_shot_folder(order.out).rglob("*.prob")
        results[workers] = order.files(), {path.name: path.read_bytes() for path in stored}
        assert order.network.calls["query"] == len(FRAMES)
    assert len(results[1][0]) == len(FRAMES) and results[1][1]
    assert results[1] == results[2] == results[5]


def test_two_objects_get_a_layer_each(order: Order) -> None:
    left = np.zeros((54, 70), np.float32)
    left[10:40, 5:25] = 1
    summary = propagate(
        order.plate,
        {1001: {"chair": left, "cup": left[:, ::-1].copy()}},
        order.out,
        settings=SETTINGS,
        run=RunOptions(network=order.network.factory),
    )
    channels = read_matte(summary.files[2].path).channels
    assert set(channels) == {"A", "chair.A", "cup.A"}


def test_a_range_and_a_direction_limit_what_is_written(order: Order) -> None:
    summary = order.run(1004, request=Request(1003, 1006))
    assert [one.frame for one in summary.files] == [1003, 1004, 1005, 1006]
    forward = order.run(1004, request=Request(directions="forward"))
    assert [one.frame for one in forward.files] == list(range(1004, 1011))


def test_the_shot_is_kept_beside_the_mattes_or_where_it_is_told(order: Order, tmp_path: Path) -> None:
    assert order.run(1004).shot == tmp_path / "out" / "matte.stmshot"
    with pytest.raises(MatteError, match="belong to another shot"):
        order.run(1004, shot_folder=tmp_path / "elsewhere")
    other = order.run(1004, shot_folder=tmp_path / "elsewhere", overwrite=True)
    assert other.shot == tmp_path / "elsewhere.stmshot"
    assert default_shot_folder(tmp_path / "beauty_v003.%04d.exr").name == "beauty_v003.stmshot"


def test_wrong_input_is_named(order: Order) -> None:
    with pytest.raises(KeyframeError, match="--key FRAME=MASK"):
        order.run()
    running = RunOptions(network=order.network.factory)
    with pytest.raises(KeyframeError, match="frame 1050"):
        propagate(order.plate, {1050: order.mask(1001)}, order.out, settings=SETTINGS, run=running)
    with pytest.raises(MaskError, match=r"frame 1001.*nothing\.png"):
        propagate(
            order.plate, {1001: order.folder / "nothing.png"}, order.out, settings=SETTINGS, run=running
        )
    with pytest.raises(MatteError, match="overwrite the plate"):
        propagate(
            order.plate,
            {1001: order.mask(1001)},
            order.plate,
            settings=SETTINGS,
            run=RunOptions(order.folder / "x", network=order.network.factory),
        )


def test_a_full_disk_stops_in_words_and_the_next_run_goes_on(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Order(tmp_path / "other", order.plate)
    undisturbed.run(1004)
    real, left = os.fsync, [12]

    def fills_up(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises((StoreError, MatteError), match=r"disk is full"):
            order.run(1004)
    for name, data in order.files().items():
        assert data == undisturbed.files()[name]
    order.run(1004)
    assert order.files() == undisturbed.files()


# ---- kill -9 ----


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killing helper forks")
@pytest.mark.parametrize("turns", [1, 2])
def test_killed_at_random_points_it_ends_with_the_same_bytes(order: Order, turns: int) -> None:
    """A helper process forks propagations and kills each at another point."""
    helper = Path(__file__).with_name("kill_rounds.py")
    seed = random.randrange(1 << 30)
    keys = order.mask(1003), order.mask(1008)
    arguments = [order.plate, *keys, str(order.folder / "kills"), KILLS, seed, turns]
    done = subprocess.run(
        [sys.executable, str(helper), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=800,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
            "OMP_NUM_THREADS": "1",
        },
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= KILLS
    assert told["finished"] >= 1
    assert told["died_with_work_done"] >= KILLS // 4, "the kills came too early to prove anything"
    assert -signal.SIGKILL in told["statuses"]


def test_a_file_that_had_to_be_looked_at_twice_is_told_of_once(order: Order) -> None:
    writer = MatteWriter(order.out, Plate.open(order.plate))
    for frame in (1002, 1001, 1002):
        writer.skip(frame)
    assert [one.frame for one in writer.written] == [1001, 1002]
