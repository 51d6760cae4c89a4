"""A shot: exact dirty ranges, keys as law, the same bytes for every way to run it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import Tensor

from model.inference.fast_network import Query
from model.network.config import network_config
from model.network.memory import MemoryBank
from stm_plugin.errors import (
    DeviceError,
    KeyframeError,
    MaskError,
    MatteError,
    PlateError,
    PropagationCancelled,
    SettingsError,
    StoreBusyError,
    StoreFullError,
)
from stm_plugin.images.mask import MaskReading
from stm_plugin.planning.values import Request, State
from stm_plugin.propagation.events import (
    DamageFound,
    Event,
    FrameComputed,
    FrameFinished,
    Notice,
    PlanMade,
    PlateChanged,
    Progress,
)
from stm_plugin.propagation.memory_forecast import predict_memory
from stm_plugin.server.shot_service import EngineShot
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.store.store import ProbabilityArray
from stm_plugin.windows import FloatArray, Window
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

SETTINGS = Settings(working_size=WORKING_SIZE, memory_rule="every:3", colour_space="lin_rec709_scene")
FRAMES = range(1001, 1013)
MakePlate = Callable[..., str]


def test_a_shot_keeps_its_precision_whatever_machine_opens_it_or_asks_for_auto(
    make_plate: MakePlate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = "stm_plugin.propagation.memory_forecast.has_fast_bfloat16"
    monkeypatch.setattr(fast, lambda: True)
    plate = PlateDescription("files", make_plate(frames=FRAMES))
    Shot.create(tmp_path / "shot", plate, replace(SETTINGS, device="cpu")).close()
    monkeypatch.setattr(fast, lambda: False)
    with Shot.open(tmp_path / "shot") as shot:
        assert shot.settings.precision == "bfloat16"
        served = EngineShot(shot)
        assert not served.differs(None, {"precision": "auto"})
        shot.set_settings(replace(shot.settings, precision="float32"))
        served.set_settings({"precision": "auto"})
        assert served.settings()["precision"] == "float32"


def mask(columns: slice, size: tuple[int, int] = (48, 64)) -> FloatArray:
    values = np.zeros(size, np.float32)
    values[12:36, columns] = 1.0
    values[12:36, columns.start] = 0.25
    return values


LEFT, MIDDLE, RIGHT = mask(slice(4, 24)), mask(slice(20, 44)), mask(slice(40, 60))


class Desk:
    """One shot with a network that counts calls, and the events of the last run."""

    def __init__(self, folder: Path, plate: str, settings: Settings = SETTINGS) -> None:
        self.network = CountingNetwork()
        self.folder, self.plate = folder, plate
        self.shot = Shot.create(
            folder, PlateDescription("files", plate), settings, network=self.network.factory
        )
        self.events: list[Event] = []

    def reopen(self) -> None:
        """Open the shot again, as a new process does."""
        self.shot.close()
        self.shot = Shot.open(self.folder, network=self.network.factory)

    def run(self, request: Request | None = None) -> Counter[str]:
        """Propagate; returns the network's calls."""
        self.network.calls.clear()
        self.events.clear()
        self.shot.propagate(request, on_event=self.events.append)
        return Counter(self.network.calls)

    def computed(self) -> list[int]:
        return sorted(
            event.frame for event in self.events if isinstance(event, FrameComputed) and not event.reused
        )

    def results(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.shot.folder.glob("mattes/*/*.prob")}

    def mattes(self) -> dict[int, FloatArray]:
        return {frame: self.shot.matte(frame).mattes["chair"] for frame in FRAMES}


@pytest.fixture
def desk(tmp_path: Path, make_plate: MakePlate) -> Iterator[Desk]:
    one = Desk(tmp_path / "chair", make_plate(frames=FRAMES))
    yield one
    one.shot.close()


# ---- the dirty rule, by counting ----


def test_one_key_costs_each_other_frame_once(desk: Desk) -> None:
    desk.shot.add_key(1004, {"chair": LEFT})
    calls = desk.run()
    assert desk.computed() == [frame for frame in FRAMES if frame != 1004]
    assert calls["query"] == calls["read and decode"] == 11
    # The key once; then every frame that the next one remembers, so not the last of either direction.
    assert calls["memory"] == 1 + 2 + 7


def test_a_finished_shot_costs_nothing(desk: Desk) -> None:
    desk.shot.add_key(1004, {"chair": LEFT})
    desk.run()
    assert not desk.run()
    assert desk.shot.status().network_frames == 0


def test_a_removed_key_is_restored_from_the_masks_of_the_store_and_costs_nothing(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.shot.add_key(1012, {"chair": MIDDLE})
    desk.run()
    before = desk.mattes()
    (kept,) = next(key for key in desk.shot.store.description().keys if key.frame == 1012).masks.values()
    desk.shot.remove_key(1012)
    desk.shot.restore_key(1012, {"chair": kept.hash})
    assert [key.frame for key in desk.shot.keys] == [1001, 1012]
    assert not desk.run()
    for frame, matte in desk.mattes().items():
        np.testing.assert_array_equal(matte, before[frame])
    with pytest.raises(MaskError, match="gone"):
        desk.shot.restore_key(1012, {"chair": "0" * 64})
    with pytest.raises(KeyframeError):
        desk.shot.restore_key(5, {"chair": kept.hash})


def test_a_changed_key_of_many_costs_its_own_two_passes(desk: Desk) -> None:
    for frame in (1001, 1004, 1008, 1012):
        desk.shot.add_key(frame, {"chair": LEFT})
    desk.run()
    desk.shot.add_key(1004, {"chair": MIDDLE})
    said = [str(one) for one in desk.shot.status().dirty]
    assert said == [
        "frames 1002-1007 will be recomputed: the mask on 1004 changed",
        "frames 1009-1011 will be recomputed: the mask on 1004 changed",
    ]
    calls = desk.run()
    assert sorted(set(desk.computed())) == [1001, 1002, 1003, *range(1005, 1013)]
    assert calls["read and decode"] == 3 + 8
    assert calls["query"] == 0, "query features of an unchanged plate are reused"
    assert calls["memory"] <= 1 + 2 + 7


def test_more_keys_cost_no_more_than_six_runs_a_frame(desk: Desk) -> None:
    for frame in FRAMES:
        desk.shot.add_key(frame, {"chair": LEFT})
    for frame in (1003, 1008):
        desk.shot.remove_key(frame)
    desk.run()
    counts = Counter(desk.computed())
    assert max(counts.values()) <= 6


def test_where_only_the_fusion_changes_no_frame_goes_through_the_network(desk: Desk) -> None:
    for frame in (1001, 1006, 1012):
        desk.shot.add_key(frame, {"chair": LEFT if frame < 1006 else MIDDLE})
    desk.run()
    before = desk.mattes()
    desk.shot.remove_key(1006)
    assert all("without the network" in str(one) for one in desk.shot.status().dirty)
    assert not desk.run()["read and decode"]
    after = desk.mattes()
    assert not np.array_equal(before[1007], after[1007])
    assert not desk.shot.status().dirty


def test_features_are_reused_from_disk_by_another_process(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    desk.reopen()
    desk.shot.add_key(1012, {"chair": RIGHT})
    calls = desk.run()
    assert calls["query"] == 1, "the first key, which no pass came by before"
    assert calls["read and decode"] == 11


def test_taking_a_key_back_costs_nothing(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    before = desk.mattes()
    desk.shot.add_key(1006, {"chair": RIGHT})
    desk.run()
    desk.shot.remove_key(1006)
    assert not desk.run()
    after = desk.mattes()
    assert all(np.array_equal(before[frame], after[frame]) for frame in FRAMES)


def test_settings_make_stale_what_depends_on_them(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    desk.shot.set_settings(replace(SETTINGS, channel="matte.A", ram_budget=0))
    assert desk.shot.status().network_frames == 0
    desk.shot.set_settings(replace(SETTINGS, memory_rule="first"))
    said = str(desk.shot.status().dirty[0])
    assert "the setting memory_rule changed from every:3 to first" in said
    calls = desk.run()
    assert calls["query"] == 0 and calls["read and decode"] == 11


@pytest.mark.parametrize(
    "otherwise", [{"previous_frame_cap": 1.0}, {"key_weight": 0.0}, {"shrink_guard": 1.0}]
)
def test_a_network_that_reads_otherwise_makes_mattes_stale_but_not_features(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, otherwise: dict[str, float]
) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    with monkeypatch.context() as before:
        config = replace(network_config("stm-lite"), **otherwise)  # type: ignore[arg-type]
        before.setattr("stm_plugin.propagation.propagation.network_config", lambda name: config)
        desk.run()
    assert "the share of the previous frame changed" in str(desk.shot.status().dirty[0])
    calls = desk.run()
    assert calls["query"] == 0 and calls["read and decode"] == 11


def test_a_range_computes_no_more_than_it_needs(desk: Desk) -> None:
    desk.shot.add_key(1004, {"chair": LEFT})
    assert desk.run(Request(1003, 1006))["read and decode"] == 3
    assert desk.computed() == [1003, 1005, 1006]
    assert desk.run(Request(directions="forward"))["read and decode"] == 6
    states = desk.shot.status(Request(directions="forward")).states
    assert states[1001] is State.UNREACHED


# ---- keys are law ----


def test_on_a_key_the_matte_is_the_mask(desk: Desk, rng: np.random.Generator) -> None:
    given = rng.random((48, 64), dtype=np.float32)
    desk.shot.add_key(1005, {"chair": given})
    desk.run()
    finished = desk.shot.matte(1005)
    assert np.array_equal(finished.mattes["chair"], given)
    assert finished.is_key and finished.confidence == 1.0
    assert not desk.shot.matte(1006).is_key


def test_an_object_that_comes_and_goes(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.shot.add_key(1006, {"cup": RIGHT})
    desk.shot.add_key(1010, {"cup": np.zeros_like(RIGHT)}, allow_empty=True)
    desk.run()
    assert desk.shot.objects == ("chair", "cup")
    assert not desk.shot.matte(1012).mattes["cup"].any(), "after the empty mask it is gone"
    at_key = desk.shot.matte(1006).mattes
    assert np.array_equal(at_key["cup"], RIGHT)
    assert (at_key["chair"] + at_key["cup"]).max() <= 1.01
    assert desk.shot.keys[2].empty == ("cup",)


def test_an_object_may_be_renamed_for_nothing_and_removed(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT, "cup": RIGHT})
    desk.run()
    desk.shot.rename_object("cup", "glass")
    assert not desk.run()
    assert set(desk.shot.matte(1003).mattes) == {"chair", "glass"}
    with pytest.raises(SettingsError, match="already"):
        desk.shot.rename_object("glass", "chair")
    desk.shot.remove_object("glass")
    assert desk.run()["read and decode"] == 11
    assert set(desk.shot.matte(1003).mattes) == {"chair"}


def test_a_key_can_be_given_object_by_object(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.shot.add_key(1001, {"cup": RIGHT}, replace_all=False)
    assert [key.objects for key in desk.shot.keys] == [("chair", "cup")]
    desk.shot.remove_key(1001, ["cup"])
    assert [key.objects for key in desk.shot.keys] == [("chair",)]


def test_a_mask_file_that_names_no_object_is_of_the_one_object_of_the_shot(
    desk: Desk, tmp_path: Path
) -> None:
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), np.where(MIDDLE > 0.5, 255, 0).astype(np.uint8))
    desk.shot.add_key(1001, {"cup": LEFT})
    assert desk.shot.add_key(1005, path).objects == ("cup",)
    assert desk.shot.objects == ("cup",)
    desk.shot.add_key(1001, {"plate": RIGHT}, replace_all=False)
    with pytest.raises(
        MaskError, match=r"does not say which object it is\. The shot has cup, plate"
    ) as raised:
        desk.shot.add_key(1009, path)
    assert (raised.value.frame, raised.value.path) == (1009, str(path))
    assert "--object NAME" in str(raised.value.hint)
    assert desk.shot.add_key(1009, path, reading=MaskReading(("spoon",))).objects == ("spoon",)


def test_a_mask_with_a_window_of_its_own_lands_on_the_canvas(desk: Desk) -> None:
    part = np.full((10, 8), 0.5, np.float32)
    desk.shot.add_key(1001, {"chair": part}, window=Window(60, -2, 8, 10))
    matte = desk.shot.matte(1001).mattes["chair"]
    assert matte.shape == (48, 64)
    assert matte.sum() == 4 * 8 * 0.5 and matte[:8, 60:].all()


def test_the_matte_of_a_data_window_of_its_own(tmp_path: Path, make_plate: MakePlate) -> None:
    desk = Desk(tmp_path / "over", make_plate(frames=FRAMES, overscan=5, name="over"))
    assert desk.shot.plate.canvas == Window(-5, -5, 74, 58)
    desk.shot.add_key(1001, {"chair": mask(slice(10, 40), (58, 74))})
    desk.run(Request(1001, 1002))
    assert desk.shot.matte(1002).mattes["chair"].shape == (58, 74)
    desk.shot.close()


# ---- the same bytes, however it was run ----


def test_a_cancelled_run_goes_on_to_the_same_bytes(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path / "undisturbed", desk.plate)
    for one in (desk, other):
        one.shot.add_key(1003, {"chair": LEFT})
        one.shot.add_key(1010, {"chair": RIGHT})
    other.run()
    done = 0
    for limit in (1, 3, 4, 2, 5):
        asked = Counter[str]()

        def cancelled(asked: Counter[str] = asked, limit: int = limit) -> bool:
            asked["times"] += 1
            return desk.network.calls["read and decode"] >= limit

        desk.network.calls.clear()
        with pytest.raises(PropagationCancelled, match="running it again continues"):
            desk.shot.propagate(cancelled=cancelled)
        assert desk.network.calls["read and decode"] == limit, "stops before the next frame"
        done += limit
        desk.reopen()
    rest = desk.run()
    assert rest["read and decode"] + done == len(other.results())
    assert desk.results() == other.results()
    other.shot.close()


def test_caches_do_not_change_a_bit(desk: Desk, tmp_path: Path) -> None:
    bare = Desk(tmp_path / "bare", desk.plate, replace(SETTINGS, ram_budget=0, disk_budget=0))
    for one in (desk, bare):
        one.shot.add_key(1004, {"chair": LEFT})
        one.run(Request(1001, 1008))
        one.shot.add_key(1012, {"chair": RIGHT})
        one.reopen()
        one.run()
    assert desk.results() == bare.results()
    assert not list((bare.shot.folder / "memory").glob("*.cache"))
    bare.shot.close()


def test_the_memory_folder_may_be_deleted_for_time_alone(desk: Desk) -> None:
    desk.shot.add_key(1004, {"chair": LEFT})
    desk.run(Request(1001, 1007))
    before = desk.results()
    desk.reopen()
    desk.shot.store.clear_memory()
    assert desk.run()["read and decode"] == 5
    assert before.items() <= desk.results().items()


def test_several_keys_computed_bit_by_bit_end_with_the_same_bytes(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path / "undisturbed", desk.plate)
    for one in (desk, other):
        for frame, given in ((1002, LEFT), (1007, MIDDLE), (1011, RIGHT)):
            one.shot.add_key(frame, {"chair": given})
    other.run()
    for last in (1004, 1009, 1012):
        desk.run(Request(1001, last))
        desk.reopen()
        desk.shot.store.clear_memory()
    assert desk.results() == other.results()
    bit_by_bit, at_once = desk.mattes(), other.mattes()
    assert all(np.array_equal(bit_by_bit[frame], at_once[frame]) for frame in FRAMES)
    other.shot.close()


def test_keys_of_several_objects_are_fused_object_by_object(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT, "cup": RIGHT})
    desk.shot.add_key(1006, {"chair": MIDDLE})
    desk.shot.add_key(1012, {"cup": RIGHT})
    desk.run()
    sources = desk.shot.plan().by_frame[1008].sources
    keys = {name: sorted(source.keys) for name, source in sources.items()}
    assert keys == {"o1": [1001, 1006], "o2": [1001, 1012]}
    matte = desk.shot.matte(1008).mattes
    assert (matte["chair"] + matte["cup"]).max() <= 1.0 + 1e-5
    desk.shot.remove_key(1006)
    assert not desk.run()["read and decode"]


def test_a_shot_with_a_setting_that_is_gone_still_opens(desk: Desk) -> None:
    path = desk.folder.with_suffix(".stmshot") / "shot.json"
    values = json.loads(path.read_text("utf-8"))
    del values["checksum"]  # as in the versions that had this setting
    values["settings"]["keys_in_memory"] = "span"
    path.write_text(json.dumps(values), "utf-8")
    desk.reopen()
    desk.shot.add_key(1001, {"chair": LEFT})
    assert desk.run()["read and decode"] == 11


def test_the_store_ends_the_same_whichever_of_two_runs_did_the_work(desk: Desk) -> None:
    desk.shot.add_key(1004, {"chair": LEFT})
    shots = [Shot.open(desk.folder, network=desk.network.factory) for _ in range(2)]
    workers = [threading.Thread(target=shot.propagate, kwargs={"wait": 60.0}) for shot in shots]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    for shot in shots:
        shot.close()
    assert desk.network.calls["read and decode"] == 11, "the second found everything done"
    assert not desk.shot.status().dirty


def test_long_passes_keep_a_bounded_memory_and_resume_to_the_same_bytes(
    tmp_path: Path, make_plate: MakePlate
) -> None:
    plate = make_plate(frames=range(1, 26), name="long")
    settings = replace(SETTINGS, memory_rule="every:2", memory_cap=3)
    whole, parts = Desk(tmp_path / "whole", plate, settings), Desk(tmp_path / "parts", plate, settings)
    for one in (whole, parts):
        one.shot.add_key(1, {"chair": LEFT})
    whole.run()
    for last in (5, 6, 14, 15, 25):
        parts.run(Request(1, last))
        parts.reopen()
    assert whole.results() == parts.results()
    whole.shot.close()
    parts.shot.close()


# ---- what goes wrong on disk ----


def test_a_truncated_result_is_computed_again(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    before = desk.results()
    path = sorted(desk.shot.folder.glob("mattes/*/*.prob"))[3]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(MatteError, match="not done"):
        for frame in FRAMES:
            desk.shot.matte(frame)
    assert desk.run()["read and decode"] == 1
    assert desk.results() == before


def test_an_altered_result_is_found_when_it_is_read_and_computed_again(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run(Request(1001, 1006))
    before = desk.results()
    for path in desk.shot.folder.glob("mattes/*/*.prob"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 255]))
    desk.reopen()
    desk.shot.store.clear_memory()
    with pytest.raises(MatteError, match=r"frame 1003.*damaged.*computed again"):
        desk.shot.matte(1003)
    desk.run()
    assert any(isinstance(event, DamageFound) for event in desk.events)
    after = desk.results()
    assert all(after[name] == data for name, data in before.items() if name in after)


def test_a_plate_frame_that_changes_makes_stale_what_saw_it(desk: Desk, make_plate: MakePlate) -> None:
    desk.shot.add_key(1004, {"chair": LEFT})
    desk.run()
    path = Path(desk.plate.replace("####", "1009"))
    path.write_bytes(Path(desk.plate.replace("####", "1002")).read_bytes())
    desk.reopen()
    with pytest.raises(MatteError, match="not done"):
        desk.shot.matte(1010)
    desk.run()
    assert desk.computed() == [1009, 1010, 1011, 1012]


def test_a_touched_plate_with_the_same_pixels_stays_done(desk: Desk) -> None:
    desk.shot.add_key(1004, {"chair": LEFT})
    desk.run()
    for frame in FRAMES:
        path = Path(desk.plate.replace("####", str(frame)))
        path.write_bytes(path.read_bytes())
    desk.reopen()
    calls = desk.run()
    assert calls["read and decode"] == 0


def test_a_plate_that_changes_under_way_is_noticed(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    desk.shot.add_key(1001, {"chair": MIDDLE})
    swapped = Path(desk.plate.replace("####", "1003"))
    events: list[Event] = []

    def swap(event: Event) -> None:
        events.append(event)
        if isinstance(event, FrameComputed) and event.frame == 1006 and len(events) < 40:
            swapped.write_bytes(Path(desk.plate.replace("####", "1012")).read_bytes())

    desk.shot.propagate(on_event=swap)
    assert any(isinstance(event, PlateChanged) and 1003 in event.frames for event in events)
    other = Desk(desk.folder.with_name("afterwards"), desk.plate)
    other.shot.add_key(1001, {"chair": MIDDLE})
    other.run()
    assert other.results().items() <= desk.results().items()
    assert not desk.shot.status().dirty
    other.shot.close()


def test_a_missing_plate_frame_is_named_before_anything_is_computed(desk: Desk) -> None:
    Path(desk.plate.replace("####", "1007")).unlink()
    desk.reopen()
    desk.shot.add_key(1001, {"chair": LEFT})
    with pytest.raises(PlateError, match=r"frame 1007, .*plate\.1007\.exr: 1 frame of the plate is missing"):
        desk.run()
    assert not desk.network.calls
    assert desk.run(Request(1001, 1006))["read and decode"] == 5


def test_wrong_input_is_named(desk: Desk) -> None:
    with pytest.raises(KeyframeError, match="no key"):
        desk.run()
    with pytest.raises(KeyframeError, match=r"frame 999: The plate has no such frame.*1001 to 1012"):
        desk.shot.add_key(999, {"chair": LEFT})
    with pytest.raises(KeyframeError, match=r"frame 1002: There is no key"):
        desk.shot.remove_key(1002)
    with pytest.raises(MaskError, match=r"frame 1001: The mask of chair is 3x2 and does not fill"):
        desk.shot.add_key(1001, {"chair": np.ones((2, 3), np.float32)})
    with pytest.raises(MaskError, match="empty"):
        desk.shot.add_key(1001, {"chair": np.zeros_like(LEFT)})
    with pytest.raises(MaskError, match="at most 16"):
        desk.shot.add_key(1001, {f"object{number}": LEFT for number in range(17)})
    desk.shot.add_key(1001, {"chair": LEFT})
    with pytest.raises(MatteError, match=r"frame 1004: .*not done \(not computed yet\)"):
        desk.shot.matte(1004)


class FailingNetwork(CountingNetwork):
    """Runs out of memory on the fourth frame."""

    def begin_segment(self, query: Query, bank: MemoryBank) -> Callable[[], Tensor]:
        if self.calls["read and decode"] == 3:
            raise MemoryError
        return super().begin_segment(query, bank)


def test_a_device_without_memory_keeps_what_is_done_and_names_a_way_on(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    failing = FailingNetwork()
    said = pytest.raises(DeviceError, match=r"frame 1005: cpu has too little memory.*lower")
    with Shot.open(desk.folder, network=failing.factory) as shot, said:
        shot.propagate()
    assert desk.run()["read and decode"] == 8


def test_too_little_memory_lowers_the_cap_with_a_word_and_keeps_it_lowered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    fit = desk.shot.forecast(desk.shot.plan())
    needed = predict_memory(replace(fit.run, workers=1))  # workers are given up before the cap
    short = int((needed.fixed + needed.working + needed.bank * 0.8) / 0.85)
    monkeypatch.setattr("stm_plugin.propagation.propagation.free_memory", lambda device: short)
    summary = desk.shot.propagate(on_event=desk.events.append)
    assert "The memory cap was lowered from 20 to" in summary.notices[0]
    assert any(isinstance(event, Notice) for event in desk.events)
    monkeypatch.undo()
    desk.reopen()
    assert desk.shot.settings.memory_cap < 20
    assert desk.shot.status().network_frames == 0

    monkeypatch.setattr("stm_plugin.propagation.propagation.free_memory", lambda device: 1 << 20)
    with pytest.raises(DeviceError, match="needs at least"):
        desk.run()


# ---- several at once ----


def test_while_one_works_another_may_look_but_not_change(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    inside, go_on = threading.Event(), threading.Event()

    def pause(event: Event) -> None:
        if isinstance(event, FrameFinished) and event.frame == 1003:
            inside.set()
            go_on.wait(60)

    worker = threading.Thread(target=lambda: desk.shot.propagate(on_event=pause))
    worker.start()
    assert inside.wait(60)
    try:
        other = Shot.open(desk.folder, network=desk.network.factory)
        status = other.status()
        assert status.states[1003] is State.DONE and status.states[1009] is State.MISSING
        assert status.holder is not None
        assert other.matte(1002).mattes["chair"].shape == (48, 64)
        with pytest.raises(StoreBusyError, match="held by process"):
            other.add_key(1012, {"chair": RIGHT})
        other.close()
    finally:
        go_on.set()
        worker.join(60)
    assert desk.shot.status().count(State.DONE) == 11


def test_progress_counts_to_the_end_and_names_the_time_left(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    progress = [event for event in desk.events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, progress[0].total + 1))
    assert progress[-1].seconds_left == 0
    assert sum(event.seconds_left is not None for event in progress) >= len(progress) - 3
    assert sum(isinstance(event, PlanMade) for event in desk.events) == 1


def test_cleaning_frees_what_no_key_needs(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    desk.shot.add_key(1001, {"chair": MIDDLE})
    desk.run()
    needed = len(desk.results()) // 2
    freed = desk.shot.clean()
    assert freed.memory > 0 and freed.mattes > 0
    assert len(desk.results()) == needed
    assert desk.run()["read and decode"] == 0


def test_a_key_outside_a_shortened_range_sleeps_until_the_range_comes_back(
    tmp_path: Path, make_plate: MakePlate
) -> None:
    desk = Desk(tmp_path / "range", make_plate(frames=FRAMES))
    for frame, values in ((1003, LEFT), (1011, RIGHT)):
        desk.shot.add_key(frame, {"one": values})
    desk.run()
    whole = PlateDescription("files", desk.plate)
    desk.shot.set_plate(replace(whole, frame_range=(1001, 1008)))
    desk.reopen()
    assert max(desk.shot.status().states) == 1008
    desk.run()
    assert np.array_equal(desk.shot.matte(1003).mattes["one"], LEFT)
    desk.shot.set_plate(whole)
    desk.reopen()
    assert np.array_equal(desk.shot.matte(1011).mattes["one"], RIGHT)
    assert not desk.shot.plan().compute_steps


# ---- advice ----


def test_status_advises_the_frame_where_the_passes_agree_least(desk: Desk) -> None:
    assert desk.shot.status().next_key is None
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.shot.add_key(1012, {"chair": RIGHT})
    assert desk.shot.status().next_key is None, "nothing is computed yet"
    desk.run()
    advice = desk.shot.status().next_key
    assert advice is not None and 1001 < advice.frame < 1012
    assert advice.text.startswith(f"{advice.frame}, where ")
    agreements = {frame: one.agreement for frame, one in desk.shot.store.qualities().items()}
    assert len(agreements) == 12 and agreements[1001] is agreements[1012] is None

    desk.shot.add_key(advice.frame, {"chair": MIDDLE})
    assert desk.shot.status().next_key is None, "what was said of stale frames says nothing any more"
    desk.run()
    after = desk.shot.status().next_key
    assert after is None or after.frame != advice.frame


def test_what_was_said_of_a_frame_is_not_worked_out_again(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    before = (desk.shot.folder / "mattes" / "quality.jsonl").read_bytes()
    desk.run()
    desk.reopen()
    desk.run()
    assert (desk.shot.folder / "mattes" / "quality.jsonl").read_bytes() == before


def test_a_changed_key_gives_its_new_mask_at_once(desk: Desk) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    desk.shot.add_key(1001, {"chair": RIGHT})
    assert desk.shot.status().states[1001] is State.STALE, "its file is still that of the old mask"
    found = desk.shot.matte(1001)
    assert found.is_key and np.array_equal(found.mattes["chair"], RIGHT)
    with pytest.raises(MatteError, match="the mask on 1001 changed"):
        desk.shot.matte(1002)


def test_what_cannot_be_noted_of_the_plate_costs_a_reading_and_nothing_else(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while another thread reads a frame ahead."""
    desk.shot.add_key(1001, {"chair": LEFT})

    def full(entry: object) -> None:
        raise StoreFullError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(desk.shot.store.plate_index, "append", full)
        desk.run()
    assert len(desk.computed()) == 11
    desk.reopen()
    assert not desk.run()["read and decode"]


def test_an_error_in_mid_run_names_the_frame_that_it_stopped_at(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.shot.add_key(1001, {"chair": LEFT})
    real = desk.shot.store.put_probabilities

    def fills_up(address: str, probabilities: ProbabilityArray) -> None:
        if len(desk.results()) == 4:
            raise StoreFullError("The disk is full.", path=desk.folder / address)
        real(address, probabilities)

    monkeypatch.setattr(desk.shot.store, "put_probabilities", fills_up)
    with pytest.raises(StoreFullError, match=r"frame 1006, .*disk is full"):
        desk.run()
    assert desk.shot.status().count(State.DONE) == 4


def test_damage_that_is_found_while_looking_is_mended_by_the_next_propagation(desk: Desk) -> None:
    """The damaged file has the same length, so only the checksum shows it."""
    desk.shot.add_key(1001, {"chair": LEFT})
    desk.run()
    before = desk.mattes()
    path = next(iter(desk.shot.folder.glob("mattes/*/*.prob")))
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(MatteError, match=r"frame \d+, .*\.prob: A stored result is damaged"):
        desk.mattes()
    assert desk.shot.status().network_frames == 1
    assert desk.run()["read and decode"] == 1
    after = desk.mattes()
    assert all(np.array_equal(after[frame], before[frame]) for frame in FRAMES)
