"""Threads of torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
