"""A damaged store is repaired, or the error says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_plugin.errors import SettingsError, StoreError
from stm_plugin.files.journal import Journal
from stm_plugin.files.whole import DamagedFileError
from stm_plugin.images.host_plate import HostPlate
from stm_plugin.planning.quality import Quality
from stm_plugin.planning.values import FrameRecord
from stm_plugin.store.description import PlateDescription, ShotDescription
from stm_plugin.store.store import ShotStore
from stm_plugin.windows import Window

NONSENSE = [
    "[]",
    "7",
    '"text"',
    "null",
    "{",
    '{"frame": []}',
    '{"frame": {}, "address": 1}',
    '{"frame": 1002, "address": 3, "confidence": "high", "agreement": []}',
    '{"frame": 1002, "address": "a", "base": [], "keys": 4, "plate": null}',
    '{"frame": 1002, "address": "a", "base": {}, "keys": {"no frame": "a"}, "plate": "p"}',
    '{"frame": "1002", "signature": 4, "hash": null}',
    "[" * 100_000,
]


@pytest.fixture
def store(tmp_path: Path) -> ShotStore:
    return ShotStore.create(tmp_path / "a", ShotDescription(PlateDescription("files", text="p.####.exr")))


def flip_a_bit(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0, 20, 100, -1])
def test_a_flipped_bit_in_a_mask_is_mended_by_giving_the_mask_again(store: ShotStore, place: int) -> None:
    mask, window = np.random.default_rng(1).random((32, 48), np.float32), Window(0, 0, 48, 32)
    kept = store.put_mask(mask, window)
    flip_a_bit(store.folder / "keys" / f"{kept.hash}.mask", place)
    with pytest.raises(DamagedFileError):
        store.mask(kept.hash)
    assert store.put_mask(mask, window) == kept
    assert np.array_equal(store.mask(kept.hash)[0], mask)


def test_advisory_lines_that_make_no_sense_are_passed_over(store: ShotStore) -> None:
    quality = Quality(1001, "a", 0.5, None)
    record = FrameRecord(1001, "a", {"weights": "w"}, {1001: "m"}, "p")
    store.record_quality(quality)
    store.record(record)
    store.plate_index.append({"frame": 1001, "signature": "s", "hash": "h"})
    for name in ("mattes/quality.jsonl", "mattes/frames.jsonl", "plate.jsonl"):
        with (store.folder / name).open("a") as stream:
            stream.write("\n" + "\n".join(NONSENSE) + "\n")
    assert store.qualities() == {1001: quality}
    assert store.history() == {1001: record}
    assert list(store.plate_index.load()) == [1001]


def test_a_line_of_a_newer_plug_in_with_more_fields_is_read(store: ShotStore) -> None:
    store.quality_journal.append(
        {"frame": 1001, "address": "a", "confidence": 1, "agreement": 0.5, "more": [1]}
    )
    assert store.qualities() == {1001: Quality(1001, "a", 1, 0.5)}


def test_a_pushed_frame_whose_line_makes_no_sense_is_pushed_again(tmp_path: Path) -> None:
    window = Window(0, 0, 4, 3)
    plate = HostPlate(tmp_path, 1001, 1002, window)
    plate.push(1001, np.zeros((3, 4, 3), np.float32), window)
    entry = json.loads((tmp_path / "frames.jsonl").read_text().strip())
    journal = Journal(tmp_path / "frames.jsonl", "frame")
    lines: list[dict[str, Any]] = [{"data_window": [0, 0]}, {"bytes": "many"}, {"hash": None}]
    for nonsense in lines:
        journal.append({**entry, **nonsense})
        assert HostPlate(tmp_path, 1001, 1002, window).missing == (1001, 1002)
    journal.append(entry)
    assert HostPlate(tmp_path, 1001, 1002, window).missing == (1002,)


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`values` with the field at a path replaced, or removed where the value is `...`."""
    copy = json.loads(json.dumps(values))
    place = copy
    *way, last = path.split(".")
    for name in way:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return dict(copy)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "1"),
        ("plate", []),
        ("plate", ...),
        ("plate.text", 7),
        ("plate.kind", "film"),
        ("plate.frames", [1, 2, 3]),
        ("plate.display_window", {"x": 0}),
        ("settings", []),
        ("settings.working_size", "big"),
        ("settings.finish", 3),
        ("objects", {"a": 1}),
        ("objects", [["o1", "hero"]]),
        ("keys", 4),
        ("keys", [{"frame": "1001", "masks": {}}]),
        ("keys", [{"frame": 1001, "masks": []}]),
        ("keys", [{"frame": 1001, "masks": {"o1": "hash"}}]),
        ("next_object", None),
        ("adaptation", {"id": 4}),
        ("adaptation", []),
    ],
)
def test_a_description_of_other_types_is_refused_with_the_field(
    store: ShotStore, path: str, value: object
) -> None:
    values = json.loads((store.folder / "shot.json").read_text())
    (store.folder / "shot.json").write_text(json.dumps(changed(values, path, value)))
    with pytest.raises(StoreError if not path.startswith("settings.") else SettingsError) as told:
        ShotStore.open(store.folder)
    assert path.split(".")[-1] in str(told.value) and "shot.json" in str(told.value)
    assert told.value.hint


@pytest.mark.parametrize("text", ["[]", "7", "null", "", "{", "\x00", "[" * 100_000, "{}", '{"schema": 1}'])
def test_a_description_that_is_no_description_is_refused_in_words(store: ShotStore, text: str) -> None:
    (store.folder / "shot.json").write_text(text)
    with pytest.raises(StoreError, match="cannot be read") as told:
        store.description()
    assert told.value.hint
    assert not [word for word in ("subscript", "indices", "NoneType", "char ") if word in str(told.value)]


def test_a_changed_character_of_the_description_is_never_taken_for_a_setting(store: ShotStore) -> None:
    path = store.folder / "shot.json"
    text = path.read_text()
    for before, after in (('"working_size": 480', '"working_size": 484'), ("p.####.exr", "q.####.exr")):
        assert before in text
        path.write_text(text.replace(before, after))
        with pytest.raises(StoreError, match=r"shot\.json: .*checksum is wrong.*backup"):
            store.description()
    path.write_text("\n".join(line for line in text.splitlines() if "checksum" not in line))
    assert store.description() == ShotDescription(PlateDescription("files", text="p.####.exr"))
