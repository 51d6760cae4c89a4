"""The executor: it carries out a plan and makes no decisions.

Every result of the network is rounded to the stored form before it is used. The memory of a pass is always
made from stored results, so a resumed pass ends with the same bytes.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.inference.allocator import release_freed_memory
from model.network.memory import MemoryBank
from stm_plugin.errors import PropagationCancelled, WeightsError, concerning
from stm_plugin.planning.values import ComputeStep, FinishStep, Pass, PassName, Plan, Step
from stm_plugin.propagation.context import PropagationContext
from stm_plugin.propagation.events import Event, FrameComputed, Progress
from stm_plugin.propagation.memory_forecast import device_errors
from stm_plugin.propagation.queries_ahead import QueriesAhead
from stm_plugin.propagation.results import Results
from stm_plugin.propagation.storing import Storing
from stm_plugin.store.store import quantise
from stm_plugin.windows import FloatArray

_STEPS_FOR_ESTIMATE = 12
_STEPS_AHEAD = 3
"""Steps that are looked at for each reader: some finish frames that are computed."""
_STEPS_TO_A_RELEASE = 10
"""Computed frames after which freed memory is returned to the system, where no forecast bounds it. Without it
the gaps of the heap grow by 3 to 6 MB a frame at 480p. Getting memory again takes a hundredth of a frame's
time."""


@dataclass(frozen=True)
class _Begun:
    """A step that was begun. `complete` waits for its result and keeps it; True where the store had it."""

    number: int
    step: Step
    complete: Callable[[], bool]


class Execution:
    """One run of a plan.

    As many passes as the context says are computed side by side: while the device computes a frame of one,
    the result of the other is copied back and stored. Steps are begun and completed in the plan's order.

    Args:
        results: of the plan.
        emit: is called with every event.
        cancelled: is called before every step.
        submit: is called with every frame whose results are complete, in the plan's order.
    """

    def __init__(
        self,
        context: PropagationContext,
        results: Results,
        emit: Callable[[Event], None],
        cancelled: Callable[[], bool],
        submit: Callable[[int], None],
    ) -> None:
        self._context, self._plan, self.results = context, results.plan, results
        self._emit, self._cancelled, self._submit = emit, cancelled, submit
        self._queries = QueriesAhead(results.query)
        self._clock = _Clock(results.plan)
        self._begun: deque[_Begun] = deque()
        self._banks: OrderedDict[PassName, tuple[int, MemoryBank]] = OrderedDict()
        self._computed = 0

    def run(self) -> None:
        """Carry out the whole plan.

        Raises:
            PropagationCancelled: the user stopped it; everything done so far is on disk.
            PlateMovedOn: a frame has other pixels than planned; make a new plan.
            DamagedFileError: a stored result is damaged; remove it and make a new plan.
            StmError: for any other cause, which its text names.
        """
        threads = self._context.loader.workers.storers
        with Storing(threads) as storing, self.results.stored_by(storing), self._queries:
            self._walk()

    def _walk(self) -> None:
        for number, step in enumerate(self._plan.steps):
            while not self._may_begin(step):
                self._complete_next()
            try:
                self._begun.append(_Begun(number, step, self._begin(number, step)))
            except Exception:
                self._complete_all()  # what was begun before is kept
                raise
        self._complete_all()

    def _may_begin(self, step: Step) -> bool:
        """Whether so few frames wait for the device that this step may be begun, none of the same pass."""
        if not self._begun or isinstance(self._begun[0].step, FinishStep):
            return not self._begun
        waiting = [one.step.passed.name for one in self._begun if isinstance(one.step, ComputeStep)]
        own = isinstance(step, ComputeStep) and step.passed.name in waiting
        return not own and len(waiting) < self._context.turns

    def _begin(self, number: int, step: Step) -> Callable[[], bool]:
        """Begin a step; returns what completes it."""
        if self._cancelled():
            raise PropagationCancelled(
                "The propagation was stopped.",
                frame=step.frame,
                hint="Finished frames are kept; running it again continues from here.",
            )
        if isinstance(step, FinishStep):
            return lambda: False
        with concerning(step.frame):
            return self._begin_frame(step, self._next_frames(number))

    def _complete_all(self) -> None:
        while self._begun:
            self._complete_next()

    def _complete_next(self) -> None:
        """Complete the step that was begun first. After an error nothing of what was begun goes on."""
        one = self._begun.popleft()
        step = one.step
        if isinstance(step, ComputeStep):
            with concerning(step.frame):
                reused = one.complete()
            self._emit(FrameComputed(step.frame, step.passed.direction, reused))
        else:
            self._submit(step.frame)
        left = self._clock.tick(one.number, step)
        self._emit(Progress(one.number + 1, len(self._plan.steps), step.frame, left))

    def _begin_frame(self, step: ComputeStep, upcoming: list[int]) -> Callable[[], bool]:
        """Begin one frame of one pass.

        Args:
            upcoming: the next frames that the network will look at.
        """
        context, results = self._context, self.results
        address = results.pass_address(step.passed, step.position)
        if context.store.has(address):
            return lambda: True
        for frame in upcoming:
            if not results.has_query(frame):
                context.loader.read_ahead(frame)
        network = context.network()
        device = str(network.device)
        with device_errors(device, step.frame):
            query = self._queries.take(step.frame)
            on_card = network.device.type == "cuda"
            if upcoming and not on_card:
                self._queries.begin(upcoming[0])
            found = network.begin_segment(query, self._bank(step.passed, step.position + 1))
            if upcoming and on_card:  # the card has work while this thread waits and stores
                self._queries.begin_here(upcoming[0])

        def complete() -> bool:
            with device_errors(device, step.frame):
                computed = found().numpy()  # (K, h, w)
            check_finite(computed, step.frame, context.weights)
            results.put(address, step.frame, quantise(computed))
            self._computed += 1
            context.hold_memory()
            if context.resident_limit is None and self._computed % _STEPS_TO_A_RELEASE == 0:
                release_freed_memory()
            return False

        return complete

    def _bank(self, passed: Pass, step: int) -> MemoryBank:
        """The memory of a pass for the frame at `step` (the key is step 0).

        It is the memory for the frame before plus one entry, or built anew from the store.
        """
        context, results = self._context, self.results
        before, bank = self._banks.pop(passed.name, (-1, None))
        if bank is not None and before == step - 1:
            bank.write(before, results.entry(passed, before))
        else:
            bank = None
            while len(self._banks) >= context.turns:  # frees that of another pass before this one is made
                self._banks.popitem(last=False)
            own = results.entry(passed, 0)
            bank = context.network().new_bank(context.rule, own, capacity=context.memory_cap, permanent=0)
            for held in context.rule.steps_in_memory(step, context.memory_cap):
                bank.restore(held, own if held == 0 else results.entry(passed, held))
        self._banks[passed.name] = step, bank
        return bank

    def _next_frames(self, number: int) -> list[int]:
        """The next frames that the network will look at, as many as there are readers."""
        frames: list[int] = []
        most = self._context.loader.workers.readers
        for step in self._plan.steps[number + 1 : number + 1 + _STEPS_AHEAD * most]:
            if isinstance(step, ComputeStep) and len(frames) < most:
                frames.append(step.frame)
        return frames


def check_finite(probabilities: FloatArray, frame: int, weights: str) -> None:
    """Check that all values (K, h, w) of the network are finite. WeightsError where one is not."""
    if not np.isfinite(probabilities).all():
        raise WeightsError(
            "The network returns values that are not numbers (NaN or Inf), so there is no matte.",
            frame=frame,
            path=weights or None,
            hint="The weights are damaged, or the precision is too small for them: try --precision float32.",
        )


class _Clock:
    """Estimates the time left from the last steps of each kind."""

    def __init__(self, plan: Plan) -> None:
        self._left = {
            ComputeStep: len(plan.compute_steps),
            FinishStep: len(plan.steps) - len(plan.compute_steps),
        }
        self._recent: dict[type, deque[float]] = {
            ComputeStep: deque(maxlen=_STEPS_FOR_ESTIMATE),
            FinishStep: deque(maxlen=_STEPS_FOR_ESTIMATE),
        }
        self._last = time.monotonic()

    def tick(self, number: int, step: Step) -> float | None:
        """Count a finished step; returns the seconds until the last step ends."""
        now = time.monotonic()
        if number > 0:  # the first step loads the network: its time is not that of the others
            self._recent[type(step)].append(now - self._last)
        self._last = now
        self._left[type(step)] -= 1
        left = 0.0
        for kind, count in self._left.items():
            recent = self._recent[kind]
            if count and not recent:
                if kind is ComputeStep:
                    return None
                continue
            left += count * sum(recent) / max(1, len(recent))
        return left
