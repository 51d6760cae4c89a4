"""The tasks of a farm: plan, pass, finish, check.

Passes and chunks run on any machine, in any order, several at once on one store, without its lock. This is
safe: a result is written atomically, and its name is the hash of its ingredients, so two tasks that compute
the same result write the same bytes under the same name. Such a task writes nothing else into the store. A
killed task continues from the stored results. The plan and the check hold the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from stm_plugin.configuration import configuration
from stm_plugin.errors import DeviceError, MatteError, PlateError, SettingsError, StmError, StoreError
from stm_plugin.farm.parts import PassName, job_address, pass_text
from stm_plugin.files.whole import DamagedFileError
from stm_plugin.planning.plan import make_plan
from stm_plugin.planning.quality import Advice, Quality, advise
from stm_plugin.planning.values import Pass, Plan, Request
from stm_plugin.propagation.context import PlateMovedOn
from stm_plugin.propagation.events import Event, FrameFinished, Progress
from stm_plugin.propagation.execution import Execution
from stm_plugin.propagation.frame_finisher import FrameOutput
from stm_plugin.propagation.memory_forecast import MemoryFit
from stm_plugin.propagation.propagation import NetworkFactory, Propagation
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.inputs import Inputs, inputs_of
from stm_plugin.shot.opening import check_frames, check_licences, open_plate
from stm_plugin.store.store import ShotStore, with_suffix

MOST_REPAIRS = 20
"""How often one task starts again because a stored result was damaged."""
WAIT_SECONDS = 600.0
"""To wait for the lock, before the plan and the check."""

Report = Callable[[int, int, int], None]
"""Is called with the steps done, all steps, and the frame."""


def no_report(done: int, total: int, frame: int) -> None:
    """Ignore progress."""


def ignore_notice(text: str) -> None:
    """Ignore an event."""


@dataclass(frozen=True)
class CheckReport:
    """The result of the check of a job.

    Attributes:
        problems: the fault of a frame, by frame.
        qualities: confidence and agreement of each computed frame.
        advice: where the next key would help most.
    """

    frames: int
    problems: dict[int, str]
    qualities: dict[int, Quality]
    advice: Advice | None

    def raise_if_wrong(self) -> None:
        """MatteError where a frame has a fault; the text names the first one."""
        if self.problems:
            first = min(self.problems)
            count = len(self.problems)
            others = "" if count == 1 else f" {count - 1} more frames are wrong."
            raise MatteError(
                f"{self.problems[first]}{others}",
                frame=first,
                hint="Run the tasks of these frames again: undamaged results are kept.",
            )


class FarmShot:
    """A shot in a task.

    Args:
        request: the frames of the job (of the chunk, for finishing).
        expects: the job's address; a shot that changed since the job was made is refused.
        plate: the path of the plate on this machine; that of the shot if None.
        network: makes the network; that of the settings' weights if None.

    Raises:
        StoreError, PlateError: the shot cannot be opened.
        LockedError, LicenceError: the configuration of this machine forbids a setting or the weights.
    """

    def __init__(
        self,
        folder: str | Path,
        request: Request,
        *,
        expects: str | None = None,
        plate: str | None = None,
        network: NetworkFactory | None = None,
        warn: Callable[[str], None] = ignore_notice,
    ) -> None:
        self.store = ShotStore.open(with_suffix(folder))
        self.request, self._expects = request, expects
        description = self.store.description()
        if plate and description.plate.kind == "files":
            description = replace(description, plate=replace(description.plate, text=plate))
        layers = configuration()
        settings = layers.on_this_machine(description.settings, description.chosen)
        layers.check(settings)
        check_licences(layers, settings, own_network=network is not None)
        # Only the holder of the lock may use the features on disk.
        description = replace(description, settings=replace(settings, disk_budget=0))
        self.description, self.settings = description, description.settings
        self.plate = open_plate(self.store, description.plate, self.settings)
        check_frames(self.plate, (request.first, request.last))
        self.propagation = Propagation(self.store, self.plate, description, network, warn)

    def __enter__(self) -> FarmShot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.propagation.close()

    @property
    def address(self) -> str:
        """The job's address, to compare with `expects`."""
        return job_address(self.propagation.facts(), self.settings)

    @property
    def inputs(self) -> Inputs:
        """The input files, which no output may overwrite."""
        return inputs_of(self.plate, self.settings, self.store.folder)

    def writer(self, out: str, *, overwrite: bool = False) -> MatteWriter:
        """The writer of this shot's mattes to a sequence."""
        channel, with_ids = self.settings.channel, self.settings.cryptomatte
        return MatteWriter(out, self.plate, channel=channel, with_ids=with_ids, overwrite=overwrite)

    def read_plan(self, only: PassName | None = None, report: Report = no_report) -> Plan:
        """The plan, with the present content of the plate on disk.

        Args:
            only: the pass whose frames are read; all if None.

        Raises:
            StoreError: the shot changed since the job was made.
            PlateError: a frame cannot be read.
        """
        if self._expects and self.address != self._expects:
            raise StoreError(
                "The shot, its weights or its settings changed since the job was made.",
                path=self.store.folder,
                hint="Write the bundle again, and check that all machines have the same installation.",
            )
        plan = self.propagation.plan(self.request)
        facts = plan.facts
        passes = [one for one in plan.passes if only in (None, one.name)]
        needed = {key.frame for key in facts.keys} | {frame for one in passes for frame in one.frames}
        if only is None:
            needed |= {one.frame for one in plan.frames}
        unknown = sorted(needed - set(facts.plate))
        found = dict(facts.plate)
        for number, frame in enumerate(unknown, 1):
            found[frame] = self.propagation.frames.load(frame).hash
            report(number, len(unknown), frame)
        if not unknown:
            return plan
        return make_plan(replace(facts, plate=found), self.request, self.store.has, self.store.history())

    # ---- the tasks ----

    def prepare(self, out: str, *, overwrite: bool = False, report: Report = no_report) -> Plan:
        """The first task: read the whole plate and check that the job can be done.

        Raises:
            StmError: an input is wrong, an output must not be written, or no key reaches a frame.
        """
        with self._locked():
            plan = self.read_plan(report=report)
            for one in plan.dirty:
                if one.state.value == "unreached":
                    raise MatteError(f"It cannot be computed: {one.why}.", frame=one.first)
            self.fit(plan)
            frames = [one.frame for one in plan.frames]
            self.writer(out, overwrite=overwrite).begin(self.inputs, self.store.folder, frames)
            return plan

    def fit(self, plan: Plan) -> MemoryFit:
        """The memory of this machine for a plan. DeviceError if it is too little."""
        fit = self.propagation.forecast(plan)
        if fit.reason:  # with lowered sizes this machine would write other bytes than the next one
            raise DeviceError(
                f"This machine has too little memory for the settings of the shot: {fit.reason}.",
                hint="Give the job larger machines, or lower working_size or memory_cap with `stm shot set`.",
            )
        return fit

    def run_pass(self, name: PassName, report: Report = no_report) -> int:
        """Compute the missing results of one pass; returns how many frames were computed or found.

        Raises:
            SettingsError: the plan has no such pass.
            StmError: for any other cause, with its frame; frames before it are kept.
        """
        for _ in range(MOST_REPAIRS):
            plan = self.read_plan(name)
            passed = _pass_of(plan, name)
            fit = self.fit(plan)
            self.propagation.keep_within(fit.run)
            steps = tuple(step for step in plan.compute_steps if step.passed.name == name)
            done = len(passed.frames) - len(steps)

            def on_event(event: Event, done: int = done, total: int = len(passed.frames)) -> None:
                if isinstance(event, Progress):
                    report(done + event.done, total, event.frame)

            try:
                results = self.propagation.finisher(replace(plan, steps=steps)).results
                Execution(self.propagation.context(plan), results, on_event, _never, _nothing).run()
            except DamagedFileError as damaged:
                damaged.path.unlink(missing_ok=True)
                continue
            except PlateMovedOn as moved:
                raise _moved(moved) from moved
            return len(steps)
        raise StoreError("Stored results keep being damaged.", path=self.store.folder, hint="Check the disk.")

    def finish(self, out: str, *, overwrite: bool = False, report: Report = no_report) -> int:
        """Write the mattes of the request's frames, without the network; returns how many were written.

        Raises:
            MatteError: a pass that a frame needs is not done; nothing was written.
            StmError: for any other cause, with its frame; mattes before it are kept.
        """
        plan = self.read_plan()
        try:
            self.propagation.check_done(plan)
        except MatteError as error:
            error.hint = "Its passes must be done first (`stm farm pass`)."
            raise
        frames = [one.frame for one in plan.frames]
        writer = self.writer(out, overwrite=overwrite)
        writer.begin(self.inputs, self.store.folder, frames)
        count = 0

        def on_event(event: Event) -> None:
            nonlocal count
            if isinstance(event, FrameFinished):
                count += 1
                report(count, len(frames), event.frame)

        try:
            self.propagation.export(plan, writer, on_event, _never)
        except MatteError as error:
            if isinstance(error.__cause__, DamagedFileError):
                error.hint = "Run its passes again (`stm farm pass`): it will be computed anew."
            raise
        writer.check_there()
        return sum(one.written for one in writer.written)

    def check(self, out: str, report: Report = no_report) -> CheckReport:
        """The last task: check that every result and matte exists, is whole and current; record qualities.

        The network is not used. Nothing is repaired.
        """
        with self._locked():
            plan = self.read_plan()
            writer = self.writer(out)
            problems: dict[int, str] = {}
            finisher = self.propagation.finisher(plan)
            context = self.propagation.context()
            with FrameOutput(context, finisher, None, lambda event: None) as output:
                for number, one in enumerate(plan.frames, 1):
                    try:
                        self.propagation.check_done(replace(plan, frames=(one,)))
                        with self.propagation.reading(one.frame):
                            output.submit(one.frame)
                            address = finisher.matte_address(one.frame)
                    except StmError as error:
                        problems[one.frame] = error.what
                        continue
                    path = writer.sequence.path(one.frame)
                    if not path.is_file():
                        problems[one.frame] = f"The matte {path} does not exist."
                    elif not writer.is_current(one.frame, address):
                        problems[one.frame] = f"The matte {path} is damaged, or not current."
                    report(number, len(plan.frames), one.frame)
            if not problems:
                writer.tidy([one.frame for one in plan.frames])
            return self._report(plan, problems)

    def _report(self, plan: Plan, problems: dict[int, str]) -> CheckReport:
        frames = {one.frame for one in plan.frames} - set(problems)
        found = {frame: one for frame, one in self.store.qualities().items() if frame in frames}
        advice = advise(found, {key.frame for key in plan.facts.keys})
        return CheckReport(len(plan.frames), problems, found, advice)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.store.lock.acquire(WAIT_SECONDS)
        try:
            yield
        finally:
            self.store.lock.release()


def _pass_of(plan: Plan, name: PassName) -> Pass:
    for one in plan.passes:
        if one.name == name:
            return one
    there = ", ".join(pass_text(one.name) for one in plan.passes) or "none"
    raise SettingsError(
        f"The shot has no pass {pass_text(name)}.", hint=f"It has {there}. Write the bundle again."
    )


def _moved(moved: PlateMovedOn) -> PlateError:
    return PlateError(
        "The plate changed during the run.",
        frame=moved.frame,
        hint="Wait until it is rendered, and run the task again: finished frames are kept.",
    )


def _never() -> bool:
    return False


def _nothing(frame: int) -> None:
    """Ignore a frame: passes write no mattes."""


def lowest(qualities: Iterable[Quality], count: int = 5) -> list[Quality]:
    """The frames with the least confidence."""
    return sorted(qualities, key=lambda one: (one.confidence, one.frame))[:count]
