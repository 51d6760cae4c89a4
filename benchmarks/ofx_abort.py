"""Times how soon the OpenFX effect comes back when its host says stop, in the test host with the real engine.

    python benchmarks/ofx_abort.py                # all situations, 12 stops in each
    python benchmarks/ofx_abort.py --stops 40 --only starting
    python benchmarks/ofx_abort.py --binary STM.ofx.bundle/Contents/Linux-x86-64/STM.ofx

A stop is said at moments that are spread evenly over the time that the undisturbed action takes, and what
counts is the time from then until the action has ended. The host is Python: handing out pictures and looking
at its own clock is part of the figures. The design is held by tests/ofx_bridge/test_stopping.py, which times
nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.hosts.ofx_fixtures import REPOSITORY, EngineHome, load_build
from tests.hosts.ofx_host import ALPHA, FLOAT, HALF, OK, REPLY_NO, Clip, Effect, FloatArray, OfxHost

FIRST, LAST = 1001, 1030
PLATE = (854, 480)
BIG = (4096, 2160)
LIMIT_MS = 200.0
PATIENCE_SECONDS = 120.0
SETTLED_SECONDS = 0.2

Stops = list[float]
"""Milliseconds from the host's word to the end of the action."""


def texture(size: tuple[int, int], frame: int) -> FloatArray:
    """(h, w, 4): a smooth pattern that drifts; every frame is another."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    wave = 0.5 + 0.5 * np.sin((columns + 3 * frame) / 17) * np.cos(rows / 23)
    return np.stack([wave, wave * 0.5, 1 - wave, np.ones_like(wave)], axis=-1).astype(np.float32)


def disc(size: tuple[int, int], frame: int) -> FloatArray:
    """(h, w, 1): a mask."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot(columns - width * 0.4 - 4 * (frame - FIRST), rows - height / 2)
    return (distance < height / 4).astype(np.float32)[..., None]


def make_node(host: OfxHost, size: tuple[int, int], depth: str = HALF) -> Effect:
    """A node on a synthetic clip. Pictures are drawn once."""
    pictures: dict[int, FloatArray] = {}

    def plate(frame: int) -> FloatArray:
        return pictures.setdefault(frame, texture(size, frame))

    host.options.project = (float(size[0]), float(size[1]))
    frames = (FIRST, LAST)
    return host.create(
        {
            "Source": Clip(plate, frames=frames, size=size, depth=depth),
            "Mask": Clip(
                lambda frame: disc(size, frame), frames=frames, size=size, components=ALPHA, depth=depth
            ),
        }
    )


def press(node: Effect, button: str, frame: int) -> None:
    """Press a button that must work."""
    assert node.press(button, frame) == OK, node.persistent


class Word:
    """The host's word to stop, said at a moment that is fixed when `begin` is called."""

    def __init__(self, after_seconds: float) -> None:
        self._after = after_seconds
        self.said_at = float("inf")

    def begin(self) -> None:
        """The clock starts now, if it has not."""
        if self.said_at == float("inf"):
            self.said_at = time.perf_counter() + self._after

    def said(self) -> bool:
        """Whether it has been said."""
        return time.perf_counter() >= self.said_at


def seconds_of(work: Callable[[], object]) -> float:
    """How long undisturbed work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def stops_in(whole: float, count: int, act: Callable[[Word], None]) -> Stops:
    """Do it `count` times, each with the word at another moment; ends before the word do not count."""
    found: Stops = []
    for number in range(count):
        word = Word(whole * (number + 0.5) / count)
        act(word)
        ended = time.perf_counter()
        if ended >= word.said_at:
            found.append((ended - word.said_at) * 1e3)
    return found


def render_with(node: Effect, word: Word, frame: int, **options: bool) -> None:
    """A render that hears the word, whose clock starts when the host has handed out the source."""
    source = node.clips["Source"].source
    assert source is not None
    source.reads.clear()

    def abort() -> int:
        if source.reads:
            word.begin()
        return int(word.said())

    node.abort_answer = abort
    node.render(frame, **options)  # type: ignore[arg-type]
    node.abort_answer = lambda: 0


def stops_of_render(node: Effect, count: int, frame: Callable[[int], int], **options: bool) -> Stops:
    """Stops of renders; `frame` gives the frame of every number, that of 0 is rendered undisturbed."""
    never = Word(PATIENCE_SECONDS)
    render_with(node, never, frame(0), **options)
    whole = time.perf_counter() - never.said_at + PATIENCE_SECONDS
    number = iter(range(1, count + 1))
    return stops_in(whole, count, lambda word: render_with(node, word, frame(next(number)), **options))


# ---- situations


def rendering_in_order(host: OfxHost, home: EngineHome, count: int) -> Stops:
    """The host renders in order and the engine computes the frame."""
    node = make_node(host, PLATE)
    press(node, "setKey", FIRST)
    node.render(FIRST + 1, in_order=True)
    return stops_of_render(node, count, lambda number: FIRST + 2 + (number + 1) // 2, in_order=True)


def waiting_for_a_frame(host: OfxHost, home: EngineHome, count: int) -> Stops:
    """Another node's propagation will make the frame, and the render waits for it."""
    node = make_node(host, PLATE)
    press(node, "setKey", FIRST)
    shower = host.create({"Source": node.clips["Source"].source}, saved=node.saved())  # type: ignore[dict-item]
    shower.set("maskFrom", 0)
    ends = threading.Event()
    node.progress_answer = lambda part: REPLY_NO if ends.is_set() else OK
    propagation = threading.Thread(target=node.press, args=("propagateForward", FIRST))
    propagation.start()
    while not node.progress_values or node.progress_values[-1] <= 0.3:
        time.sleep(0.05)
    found = stops_in(1.0, count, lambda word: render_with(shower, word, LAST))
    ends.set()
    propagation.join()
    return found


def cancelling_a_propagation(host: OfxHost, home: EngineHome, count: int) -> Stops:
    """The artist presses Cancel in the host's progress bar."""
    node = make_node(host, PLATE)
    press(node, "setKey", FIRST)

    def act(word: Word) -> None:
        word.begin()
        node.progress_answer = lambda part: REPLY_NO if word.said() else OK
        node.press("propagateForward", FIRST)

    return stops_in(4.0, count, act)


def pressing_stop(host: OfxHost, home: EngineHome, count: int) -> Stops:
    """The artist presses Stop from the interface's thread while another computes."""
    node = make_node(host, PLATE)
    press(node, "setKey", FIRST)

    def act(word: Word) -> None:
        propagation = threading.Thread(target=node.press, args=("propagateForward", FIRST))
        propagation.start()
        word.begin()
        while not word.said():
            time.sleep(0.001)
        node.press("stop", FIRST)
        propagation.join()

    return stops_in(4.0, count, act)


def pushing_a_big_plate(host: OfxHost, home: EngineHome, count: int) -> Stops:
    """4096x2160 RGBA float, 142 MB: hashed, given to the engine; then the matte comes back."""
    node = make_node(host, BIG, FLOAT)
    source = node.clips["Source"].source
    assert source is not None
    read = source.read
    press(node, "setKey", FIRST)
    changing = iter(range(1_000_000))

    def changed(frame: int) -> FloatArray | None:
        picture = read(FIRST)
        assert picture is not None
        picture[0, 0, 0] = next(changing)
        return picture

    source.read = changed
    return stops_of_render(node, count, lambda number: FIRST)


def rendering_a_big_picture(host: OfxHost, home: EngineHome, count: int) -> Stops:
    """The matte of 4096x2160 is there: it is fetched and the picture is written."""
    node = make_node(host, BIG, FLOAT)
    press(node, "setKey", FIRST)
    return stops_of_render(node, count, lambda number: FIRST)


def starting_the_engine(host: OfxHost, home: EngineHome, count: int) -> Stops:
    """The engine has been killed and the render starts another."""
    node = make_node(host, PLATE)
    press(node, "setKey", FIRST)
    saved = node.saved()
    found: Stops = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:

        def start(after: float) -> tuple[float, Stops]:
            home.kill()
            time.sleep(SETTLED_SECONDS)
            return pool.submit(start_stopped, host.binary, saved, after).result()

        whole, _ = start(PATIENCE_SECONDS)
        for number in range(count):
            found += start(whole * (number + 0.5) / count)[1]
    return found


def start_stopped(binary: Path, saved: Mapping[str, Any], after: float) -> tuple[float, Stops]:
    """One render in a host process of its own, which starts an engine; then a whole one: one is there.

    An effect starts only so many engines a minute: this is why it is not done in one process.

    Returns:
        Seconds of the first render, and the stop if there was one.
    """
    host = OfxHost(binary)
    node = make_node(host, PLATE)
    for name, value in saved.items():
        node.params[name].value = value

    def act(word: Word) -> None:
        word.begin()
        node.abort_answer = lambda: int(word.said())
        node.render(FIRST)
        node.abort_answer = lambda: 0

    found: Stops = []
    whole = seconds_of(lambda: found.extend(stops_in(2 * after, 1, act)))
    assert node.render(FIRST)[0] == OK, node.persistent
    return whole, found


SITUATIONS: dict[str, Callable[[OfxHost, EngineHome, int], Stops]] = {
    "computing": rendering_in_order,
    "waiting": waiting_for_a_frame,
    "cancel": cancelling_a_propagation,
    "stop": pressing_stop,
    "pushing": pushing_a_big_plate,
    "picture": rendering_a_big_picture,
    "starting": starting_the_engine,
}


@contextmanager
def engine_of_its_own() -> Iterator[EngineHome]:
    """An engine that nobody else uses, ended and cleared away at the end."""
    home = EngineHome(Path(tempfile.mkdtemp(prefix="stm-")), Path(tempfile.mkdtemp(prefix="stm-home-")))
    os.environ |= {
        "STM_RUNTIME_DIR": str(home.runtime),
        "STM_ENGINE_PYTHON": sys.executable,
        "STM_ENGINE_ROOT": str(REPOSITORY),
        "HOME": str(home.home),
    }
    try:
        yield home
    finally:
        home.end()
        shutil.rmtree(home.runtime, ignore_errors=True)
        shutil.rmtree(home.home, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and say; 1 if any stop took longer than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stops", type=int, default=12, help="stops in each situation (12)")
    parser.add_argument("--only", choices=sorted(SITUATIONS), help="one situation")
    parser.add_argument("--binary", type=Path, help="the effect; else one is built")
    asked = parser.parse_args(arguments)
    chosen = {asked.only: SITUATIONS[asked.only]} if asked.only else SITUATIONS
    slowest = 0.0
    with engine_of_its_own() as home, tempfile.TemporaryDirectory() as folder:
        binary = asked.binary
        if binary is None:
            build = load_build()
            bundle = build.build(Path(folder))
            binary = bundle / "Contents" / build.host_target().folder / build.BINARY_NAME
        for name, situation in chosen.items():
            host = OfxHost(binary)
            found = situation(host, home, asked.stops)
            assert host.violations == [], host.violations
            if not found:
                print(f"{name:10} every action had ended before the word", flush=True)
                continue
            slowest = max(slowest, *found)
            figures = f"median {statistics.median(found):4.0f} ms, slowest {max(found):4.0f} ms"
            what = (situation.__doc__ or "").splitlines()[0]
            print(f"{name:10} {len(found):3} stops, {figures}   {what}", flush=True)
    return int(slowest > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
