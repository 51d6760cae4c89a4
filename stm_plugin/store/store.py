"""The shot store: the files of a shot in its folder `NAME.stmshot/`.

    shot.json   the description: schema version, plate, objects, keys, settings (`ShotDescription`), and a
                checksum
    keys/       the masks of keys: copies of the artist's files, and the decoded masks
    mattes/     probabilities of every pass and frame by content address; what each frame was finished from,
                and its confidence
    adapted/    weights that were adapted to the keys (`stm adapt`), by content
    memory/     features that can be computed again; may be deleted at any time
    plate.jsonl content hashes of plate files that were read, so they need not be read again
    exported.jsonl  the matte files that were written, so that they need not be read to be checked
    movie.index the frames of the plate's movie, so that it need not be decoded to count them
    plate/      frames that a host pushed (only for such plates)
    LOCK        locked by the one process that writes

A result's address is the hash of its ingredients, so a stored result is never out of date.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from stm_plugin.address import address_of
from stm_plugin.errors import MaskError, SettingsError, StoreError
from stm_plugin.files.journal import Journal
from stm_plugin.files.lock import StoreLock
from stm_plugin.files.names import check_text
from stm_plugin.files.whole import (
    DamagedFileError,
    looks_whole,
    read_sealed,
    remove_leftovers,
    store_error,
    write_atomically,
    write_sealed,
)
from stm_plugin.images.mask import mask_hash
from stm_plugin.planning.quality import Quality
from stm_plugin.planning.values import FrameRecord, KeyMask
from stm_plugin.store.description import SCHEMA, ShotDescription
from stm_plugin.windows import FloatArray, Window

SUFFIX = ".stmshot"
FULL_SCALE = 65535
"""The stored value of a probability of 1. Sixteen bits are finer than the half floats of a matte."""

_NUMBER = (int, float)
_ADDRESS = "address"
"""Of a result, in its file. Stores of before this was kept have none."""
_COMPRESSION = 1  # zlib's fastest: most pixels are exactly 0 or 1

ProbabilityArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class StoreSize:
    """Bytes on disk by purpose."""

    keys: int
    mattes: int
    memory: int
    plate: int

    def __str__(self) -> str:
        parts = {
            "for keys": self.keys,
            "for results": self.mattes,
            "for cached features": self.memory,
            "for the plate": self.plate,
        }
        told = [f"{_in_words(size)} {what}" for what, size in parts.items() if size]
        return ", ".join(told) or "nothing"


class ShotStore:
    """The files of one shot. Only the holder of `lock` may write; everyone may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = StoreLock(folder / "LOCK")
        self.memory_folder = folder / "memory"
        self.plate_folder = folder / "plate"
        self.movie_notes = folder / "movie.index"
        self.finished = Journal(
            folder / "mattes" / "frames.jsonl",
            "frame",
            {"frame": int, "address": str, "base": dict, "keys": dict, "plate": str},
        )
        self.exported = Journal(folder / "exported.jsonl", "file")
        self.quality_journal = Journal(
            folder / "mattes" / "quality.jsonl",
            "frame",
            {"frame": int, "address": str, "confidence": _NUMBER, "agreement": (*_NUMBER, type(None))},
        )
        self.plate_index = Journal(
            folder / "plate.jsonl", "frame", {"frame": int, "signature": (str, type(None)), "hash": str}
        )

    @classmethod
    def create(cls, folder: str | Path, description: ShotDescription) -> ShotStore:
        """Make a new store.

        Raises:
            StoreError: the folder exists already, cannot be written, or its name is not UTF-8.
        """
        path = with_suffix(folder)
        check_text(path, "shot", "Give the shot another name or folder.", StoreError)
        if (path / "shot.json").exists():
            raise StoreError(
                "There is a shot here already.", path=path, hint="Open it, or choose another name."
            )
        try:
            for name in ("keys", "mattes", "memory"):
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, path) from error
        store = cls(path)
        with store.lock:
            store.save(description)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> ShotStore:
        """Open an existing store.

        Raises:
            StoreError: there is none, or a newer plug-in made it.
        """
        store = cls(with_suffix(folder))
        store.description()
        return store

    @property
    def exists(self) -> bool:
        """Whether the folder holds a shot."""
        return (self.folder / "shot.json").is_file()

    @property
    def has_results(self) -> bool:
        """Whether anything was computed: probabilities, or adapted weights."""
        adapted = (self.folder / "adapted").glob("*.safetensors")
        return next(self._result_paths(), None) is not None or next(adapted, None) is not None

    # ---- shot.json ----

    def description(self) -> ShotDescription:
        """Read shot.json. StoreError where it cannot be used."""
        path = self.folder / "shot.json"
        try:
            values = json.loads(path.read_text("utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it has no named fields")
            schema = values["schema"]
        except FileNotFoundError as error:
            raise StoreError(
                "There is no shot here.", path=self.folder, hint="Make one with `stm shot new`."
            ) from error
        except PermissionError as error:
            what, hint = "The shot may not be read.", "Ask its owner for permissions to read and write it."
            raise StoreError(what, path=path, hint=hint) from error
        except OSError as error:
            raise store_error(error, path) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _unreadable(path, error) from error
        if type(schema) is not int or schema < 1:
            raise _unreadable(path, ValueError("the field schema is not a number from 1 on"))
        if schema > SCHEMA:
            raise StoreError(
                f"A newer STM made this shot (schema {schema}; this one reads those up to {SCHEMA}).",
                path=self.folder,
                hint="Update the plug-in, or make a new shot from the same plate and masks.",
            )
        checksum = values.pop("checksum", None)  # shots of before this was kept have none
        try:
            description = ShotDescription.from_json(values)
        except SettingsError as error:
            error.path = error.path or str(path)
            error.hint = error.hint or "Set it again with `stm shot set`, or restore the file from a backup."
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from error
        if checksum is not None and checksum != _checksum(values):
            raise StoreError(
                "The shot's description is damaged, or was changed outside STM: its checksum is wrong.",
                path=path,
                hint="Restore it from a backup; after a change by hand delete the line of its checksum.",
            )
        return description

    def save(self, description: ShotDescription) -> None:
        """Replace shot.json. StoreError where the disk is full or cannot be written."""
        values = description.to_json()
        text = json.dumps({"checksum": _checksum(values), **values}, indent=1, ensure_ascii=False)
        write_atomically(self.folder / "shot.json", text.encode("utf-8"))

    # ---- keys/ ----

    def put_mask(self, mask: FloatArray, window: Window) -> KeyMask:
        """Keep one object's mask, float32 (h, w) in [0, 1] over `window`, exactly."""
        place = [window.x, window.y, window.width, window.height]
        hash_ = address_of("mask", mask_hash(mask), place)
        path = self._mask_path(hash_)
        if not _is_whole(path):  # giving a damaged mask again repairs it
            write_sealed(path, _pack(mask=np.ascontiguousarray(mask), window=np.array(place, np.int64)))
        return _key_mask(hash_, mask)

    def kept_mask(self, frame: int, hash_: str) -> KeyMask:
        """A mask that `put_mask` stored, for a key on `frame`. MaskError where it is gone or damaged."""
        return _key_mask(hash_, self.mask_of_key(frame, hash_)[0])

    def mask(self, hash_: str) -> tuple[FloatArray, Window]:
        """The mask that `put_mask` stored.

        Raises:
            StoreError: it is missing.
            DamagedFileError: it is truncated or altered.
        """
        path = self._mask_path(hash_)
        body = read_sealed(path)
        if body is None:
            raise StoreError("The mask of a key is gone.", path=path, hint="Give the key's mask again.")
        arrays = _unpack(body)
        if address_of("mask", mask_hash(arrays["mask"]), arrays["window"].tolist()) != hash_:
            raise DamagedFileError(path)  # a file of another mask, under this name
        x, y, width, height = (int(one) for one in arrays["window"])
        return arrays["mask"].astype(np.float32, copy=False), Window(x, y, width, height)

    def mask_of_key(self, frame: int, hash_: str) -> tuple[FloatArray, Window]:
        """As `mask`, for whoever needs it on a frame.

        Raises:
            MaskError: it is gone or damaged; the frame, the file and what brings it back are named.
        """
        try:
            return self.mask(hash_)
        except (DamagedFileError, StoreError) as error:
            copies = sorted(path for path in (self.folder / "keys").glob(f"{frame}-*") if path.is_file())
            file = copies[0] if len(copies) == 1 else "MASK"
            where = f" (copies of your files are in {self.folder / 'keys'})" if len(copies) > 1 else ""
            raise MaskError(
                "The stored mask of this key is damaged."
                if isinstance(error, DamagedFileError)
                else error.what,
                frame=frame,
                path=self._mask_path(hash_),
                hint=f"Give the mask again: `stm shot key add {self.folder} {frame} {file}`{where}. What is "
                "computed stays.",
            ) from error

    def keep_original(self, frame: int, path: Path) -> str:
        """Copy the artist's file byte for byte; returns its name under keys/."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise store_error(error, path) from error
        name = f"{frame}-{hashlib.sha256(data).hexdigest()[:12]}{path.suffix.lower()}"
        write_atomically(self.folder / "keys" / name, data)
        return name

    # ---- mattes/ ----

    def has(self, address: str) -> bool:
        """Whether the store has the probabilities with this address; only the file's length is checked."""
        return looks_whole(self._result_path(address))

    def put_probabilities(self, address: str, probabilities: ProbabilityArray) -> None:
        """Keep the result of a pass on a frame: uint16 (K, h, w), `FULL_SCALE` for 1.

        Raises:
            StoreError: the disk does not take it, or the shot is gone.
        """
        if not self.exists:  # else its folder would be made anew, on another disk perhaps
            raise StoreError(
                "The shot is gone: its folder was removed or renamed, or its disk is no longer there.",
                path=self.folder,
                hint="Bring it back and run again: what it holds is not computed again.",
            )
        write_sealed(self._result_path(address), _pack(address, probabilities=probabilities))

    def probabilities(self, address: str) -> ProbabilityArray | None:
        """The result that `put_probabilities` stored, or None.

        Raises:
            DamagedFileError: it is truncated or altered.
        """
        path = self._result_path(address)
        body = read_sealed(path)
        if body is None:
            return None
        arrays = _unpack(body)
        if _ADDRESS in arrays and bytes(arrays[_ADDRESS]).decode() != address:
            raise DamagedFileError(path)  # a file of another result, under this name
        return arrays["probabilities"]

    def history(self) -> dict[int, FrameRecord]:
        """The record of each frame's last finish."""
        records = {}
        for frame, entry in self.finished.load().items():
            try:
                keys = {int(key): str(hash_) for key, hash_ in entry["keys"].items()}
            except ValueError:  # an invalid line: the frame counts as never finished
                continue
            settings = entry.get("settings")
            records[int(frame)] = FrameRecord(
                int(frame),
                entry["address"],
                entry["base"],
                keys,
                entry["plate"],
                settings if isinstance(settings, dict) else {},
            )
        return records

    def record(self, record: FrameRecord) -> None:
        """Record that a frame is finished."""
        self.finished.append(asdict(record))

    def qualities(self) -> dict[int, Quality]:
        """The quality of each frame when it was last finished."""
        known = {one.name for one in fields(Quality)}
        return {
            int(frame): Quality(**{name: value for name, value in entry.items() if name in known})
            for frame, entry in self.quality_journal.load().items()
        }

    def record_quality(self, quality: Quality) -> None:
        """Record the quality of a finished frame."""
        self.quality_journal.append(asdict(quality))

    def forget_plate(self) -> None:
        """Forget the content hashes of plate files; each file is read again when it is needed."""
        path = self.folder / "plate.jsonl"
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(error, path) from error

    # ---- the folder as a whole ----

    def tidy(self) -> None:
        """Remove the partial files of a killed process; only the holder of the lock may call this."""
        remove_leftovers(self.folder)

    def clear_memory(self) -> None:
        """Delete memory/, whose content can be computed again."""
        shutil.rmtree(self.memory_folder, ignore_errors=True)

    def remove_results_except(self, kept: set[str]) -> int:
        """Delete all other probabilities; returns how many."""
        removed = 0
        for path in self._result_paths():
            if path.stem not in kept:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def remove_adaptations_except(self, kept: str | None) -> None:
        """Delete adapted weights that the shot has replaced."""
        for path in (self.folder / "adapted").glob("*.safetensors"):
            if path.stem != kept:
                path.unlink(missing_ok=True)

    def size(self) -> StoreSize:
        """Bytes on disk."""
        return StoreSize(
            *(_bytes_under(self.folder / name) for name in ("keys", "mattes", "memory", "plate"))
        )

    def _mask_path(self, hash_: str) -> Path:
        return self.folder / "keys" / f"{hash_}.mask"

    def _result_path(self, address: str) -> Path:
        return self.folder / "mattes" / address[:2] / f"{address}.prob"

    def _result_paths(self) -> Iterator[Path]:
        return (self.folder / "mattes").glob("??/*.prob")


def _key_mask(hash_: str, mask: FloatArray) -> KeyMask:
    return KeyMask(hash_, empty=not bool(mask.any()), area=float(mask.sum(dtype=np.float64)))


def with_suffix(folder: str | Path) -> Path:
    """The folder of a shot; `.stmshot` is added where it is left out."""
    path = Path(folder)
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)


def list_shots(folder: str | Path) -> tuple[Path, ...]:
    """The shots in a folder, by name."""
    return tuple(sorted(path.parent for path in Path(folder).glob(f"*{SUFFIX}/shot.json")))


def quantise(probabilities: FloatArray) -> ProbabilityArray:
    """Probabilities in [0, 1] as stored integers.

    A running pass continues from the stored values, as a resumed pass does, so both give the same bytes.
    """
    scaled: FloatArray = np.clip(probabilities, 0.0, 1.0) * np.float32(FULL_SCALE)
    return np.rint(scaled).astype(np.uint16)


def dequantise(stored: ProbabilityArray) -> FloatArray:
    """float32 in [0, 1] from stored integers."""
    values: FloatArray = stored.astype(np.float32) / np.float32(FULL_SCALE)
    return values


def _in_words(size: int) -> str:
    """`1.5 MB`, `12 kB`: never `0.0 MB` for existing data."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{max(1, round(size / 1e3))} kB"


def _is_whole(path: Path) -> bool:
    """Whether a sealed file exists and its checksum is right."""
    try:
        return read_sealed(path) is not None
    except DamagedFileError:
        return False


def _pack(address: str = "", **arrays: npt.NDArray[Any]) -> bytes:
    """Arrays as the body of a file, with the address that it must be found under, if it has one."""
    if address:
        arrays[_ADDRESS] = np.frombuffer(address.encode(), np.uint8)
    return zlib.compress(save_arrays(arrays), _COMPRESSION)


def _unpack(body: bytes) -> dict[str, npt.NDArray[Any]]:
    return load_arrays(zlib.decompress(body))


def _checksum(values: dict[str, Any]) -> str:
    """The checksum of a description's values, whatever the order and the layout of the file."""
    as_read = json.loads(json.dumps(values))  # frames that are names sort as text, as when they are read
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _unreadable(path: Path, why: Exception) -> StoreError:
    return StoreError(
        f"The shot's description cannot be read: {_first_fault(why)}.",
        path=path,
        hint="Restore it from a backup, or make the shot anew: the masks are in its keys/ folder.",
    )


def _first_fault(error: Exception) -> str:
    """What is wrong with a description, in one line."""
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    if isinstance(error, KeyError):
        return f"the field {error.args[0]} is missing"
    if isinstance(error, TypeError):
        return "a field holds something of another kind"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not complete JSON (line {error.lineno}, column {error.colno})"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # deleted meanwhile
            continue
    return total
