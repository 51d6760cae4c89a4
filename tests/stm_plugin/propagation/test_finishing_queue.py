"""Submitted frames are finished in order, their number is bounded, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from stm_plugin.propagation.finishing_queue import FinishingQueue
from stm_plugin.propagation.workers import Workers


def test_what_follows_happens_here_and_in_order() -> None:
    worked: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    here = threading.get_ident()
    with FinishingQueue(
        lambda frame: worked.append((frame, threading.get_ident())),
        lambda frame, _: told.append((frame, threading.get_ident())),
    ) as queue:
        for frame in range(20):
            queue.submit(frame)
        queue.finish()
    assert [frame for frame, _ in worked] == list(range(20)) and here not in {thread for _, thread in worked}
    assert told == [(frame, here) for frame in range(20)]


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_frames_wait_than_are_allowed(count: int) -> None:
    workers = Workers(1, count)
    gates = [threading.Event() for _ in range(workers.frames_waiting + 1)]
    begun: list[int] = []

    def work(frame: int) -> None:
        begun.append(frame)
        assert gates[frame].wait(30)

    told: list[int] = []
    with FinishingQueue(work, lambda frame, _: told.append(frame), workers) as queue:
        for frame in range(workers.frames_waiting):
            queue.submit(frame)
        assert told == [] and len(begun) <= count
        gates[0].set()
        queue.submit(workers.frames_waiting)  # returns only when the first one is done
        assert told == [0]
        for gate in gates:
            gate.set()
        queue.finish()
    assert told == list(range(workers.frames_waiting + 1))


def test_several_workers_tell_in_order_whichever_is_done_first() -> None:
    told: list[int] = []
    last_is_done = threading.Event()

    def work(frame: int) -> None:
        if frame == 0:
            assert last_is_done.wait(10)
        elif frame == 2:
            last_is_done.set()

    with FinishingQueue(work, lambda frame, _: told.append(frame), Workers(1, 3)) as queue:
        for frame in range(3):
            queue.submit(frame)
        queue.finish()
    assert told == [0, 1, 2]


def fails_on(bad: int, done: list[int]) -> Callable[[int], None]:
    def work(frame: int) -> None:
        if frame == bad:
            raise OSError(f"frame {frame}")
        done.append(frame)

    return work


def test_an_error_comes_out_and_nothing_after_it_is_told() -> None:
    done: list[int] = []
    told: list[int] = []
    with (
        pytest.raises(OSError, match="frame 3"),
        FinishingQueue(fails_on(3, done), lambda frame, _: told.append(frame)) as queue,
    ):
        for frame in range(10):
            queue.submit(frame)
        queue.finish()
    assert told == [0, 1, 2]


def test_an_error_elsewhere_loses_no_frame_that_was_done() -> None:
    done: list[int] = []
    told: list[int] = []
    with pytest.raises(KeyError), FinishingQueue(done.append, lambda frame, _: told.append(frame)) as queue:
        queue.submit(1)
        queue.submit(2)
        raise KeyError
    assert told == done
