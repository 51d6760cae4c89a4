"""Threads of torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model.inference.threads import use_threads


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_a_thread_chooses_for_itself_alone() -> None:
    here, later = torch.get_num_threads(), threads_of_a_new_thread()
    with ThreadPoolExecutor(1, initializer=use_threads, initargs=(3,)) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == here
        assert threads_of_a_new_thread() == later


def test_without_room_for_one_more_thread_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    here = torch.get_num_threads()
    monkeypatch.setattr(ThreadPoolExecutor, "submit", full)
    use_threads(here + 1)
    assert torch.get_num_threads() == here
