"""Features that can be computed again, kept in RAM and on disk within a budget.

The least recently used are deleted first. Keys are content addresses, so an entry is never out of date.
Values are dictionaries of tensors, kept bit for bit, so cached features lead to the same matte as computed
ones.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor

from model.inference.device_copies import own_stream, queued
from stm_plugin.errors import DiskFullError, StoreError
from stm_plugin.files.whole import SEAL_BYTES, Bytes, DamagedFileError, read_sealed, write_sealed
from stm_plugin.propagation.storing import Storing

_OWN_MEMORY_FROM = 1 << 17
"""Bytes from which an entry gets a separate block. With smaller blocks a system's limit on their number may
be reached."""
_LARGE_PAGES_FROM = 1 << 22
"""Bytes of an entry that is worth large pages: they come in less than half of the time."""
_ALIGNMENT = 64
_LAST = "|channels last"
"""Suffix of a tensor's name in a file: it is stored as (n, h, w, C) and stands for (n, C, h, w)."""

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""As safetensors names them."""
_HEADER_ALIGNMENT = 8

_SINGLE = "|single"
"""Behind the name of a tensor of half floats that stands for one of float32."""
_HALF_MAX = 65504.0

Tensors = dict[str, Tensor]
T = TypeVar("T")


class RamCache:
    """A dictionary of tensors with a byte budget."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._entries: OrderedDict[str, Tensors] = OrderedDict()

    def get(self, key: str) -> Tensors | None:
        """The entry, or None; it becomes the most recently used."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, value: Tensors) -> None:
        """Keep an entry, unless it is larger than the whole budget."""
        self.drop(key)
        size = _size(value)
        if size > self.budget:
            return
        self._entries[key] = value
        self.bytes += size
        while self.bytes > self.budget:
            self.drop(next(iter(self._entries)))

    def limit(self, budget: int) -> None:
        """Change the budget; entries that no longer fit are deleted."""
        self.budget = budget
        while self.bytes > self.budget:
            self.drop(next(iter(self._entries)))

    def has(self, key: str) -> bool:
        """Whether the entry exists; its place in the order of use does not change."""
        return key in self._entries

    def drop(self, key: str) -> None:
        """Forget an entry, if it exists."""
        value = self._entries.pop(key, None)
        if value is not None:
            self.bytes -= _size(value)


class DiskCache:
    """Sealed files in one folder with a byte budget. Anyone may delete them at any time."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self.bytes = 0
        self._sizes: OrderedDict[str, int] | None = None  # least recently used first; read on first use

    def get(self, key: str) -> bytes | None:
        """The bytes, or None. A damaged file is deleted and counts as missing."""
        path = self._path(key)
        try:
            body = read_sealed(path)
        except DamagedFileError:
            self.drop(key)
            return None
        if body is not None:
            self._touch(key, path)
        return body

    def put(self, key: str, *body: Bytes) -> None:
        """Keep bytes. StoreError where the disk is full or cannot be written."""
        size = SEAL_BYTES + sum(len(part) for part in body)
        if self.make_room(key, size):
            self.write(key, body)
            self.count(key, size)

    def make_room(self, key: str, size: int) -> bool:
        """Delete what was used longest ago, until a file of a size has room; False where the budget is too
        small."""
        if size > self.budget:
            return False
        sizes = self._known()
        self._forget(key)
        while sizes and self.bytes + size > self.budget:
            self.drop(next(iter(sizes)))
        return True

    def write(self, key: str, body: Sequence[Bytes]) -> None:
        """Write the file of an entry; may be called while others are read. StoreError as in `put`."""
        write_sealed(self._path(key), *body, durable=False)

    def count(self, key: str, size: int) -> None:
        """Add an entry whose file is written."""
        self._forget(key)
        self._known()[key] = size
        self.bytes += size

    def has(self, key: str) -> bool:
        """Whether the entry existed when the folder was last read."""
        return key in self._known()

    def drop(self, key: str) -> None:
        """Delete an entry, if it exists."""
        self._forget(key)
        self._path(key).unlink(missing_ok=True)

    def clear(self) -> int:
        """Delete all entries; returns their bytes."""
        freed = sum(self._known().values())
        for key in list(self._known()):
            self.drop(key)
        return freed

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.cache"

    def _known(self) -> OrderedDict[str, int]:
        if self._sizes is None:
            found = []
            for path in self.folder.glob("*.cache"):
                try:
                    status = path.stat()
                except OSError:  # deleted meanwhile
                    continue
                found.append((status.st_mtime_ns, path.stem, status.st_size))
            self._sizes = OrderedDict((key, size) for _, key, size in sorted(found))
            self.bytes = sum(self._sizes.values())
        return self._sizes

    def _touch(self, key: str, path: Path) -> None:
        sizes = self._known()
        if key in sizes:
            sizes.move_to_end(key)
        try:
            now = time.time()
            os.utime(path, (now, now))
        except OSError:
            pass  # read-only, or just deleted: the order of use need not be exact

    def _forget(self, key: str) -> None:
        self.bytes -= self._known().pop(key, 0)


class FeatureCache:
    """A cache in RAM in front of one on disk. Thread-safe.

    When the disk is full this is reported once; from then on the disk is only read.

    Args:
        ram_budget, disk_budget: bytes; 0 turns a layer off.
        folder: of the disk layer, or None for RAM alone.
        warn: is called with a sentence for people.
    """

    def __init__(
        self,
        ram_budget: int,
        folder: Path | None = None,
        disk_budget: int = 0,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.ram = RamCache(ram_budget)
        self.disk = DiskCache(folder, disk_budget) if folder is not None and disk_budget else None
        self.warn = warn
        self._disk_takes_more = True
        self._mutex = threading.RLock()
        self._written = threading.Condition(self._mutex)
        self._being_written = 0
        self._given_back = 0
        self._storing: Storing | None = None

    @contextmanager
    def written_by(self, storing: Storing) -> Iterator[None]:
        """Write files in its threads."""
        self._storing = storing
        try:
            yield
        finally:
            self._storing = None

    def get(self, key: str) -> Tensors | None:
        """The tensors that were put, bit for bit, on the CPU; or None."""
        with self._mutex:
            value = self.ram.get(key)
            if value is None and self.disk is not None:
                body = self.disk.get(key)
                if body is not None:
                    value = _in_own_memory(_from_bytes(body))
                    self.ram.put(key, value)
            return value

    def has(self, key: str) -> bool:
        """Whether `get` would find an entry, as far as is known without reading files."""
        with self._mutex:
            return self.ram.has(key) or (self.disk is not None and self.disk.has(key))

    def put(self, key: str, value: Mapping[str, Tensor], *, on_disk: bool = True) -> None:
        """Keep tensors; those of another device are copied to the CPU, and can be read when that is done."""
        value = {name: tensor.detach() for name, tensor in value.items()}
        card = next((one.device for one in value.values() if one.device.type == "cuda"), None)
        if card is None or self._storing is None:
            self._keep(key, _in_own_memory(value), on_disk, self._storing)
            return
        ready = torch.cuda.current_stream(card).record_event()

        def copy_and_keep() -> None:
            with own_stream(card):
                torch.cuda.current_stream(card).wait_event(ready)
                kept = _in_own_memory(value)
            self._keep(key, kept, on_disk, None)

        self._storing.submit(copy_and_keep)

    def _keep(self, key: str, kept: Tensors, on_disk: bool, storing: Storing | None) -> None:
        """`put` of what lies in the cache's memory; the disk's part by `storing`, here if None."""
        with self._mutex:
            self.ram.put(key, kept)
            if not on_disk or self.disk is None or not self._disk_takes_more or self.disk.has(key):
                return
            disk = self.disk
        if storing is None:
            self._write(disk, key, kept)
        else:
            storing.submit(lambda: self._write(disk, key, kept))

    def _write(self, disk: DiskCache, key: str, kept: Tensors) -> None:
        """Write an entry to disk. Entries can be read meanwhile."""
        body = _as_file(kept)
        size = SEAL_BYTES + sum(len(part) for part in body)
        with self._mutex:
            if not self._disk_takes_more or not disk.make_room(key, size):
                return
            self._being_written += 1
        wrote, why = False, ""
        try:
            disk.write(key, body)
            wrote = True
        except StoreError as error:
            why = str(error)
        finally:
            with self._mutex:
                if wrote:
                    disk.count(key, size)
                else:
                    self._leave_disk(why)
                    self._given_back += 1  # what was written of it is gone: a result may fit now
                self._being_written -= 1
                self._written.notify_all()

    def limit_ram(self, budget: int) -> None:
        """Change the budget of the RAM layer; entries that no longer fit are deleted."""
        with self._mutex:
            self.ram.limit(budget)

    def make_room_for(self, work: Callable[[], T]) -> T:
        """Do `work`. If the disk is full and the disk layer is on it, delete that layer and do `work` again.

        Raises:
            DiskFullError: the disk layer is empty, or deleting it was not enough.
        """
        given_back = self._given_back
        try:
            return work()
        except DiskFullError as error:
            if not self._give_disk_back(error, given_back):
                raise
        return work()

    def _give_disk_back(self, error: DiskFullError, before: int) -> bool:
        """Delete the disk layer, what is being written too; whether that gave room since `before`."""
        with self._mutex:
            if self.disk is None or not _on_one_disk(self.disk.folder, Path(error.path or "")):
                return False
            self._leave_disk(f"{error.path}: The disk is full; cached features were deleted.")
            self._written.wait_for(lambda: not self._being_written)
            if self.disk.clear():
                self._given_back += 1
            return self._given_back > before

    def _leave_disk(self, why: str) -> None:
        if self._disk_takes_more:
            self._disk_takes_more = False
            self.warn(f"Features are kept in RAM only from here on. {why}")


def as_halves(value: Mapping[str, Tensor]) -> Tensors:
    """Features as they are kept: float32 as half floats, in half of the memory; other types unchanged.

    What is computed goes on with `from_halves` of this, as what is read back must: both give the same bits.
    """
    return {
        (name + _SINGLE if tensor.dtype == torch.float32 else name): (
            tensor.half().clamp_(-_HALF_MAX, _HALF_MAX) if tensor.dtype == torch.float32 else tensor
        )
        for name, tensor in value.items()
    }


def from_halves(value: Mapping[str, Tensor], device: torch.device) -> Tensors:
    """Features on a device, of the types that they had before `as_halves`."""
    return {
        name.removesuffix(_SINGLE): (
            queued(tensor, device).float() if name.endswith(_SINGLE) else queued(tensor, device)
        )
        for name, tensor in value.items()
    }


def _on_one_disk(folder: Path, file: Path) -> bool:
    try:
        return folder.stat().st_dev == file.parent.stat().st_dev
    except OSError:
        return False


def _in_own_memory(value: Tensors) -> Tensors:
    """CPU tensors in one block outside of the program's heap; its memory is freed with the entry.

    In the heap, entries that stay long would lie between the short-lived tensors of the network, and the heap
    of a long run would grow by the gaps. The order of channels in memory (channels last) is kept, as the
    network needs it.
    """
    places, end = {}, 0
    for name, tensor in value.items():
        places[name] = end
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    if end < _OWN_MEMORY_FROM:
        return {
            name: tensor.cpu() if _has_channels_last(tensor) else tensor.cpu().contiguous()
            for name, tensor in value.items()
        }
    block = _memory(end)
    kept = {}
    for name, tensor in value.items():
        if tensor.numel() == 0:
            kept[name] = tensor.cpu()
            continue
        flat = torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel(), offset=places[name])
        kept[name] = _laid_out_like(tensor, flat).copy_(tensor)
    return kept


def _memory(size: int) -> mmap.mmap:
    """A block of bytes from the system. Private pages are a quarter faster than shared ones."""
    if os.name == "nt":
        return mmap.mmap(-1, size)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _LARGE_PAGES_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _laid_out_like(tensor: Tensor, flat: Tensor) -> Tensor:
    """A tensor over this memory with the shape of another one, channels last if the other is."""
    if _has_channels_last(tensor):
        count, channels, height, width = tensor.shape
        return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(tensor.shape)


def _has_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _as_file(value: Tensors) -> list[Bytes]:
    """Tensors as the parts of a safetensors file; those of the tensors are their own memory. The names of
    tensors with channels last end in `_LAST`."""
    places: dict[str, dict[str, object]] = {}
    parts: list[Bytes] = []
    end = 0
    for name, tensor in value.items():
        if _has_channels_last(tensor):
            name, tensor = name + _LAST, tensor.permute(0, 2, 3, 1)
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        places[name] = {"dtype": _TYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        parts.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    header = json.dumps(places, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _HEADER_ALIGNMENT)
    return [struct.pack("<Q", len(header)), header, *parts]


def _from_bytes(body: bytes) -> Tensors:
    loaded = safetensors.torch.load(body)
    return {
        name.removesuffix(_LAST): tensor.permute(0, 3, 1, 2) if name.endswith(_LAST) else tensor
        for name, tensor in loaded.items()
    }


def _size(value: Tensors) -> int:
    return sum(tensor.nbytes for tensor in value.values())
