"""Frames handed over come back in order, within bounds, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from stm_plugin.delivery import FRAMES_WAITING, Delivery


def test_what_follows_happens_here_and_in_order() -> None:
    worked: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    here = threading.get_ident()
    with Delivery(
        lambda frame: worked.append((frame, threading.get_ident())),
        lambda frame, _: told.append((frame, threading.get_ident())),
    ) as delivery:
        for frame in range(20):
            delivery.hand_over(frame)
        delivery.finish()
    assert [frame for frame, _ in worked] == list(range(20)) and here not in {thread for _, thread in worked}
    assert told == [(frame, here) for frame in range(20)]


def test_no_more_frames_wait_than_are_allowed() -> None:
    gate = threading.Semaphore(0)
    begun = 0

    def work(frame: int) -> None:
        nonlocal begun
        begun += 1
        gate.acquire()

    told: list[int] = []
    with Delivery(work, lambda frame, _: told.append(frame)) as delivery:
        for frame in range(FRAMES_WAITING):
            delivery.hand_over(frame)
        assert told == [] and begun <= 1
        gate.release()
        delivery.hand_over(FRAMES_WAITING)  # returns only when the first one is done
        assert told == [0]
        for _ in range(FRAMES_WAITING):
            gate.release()
        delivery.finish()
    assert told == list(range(FRAMES_WAITING + 1))


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
        Delivery(fails_on(3, done), lambda frame, _: told.append(frame)) as delivery,
    ):
        for frame in range(10):
            delivery.hand_over(frame)
        delivery.finish()
    assert told == [0, 1, 2]


def test_an_error_elsewhere_loses_no_frame_that_was_done() -> None:
    done: list[int] = []
    told: list[int] = []
    with pytest.raises(KeyError), Delivery(done.append, lambda frame, _: told.append(frame)) as delivery:
        delivery.hand_over(1)
        delivery.hand_over(2)
        raise KeyError
    assert told == done
