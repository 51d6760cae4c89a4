"""The shot store loses nothing, names the process that holds it, and refuses unknown contents."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from stm_plugin.errors import StoreBusyError, StoreError
from stm_plugin.files.journal import Journal
from stm_plugin.files.whole import (
    DamagedFileError,
    looks_whole,
    read_sealed,
    write_atomically,
    write_sealed,
)
from stm_plugin.planning.values import FrameRecord, KeyMask
from stm_plugin.settings import Settings
from stm_plugin.store.description import (
    SCHEMA,
    AdaptationRecord,
    PlateDescription,
    ShotDescription,
    ShotObject,
    StoredKey,
)
from stm_plugin.store.store import ShotStore, dequantise, list_shots, quantise
from stm_plugin.windows import Window

DESCRIPTION = ShotDescription(
    PlateDescription("files", "plate.####.exr", frame_range=(1001, 1010)),
    Settings(working_size=96),
    objects=(ShotObject("o1", "chair"),),
    keys=(StoredKey(1001, {"o1": KeyMask("abc")}, ("1001-abc.png",)),),
    next_object=2,
)
WINDOW = Window(-2, -3, 8, 6)


@pytest.fixture
def store(tmp_path: Path) -> ShotStore:
    return ShotStore.create(tmp_path / "chair", DESCRIPTION)


def run_python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Run Python in another process with the engine's modules."""
    root = Path(__file__).resolve().parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_a_shot_adapted_on_frames_of_different_lengths_is_read_again(store: ShotStore) -> None:
    frames = {1: "a", 8: "b", 14: "c"}  # as numbers in this order, as text 1, 14, 8
    adaptation = AdaptationRecord("id", "base", "stm-lite", "licence", frames, 30, frames)
    description = replace(DESCRIPTION, adaptation=adaptation)
    store.save(description)
    assert store.description() == description


def test_a_shot_is_read_back_as_it_was_saved(store: ShotStore) -> None:
    assert ShotStore.open(store.folder).description() == DESCRIPTION
    pushed = PlateDescription("pushed", frames=(1, 9), display_window=WINDOW, canvas=WINDOW, fps=24.0)
    store.save(replace(DESCRIPTION, plate=pushed))
    assert store.description().plate == pushed


def test_shots_are_found_by_their_folders(store: ShotStore, tmp_path: Path) -> None:
    ShotStore.create(tmp_path / "arm", DESCRIPTION)
    assert [path.name for path in list_shots(tmp_path)] == ["arm.stmshot", "chair.stmshot"]


def test_a_shot_is_not_made_over_another(store: ShotStore) -> None:
    with pytest.raises(StoreError, match="a shot here already"):
        ShotStore.create(store.folder, DESCRIPTION)


def test_a_newer_schema_is_refused_politely(store: ShotStore) -> None:
    path = store.folder / "shot.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(StoreError, match=r"newer STM made this shot.*Update the plug-in"):
        ShotStore.open(store.folder)


def test_a_shot_of_an_older_schema_is_read_and_is_of_the_present_one_once_it_is_changed(
    store: ShotStore,
) -> None:
    path = store.folder / "shot.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    path.write_text(json.dumps({**values, "schema": 1}))
    store.save(store.description())
    assert json.loads(path.read_text())["schema"] == SCHEMA > 1


FIELDS = {
    2: "adaptation chosen configured keys next_object objects plate schema settings; "
    "adapt channel colour_space confidence cryptomatte device disk_budget finish foreground memory_cap "
    "memory_rule ocio_config plate_budget precision ram_budget region weights working_size; "
    "edge_weights edges epsilon radius sharpness sure width; "
    "canvas display_window fps frame_range frames kind layer movie_first_frame pixel_aspect text view"
}
"""What shot.json says, by schema."""


def test_a_field_that_is_added_to_the_description_raises_the_schema() -> None:
    """An older plug-in cannot read it, and must be able to say so."""
    values = DESCRIPTION.to_json()
    parts = (values, values["settings"], values["settings"]["finish"], values["plate"])
    assert "; ".join(" ".join(sorted(one)) for one in parts) == FIELDS[SCHEMA]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}'])
def test_a_broken_description_is_named(store: ShotStore, text: str) -> None:
    (store.folder / "shot.json").write_text(text)
    with pytest.raises(StoreError, match=r"shot\.json: The shot's description cannot be read"):
        ShotStore.open(store.folder)


def test_a_missing_shot_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no shot here"):
        ShotStore.open(tmp_path / "nothing")


def test_masks_are_kept_to_the_last_bit(store: ShotStore, rng: np.random.Generator) -> None:
    mask = rng.random((6, 8), dtype=np.float32)
    kept = store.put_mask(mask, WINDOW)
    read, window = store.mask(kept.hash)
    assert np.array_equal(read, mask)
    assert window == WINDOW
    assert not kept.empty
    assert store.put_mask(np.zeros_like(mask), WINDOW).empty
    assert store.put_mask(mask, replace(WINDOW, x=0)).hash != kept.hash


def test_the_artists_file_is_kept_byte_for_byte(store: ShotStore, tmp_path: Path) -> None:
    original = tmp_path / "Roto.PNG"
    original.write_bytes(b"whatever the artist gave")
    name = store.keep_original(1001, original)
    assert name.startswith("1001-")
    assert name.endswith(".png")
    assert (store.folder / "keys" / name).read_bytes() == original.read_bytes()


def test_stored_probabilities_are_what_a_pass_goes_on_with(rng: np.random.Generator) -> None:
    probabilities = np.concatenate([[[0.0, 1.0, 0.5]], rng.random((40, 3))]).astype(np.float32)[None]
    stored = quantise(probabilities)
    back = dequantise(stored)
    assert np.array_equal(quantise(back), stored)
    assert back.max() == 1.0 and back.min() == 0.0
    assert np.abs(back - probabilities).max() < 1e-5


def test_a_truncated_or_altered_result_is_noticed(store: ShotStore, rng: np.random.Generator) -> None:
    address = "ab" * 32
    values = quantise(rng.random((2, 5, 7), dtype=np.float32))
    assert not store.has(address)
    assert store.probabilities(address) is None
    store.put_probabilities(address, values)
    read = store.probabilities(address)
    assert read is not None and np.array_equal(read, values)

    path = next((store.folder / "mattes").glob("*/*.prob"))
    whole = path.read_bytes()
    for length in (0, 10, 48, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert not store.has(address)
        with pytest.raises(DamagedFileError):
            store.probabilities(address)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedFileError):
        store.probabilities(address)


def test_history_survives_a_torn_line(store: ShotStore) -> None:
    first = FrameRecord(1002, "a", {"weights": "w"}, {1001: "k"}, "p")
    store.record(first)
    with (store.folder / "mattes" / "frames.jsonl").open("ab") as stream:
        stream.write(b'{"frame": 1003, "addr')
    second = replace(first, frame=1004)
    store.record(second)
    store.record(replace(first, address="b"))
    assert store.history() == {1002: replace(first, address="b"), 1004: second}


def test_a_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl", "frame")
    for number in range(200):
        journal.append({"frame": number % 2, "number": number})
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    assert journal.load() == {0: {"frame": 0, "number": 198}, 1: {"frame": 1, "number": 199}}
    assert path.read_bytes() == whole, "a reader would lose what another process adds meanwhile"
    journal.append({"frame": 1, "number": 200})
    assert path.stat().st_size < 150
    assert journal.load() == {0: {"frame": 0, "number": 198}, 1: {"frame": 1, "number": 200}}


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(
    store: ShotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"disk is full.*Free some space.*finished frames are kept"):
        store.save(replace(DESCRIPTION, keys=()))
    assert store.description() == DESCRIPTION
    assert not list(store.folder.rglob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_journal_on_a_full_disk_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="disk is full"):
        Journal(tmp_path / "log.jsonl", "frame").append({"frame": 1})


@pytest.mark.skipif(os.name == "nt", reason="file permissions work otherwise on Windows")
def test_a_read_only_folder_can_be_read_and_refuses_changes_in_words() -> None:
    code = """
        import os, sys
        from stm_plugin.errors import StoreError
        from stm_plugin.store.store import ShotStore
        if os.getuid() == 0:
            os.setuid(65534)  # root is above permissions
        store = ShotStore.open(sys.argv[1])
        print(store.description().objects[0].name)
        try:
            with store.lock:
                print("locked")
        except StoreError as error:
            print(error)
    """
    with TemporaryDirectory() as parent:  # pytest's own folders are closed to other users
        Path(parent).chmod(0o755)
        store = ShotStore.create(Path(parent) / "chair", DESCRIPTION)
        (store.folder / "LOCK").chmod(0o444)
        store.folder.chmod(0o555)
        output, errors = run_python(code, store.folder).communicate(timeout=120)
        store.folder.chmod(0o755)
    assert output.splitlines()[:1] == ["chair"], errors
    assert "The folder cannot be written" in output.splitlines()[1]


HOLD = """
    import sys
    from pathlib import Path
    from stm_plugin.files.lock import StoreLock
    lock = StoreLock(Path(sys.argv[1]) / "LOCK")
    lock.acquire()
    print("held", flush=True)
    sys.stdin.readline()
    lock.release()
"""


def test_the_second_process_is_told_who_holds_the_shot(store: ShotStore) -> None:
    other = run_python(HOLD, store.folder)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(StoreBusyError, match=rf"held by process {other.pid} of .* on .*, since 20"):
        store.lock.acquire()
    holder = store.lock.held_by_another()
    assert holder is not None and holder.pid == other.pid
    other.communicate("go\n", timeout=60)
    with store.lock:
        assert store.lock.held_by_another() is None
    assert store.lock.held_by_another() is None


def test_waiting_for_the_shot_ends_when_the_other_lets_go(store: ShotStore) -> None:
    other = run_python(HOLD, store.folder)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    assert other.stdin is not None
    other.stdin.write("go\n")
    other.stdin.flush()
    store.lock.acquire(wait=60)
    store.lock.release()
    other.communicate(timeout=60)


def test_a_killed_holder_leaves_no_lock_behind(store: ShotStore) -> None:
    other = run_python(HOLD, store.folder)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    other.kill()
    other.communicate(timeout=60)
    with store.lock:
        pass


def test_a_file_system_without_locks_is_told_and_nobody_holds_the_shot(
    store: ShotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("stm_plugin.files.lock.lock_descriptor", refuse)
    told = r"cannot be locked: No locks available\. .*on another one"
    for _ in range(2):  # the first refusal leaves nothing held
        with pytest.raises(StoreError, match=told):
            store.lock.acquire()
    assert store.lock.held_by_another() is None
    monkeypatch.undo()
    with store.lock:
        assert store.lock.held


def test_the_holder_stands_behind_the_locked_byte(store: ShotStore) -> None:
    """On Windows no other process can read byte 0 while it is locked."""
    with store.lock:
        text = (store.folder / "LOCK").read_bytes()
        assert text[:1] == b" " and json.loads(text[1:])["pid"] == os.getpid()


def test_the_lock_may_be_taken_again_by_its_holder(store: ShotStore) -> None:
    with store.lock:
        with store.lock:
            assert store.lock.held
        assert store.lock.held
    assert not store.lock.held


def test_a_killed_writers_leftovers_are_removed(store: ShotStore) -> None:
    leftover = store.folder / "mattes" / ".x.prob.0123.part"
    leftover.write_bytes(b"half")
    store.tidy()
    assert not leftover.exists()


def test_sealed_files_say_whether_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    assert not looks_whole(path)
    assert read_sealed(path) is None
    write_sealed(path, b"body")
    assert looks_whole(path)
    assert read_sealed(path) == b"body"
    write_atomically(path, b"something else")
    assert not looks_whole(path)


def test_clearing_the_memory_and_unneeded_results_keeps_the_rest(store: ShotStore) -> None:
    values = np.zeros((1, 2, 2), np.uint16)
    for address in ("aa" * 32, "bb" * 32):
        store.put_probabilities(address, values)
    write_sealed(store.memory_folder / "x.cache", b"feature")
    assert store.size().memory > 0
    store.clear_memory()
    assert store.size().memory == 0
    assert store.remove_results_except({"aa" * 32}) == 1
    assert store.has("aa" * 32) and not store.has("bb" * 32)


def test_a_shot_that_may_not_be_read_is_not_said_to_be_unwritable(
    store: ShotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path, *args: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", closed)
    with pytest.raises(StoreError, match="may not be read") as refused:
        store.description()
    assert str(refused.value.path) == str(store.folder / "shot.json")
