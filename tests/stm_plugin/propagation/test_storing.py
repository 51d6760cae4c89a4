"""Storing beside the network: bounded, complete at the end, and no error is lost."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from stm_plugin.propagation.feature_cache import FeatureCache
from stm_plugin.propagation.storing import Storing
from stm_plugin.propagation.workers import Workers


def wait_for(gate: threading.Event) -> None:
    assert gate.wait(60)


def test_all_pieces_are_done_at_the_end_even_after_an_error() -> None:
    done: list[int] = []
    with pytest.raises(KeyError), Storing(2) as storing:
        for number in range(3):
            storing.submit(partial(done.append, number))
        raise KeyError("of the caller")
    assert sorted(done) == [0, 1, 2]


def test_no_more_pieces_wait_than_are_allowed() -> None:
    gate, entered = threading.Event(), threading.Event()
    with Storing(1) as storing:
        futures = [storing.submit(partial(wait_for, gate)) for _ in range(storing.most)]

        def one_more() -> None:
            storing.submit(lambda: None)
            entered.set()

        waits = threading.Thread(target=one_more)
        waits.start()
        assert not entered.wait(0.2)
        gate.set()
        assert entered.wait(20)
        waits.join()
    assert all(one.done() for one in futures)


def test_features_are_readable_at_once_and_on_disk_at_the_end(tmp_path: Path) -> None:
    gate = threading.Event()
    value = {"key": torch.arange(200_000, dtype=torch.float32)}
    cache = FeatureCache(1 << 24, tmp_path, 1 << 24)
    with Storing(1) as storing, cache.written_by(storing):
        storing.submit(partial(wait_for, gate))  # what is behind it must wait
        cache.put("x", value)
        found = cache.get("x")
        assert found is not None and torch.equal(found["key"], value["key"])
        assert not list(tmp_path.glob("*.cache"))
        gate.set()
    again = FeatureCache(0, tmp_path, 1 << 24).get("x")
    assert again is not None and torch.equal(again["key"], value["key"])
    assert cache.disk is not None and cache.disk.bytes == sum(p.stat().st_size for p in tmp_path.glob("*"))


def test_a_large_machine_stores_in_several_threads() -> None:
    assert [Workers(one, one).storers for one in (1, 2, 8, 16)] == [1, 1, 2, 4]
