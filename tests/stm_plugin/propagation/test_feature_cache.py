"""Cached features are returned bit for bit, within their budgets."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model.inference.allocator import keep_freed_memory
from stm_plugin.errors import StoreFullError
from stm_plugin.files.whole import Bytes
from stm_plugin.propagation.feature_cache import DiskCache, FeatureCache, RamCache, as_halves, from_halves


def tensors(value: float, count: int = 25) -> dict[str, torch.Tensor]:
    return {"a": torch.full((count,), float(value))}


def test_ram_lets_the_least_recently_used_go_first() -> None:
    cache = RamCache(250)
    cache.put("one", tensors(1))
    cache.put("two", tensors(2))
    assert cache.get("one") is not None
    cache.put("three", tensors(3))
    assert cache.get("two") is None
    assert cache.get("one") is not None and cache.get("three") is not None
    assert cache.bytes == 200
    cache.put("huge", tensors(4, 1000))
    assert cache.get("huge") is None and cache.bytes == 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_come_back_from_disk_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    value = {"key": torch.randn(3, 5).to(dtype), "value": torch.randn(2, 7).T.to(dtype)}
    FeatureCache(0, tmp_path, 10_000).put("x", value)
    back = FeatureCache(10_000, tmp_path, 10_000).get("x")
    assert back is not None
    assert all(torch.equal(back[name], value[name]) and back[name].dtype == dtype for name in value)


def test_features_are_kept_in_half_floats_and_go_on_as_they_are_read_back(tmp_path: Path) -> None:
    last = torch.channels_last
    computed = {
        "key": 30 * torch.randn(1, 8, 6, 5).contiguous(memory_format=last),
        "value": torch.randn(2, 7).bfloat16(),
        "areas": torch.tensor([123_456.5], dtype=torch.float64),
        "huge": torch.tensor([1e9, -1e9]),
    }
    kept = as_halves(computed)
    FeatureCache(0, tmp_path, 10_000).put("x", kept)
    stored = FeatureCache(0, tmp_path, 10_000).get("x")
    assert stored is not None
    assert [one.dtype for name, one in stored.items() if "key" in name] == [torch.float16]
    goes_on, read_back = (from_halves(one, torch.device("cpu")) for one in (kept, stored))
    for name, tensor in computed.items():
        assert goes_on[name].dtype == read_back[name].dtype == tensor.dtype
        assert torch.equal(goes_on[name], read_back[name])
    assert torch.allclose(goes_on["key"], computed["key"], rtol=2**-11)
    assert goes_on["key"].is_contiguous(memory_format=last)
    assert torch.equal(goes_on["value"], computed["value"]) and torch.equal(
        goes_on["areas"], computed["areas"]
    )
    assert goes_on["huge"].isfinite().all()


def test_disk_keeps_its_budget_over_several_runs(tmp_path: Path) -> None:
    body = bytes(100)
    first = DiskCache(tmp_path, 1000)
    for name in "abc":
        first.put(name, body)
        os.utime(tmp_path / f"{name}.cache", (1000 + ord(name), 1000 + ord(name)))
    second = DiskCache(tmp_path, 500)
    assert second.get("a") == body  # used now, so `b` is the oldest
    second.put("d", body)
    second.put("e", body)
    assert second.get("b") is None
    assert second.get("a") == body
    assert sum(path.stat().st_size for path in tmp_path.glob("*.cache")) <= 500


def test_a_damaged_feature_counts_as_not_there(tmp_path: Path) -> None:
    cache = FeatureCache(0, tmp_path, 10_000)
    cache.put("x", tensors(1))
    path = tmp_path / "x.cache"
    path.write_bytes(path.read_bytes()[:-3])
    assert cache.get("x") is None
    cache.put("x", tensors(1))
    assert cache.get("x") is not None


def test_features_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    cache = FeatureCache(0, tmp_path, 10_000)
    cache.put("x", tensors(1))
    (tmp_path / "x.cache").unlink()
    assert cache.get("x") is None


def test_a_full_disk_turns_the_disk_layer_off_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = FeatureCache(10_000, tmp_path, 10_000, said.append)

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache.put("x", tensors(1))
    cache.put("y", tensors(2))
    assert len(said) == 1 and "The disk is full" in said[0]
    assert cache.get("x") is not None and cache.get("y") is not None


def test_on_a_full_disk_features_give_way_to_what_cannot_be_computed_again(tmp_path: Path) -> None:
    said: list[str] = []
    cache = FeatureCache(0, tmp_path / "memory", 10_000, said.append)
    cache.put("x", tensors(1))
    tried = []

    def keep() -> str:
        tried.append(len(list(tmp_path.glob("memory/*.cache"))))
        if tried[-1]:
            raise StoreFullError("The disk is full.", path=tmp_path / "result")
        return "kept"

    assert cache.make_room_for(keep) == "kept"
    assert tried == [1, 0]
    assert len(said) == 1 and "RAM only" in said[0]
    cache.put("y", tensors(2))
    assert not cache.has("y"), "what was freed stays free"


def test_features_do_not_give_way_twice_or_to_another_disk(tmp_path: Path) -> None:
    cache = FeatureCache(0, tmp_path / "memory", 10_000)
    cache.put("x", tensors(1))
    tried = []

    def full(path: Path) -> None:
        tried.append(path)
        raise StoreFullError("The disk is full.", path=path)

    with pytest.raises(StoreFullError):
        cache.make_room_for(lambda: full(Path("/proc/elsewhere")))
    assert cache.has("x") and len(tried) == 1
    with pytest.raises(StoreFullError):
        cache.make_room_for(lambda: full(tmp_path / "result"))
    with pytest.raises(StoreFullError):
        cache.make_room_for(lambda: full(tmp_path / "result"))
    assert len(tried) == 1 + 2 + 1


def test_features_that_are_being_written_give_way_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result fails on a disk that another thread is filling with features."""
    (tmp_path / "memory").mkdir()
    cache = FeatureCache(0, tmp_path / "memory", 10_000)
    begun, go_on = threading.Event(), threading.Event()
    write = DiskCache.write

    def slowly(self: DiskCache, key: str, body: Sequence[Bytes]) -> None:
        begun.set()
        assert go_on.wait(10)
        write(self, key, body)

    monkeypatch.setattr(DiskCache, "write", slowly)
    tried: list[int] = []

    def keep() -> str:
        tried.append(len(list(tmp_path.glob("memory/*.cache"))))
        if len(tried) == 1:
            threading.Timer(0.2, go_on.set).start()
            raise StoreFullError("The disk is full.", path=tmp_path / "result")
        return "kept"

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(cache.put, "x", tensors(1))
        assert begun.wait(10)
        assert cache.make_room_for(keep) == "kept"
        written.result()
    assert tried == [0, 0] and not list(tmp_path.glob("memory/*.cache"))


def test_a_feature_that_did_not_fit_leaves_its_room_to_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half of a feature filled the disk; it is gone before the result asks for room."""
    (tmp_path / "memory").mkdir()
    cache = FeatureCache(0, tmp_path / "memory", 10_000)

    def half(self: DiskCache, key: str, body: Sequence[Bytes]) -> None:
        raise StoreFullError("The disk is full.", path=self.folder / key)

    monkeypatch.setattr(DiskCache, "write", half)
    tried: list[int] = []

    def keep() -> str:
        tried.append(len(tried))
        if len(tried) == 1:
            cache.put("x", tensors(1))
            raise StoreFullError("The disk is full.", path=tmp_path / "result")
        return "kept"

    assert cache.make_room_for(keep) == "kept"
    assert tried == [0, 1]


def test_two_results_that_fail_at_once_are_both_tried_again(tmp_path: Path) -> None:
    cache = FeatureCache(0, tmp_path / "memory", 10_000)
    cache.put("x", tensors(1))
    both = threading.Barrier(2, timeout=10)

    def result(name: str) -> str:
        tried: list[str] = []

        def keep() -> str:
            tried.append(name)
            if len(tried) == 1:
                both.wait()
                raise StoreFullError("The disk is full.", path=tmp_path / name)
            return name

        return cache.make_room_for(keep)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(result, ("one", "two"))) == ["one", "two"]


@pytest.mark.parametrize("count", [10, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_what_is_kept_is_a_copy_bit_for_bit_in_its_own_memory(
    count: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    given = {
        "plane": (100 * torch.randn(2, count)).to(dtype).T,
        "odd": torch.ones(3, dtype=dtype),
        "none": torch.empty(0, dtype=dtype),
    }
    cache = FeatureCache(1 << 30, tmp_path, 1 << 30)
    cache.put("x", given)
    for found in (cache.get("x"), FeatureCache(1 << 30, tmp_path, 1 << 30).get("x")):
        assert found is not None and set(found) == set(given)
        assert all(torch.equal(found[name], given[name]) for name in given)
        assert all(found[name].is_contiguous() for name in given)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see what a process takes")
def test_what_is_forgotten_is_given_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    cache = FeatureCache(1 << 30)
    keep_freed_memory()
    for number in range(32):
        cache.put(str(number), {"a": torch.ones(1 << 19)})  # 2 MB
    full = resident()
    cache.limit_ram(0)
    assert full - resident() > 32 << 20


@pytest.mark.parametrize("budget", [1 << 24, 0])
def test_channels_that_came_last_stay_last_in_memory_and_on_disk(tmp_path: Path, budget: int) -> None:
    cache = FeatureCache(budget, tmp_path, 1 << 24)
    last = torch.rand(1, 64, 40, 60).contiguous(memory_format=torch.channels_last)
    first = torch.rand(2, 3, 40, 60)
    cache.put("one", {"last": last, "first": first})
    kept = cache.get("one")
    assert kept is not None and set(kept) == {"last", "first"}
    assert torch.equal(kept["last"], last) and torch.equal(kept["first"], first)
    assert kept["last"].is_contiguous(memory_format=torch.channels_last)
    assert kept["first"].is_contiguous()
