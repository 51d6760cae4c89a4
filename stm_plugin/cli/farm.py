"""`stm farm`: one shot on many machines; `stm shot merge`: results from several folders."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stm_plugin.cli.console import counted, output
from stm_plugin.cli.guard import Overwrite, Wait
from stm_plugin.cli.propagate import parse_keys, parse_range
from stm_plugin.errors import as_stm_error
from stm_plugin.planning.values import Request

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from model.training.trainer import Losses, Trainer
    from stm_plugin.farm.bundle import Job
    from stm_plugin.farm.work import CheckReport

STEPS_A_REPORT = 10

app = typer.Typer(help="One shot on many machines: a job bundle, and the tasks in it.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The shot store, NAME.stmshot.")]
Frames = Annotated[str | None, typer.Option(help="FIRST-LAST of the job; the whole plate if not given.")]
Out = Annotated[str, typer.Option(help="The matte sequence: matte.####.exr.")]
Expects = Annotated[str | None, typer.Option(help="The job's address: refuse a shot that has changed.")]
PlateHere = Annotated[str | None, typer.Option("--plate", help="The path of the plate on this machine.")]
OpenJd = Annotated[bool, typer.Option("--openjd", help="Print progress and failure in OpenJD's format.")]
Chunk = Annotated[int, typer.Option(help="Frames of a finishing task.")]
Mattes = Annotated[
    str | None, typer.Option(help="The matte sequence; NAME.####.exr beside the shot if not given.")
]
Form = Literal["lines", "json", "opencue"]
Archive = Annotated[Path, typer.Argument(help="The packed run, from `stm train pack`.")]
Minutes = Annotated[float, typer.Option(min=1, help="For everything.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Workers = Annotated[int, typer.Option(min=0, max=64, help="Processes that prepare samples.")]
Machines = Annotated[int, typer.Option(min=1, help="Machines that train together, a task each.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes of each machine; one for each GPU.")]
Rendezvous = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Where several machines meet: one of them, and a free port.")
]
Stm = Annotated[str, typer.Option(help="The command `stm` on the farm's machines.")]


@app.command()
def bundle(
    shot: Annotated[Path, typer.Argument(help="A shot store; or, with --key, a plate.")],
    out: Annotated[Path, typer.Option(help="The folder of the bundle.")],
    mattes: Mattes = None,
    frames: Frames = None,
    key: Annotated[list[str] | None, typer.Option(help="FRAME=MASK: make a shot of a plate first.")] = None,
    chunk: Chunk = 20,
    stm: Stm = "stm",
    overwrite: Overwrite = False,
) -> None:
    """Write a job bundle in the open job format."""
    from stm_plugin.farm.bundle import PLAIN_VALUES, TEMPLATE
    from stm_plugin.farm.writing import tasks_of, write_bundle

    with _shot(shot, parse_keys(key) if key else {}, out) as folder:
        job = _job(folder, mattes, frames, chunk, stm)
        write_bundle(job, out, overwrite=overwrite)
    text = f"{out}: {tasks_of(job)}\nTo run it here:"
    output.print(text, highlight=False, markup=False, soft_wrap=True)
    line = f"openjd run {out / TEMPLATE} --job-param file://{out / PLAIN_VALUES}"
    output.print(f"{line} --step check --run-dependencies", highlight=False, markup=False, soft_wrap=True)


@app.command()
def commands(
    shot: Folder,
    mattes: Mattes = None,
    frames: Frames = None,
    chunk: Chunk = 20,
    stm: Stm = "stm",
    form: Annotated[
        Form, typer.Option("--format", help="Lines, one JSON object per task, or a script for OpenCue.")
    ] = "lines",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print the tasks as plain command lines, each with the tasks that it needs."""
    from stm_plugin.farm.commands import commands as commands_of
    from stm_plugin.farm.outline import outline_script

    job = _job(shot, mattes, frames, chunk, stm)
    if form == "opencue" and not as_json:
        print(outline_script(job), end="")
        return
    for one in commands_of(job):
        if as_json or form == "json":
            print(json.dumps(one.to_json(), ensure_ascii=False))
        else:
            print(f"# {one.name}, after {', '.join(one.after)}" if one.after else f"# {one.name}")
            print(one.line)


@app.command()
def training(
    archive: Archive,
    out: Annotated[Path, typer.Option(help="The folder of the bundle.")],
    result: Annotated[
        Path | None, typer.Option(help="What the task writes; OUT/result.tar if not given.")
    ] = None,
    minutes: Minutes = 30.0,
    device: Device = "cuda",
    workers: Workers = 8,
    machines: Machines = 1,
    processes: Processes = 1,
    rendezvous: Rendezvous = "",
    stm: Stm = "stm",
    overwrite: Overwrite = False,
) -> None:
    """Write a job bundle that trains from a packed run: one task for each machine."""
    from stm_plugin.farm.bundle import FILES, PLAIN_VALUES, TEMPLATE
    from stm_plugin.farm.training import Group, TrainingJob, check_files, check_group, training_texts
    from stm_plugin.files.outputs import Given, listed_outputs
    from stm_plugin.files.whole import write_atomically

    group = Group(machines, processes, rendezvous)
    job = TrainingJob(archive, result or out / "result.tar", minutes, device, workers, stm, group)
    check_files(archive, job.result)
    check_group(archive, group)
    given = [Given("the packed run", archive)]
    with listed_outputs(out, [out / name for name in FILES], given, overwrite):
        for name, text in training_texts(job).items():
            write_atomically(out / name, text.encode())
    line = f"openjd run {out / TEMPLATE} --job-param file://{out / PLAIN_VALUES} --step train"
    lines = (
        [f"{line} --task-param Machine={one}" for one in range(1, machines + 1)] if machines > 1 else [line]
    )
    text = f"{out}: {counted(machines, 'task')}{', to run at the same time' if machines > 1 else ''}"
    output.print("\n".join((text, "To run it here:", *lines)), highlight=False, markup=False, soft_wrap=True)
    home = f"stm train collect {job.result} RUN"
    output.print(f"Then: {home}", highlight=False, markup=False, soft_wrap=True)


@app.command("train")
def run_training(
    archive: Archive,
    result: Annotated[Path, typer.Argument(help="The file to write, for `stm train collect`.")],
    minutes: Minutes = 30.0,
    device: Device = "cuda",
    workers: Workers = 8,
    scratch: Annotated[Path | None, typer.Option(help="A folder for what is removed at the end.")] = None,
    machines: Machines = 1,
    processes: Processes = 1,
    rendezvous: Rendezvous = "",
    openjd: OpenJd = False,
) -> None:
    """A task: train from a packed run as `stm train timed` does. A result of an earlier run is replaced."""
    from model.training.processes import is_first
    from stm_plugin.farm.training import Group, check_files, check_group, train, train_together

    group = Group(machines, processes, rendezvous)
    with _reports(openjd):
        if group.size > 1:
            check_files(archive, result)
            check_group(archive, group)
            words = ["farm", "train", "--minutes", f"{minutes:g}", "--device", device]
            words += ["--workers", str(workers), *(["--scratch", str(scratch)] if scratch else [])]
            words += [*(["--openjd"] if openjd else []), "--", str(archive), str(result)]
            train_together(words, group)
            return

        def progress(trainer: Trainer, losses: Losses) -> None:
            if trainer.step % STEPS_A_REPORT or not is_first():
                return
            text = f"step {trainer.step} of {trainer.config.steps}, loss {float(losses.total):.3f}"
            if openjd:
                _say(f"openjd_progress: {100 * trainer.step / trainer.config.steps:.1f}")
            _say(f"openjd_status: {text}" if openjd else text)

        train(archive, result, minutes, device=device, workers=workers, scratch=scratch, report=progress)
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{result} written")


@app.command()
def activate() -> None:
    """Print which installation a farm's session uses."""
    from importlib.metadata import version

    _say(f"openjd_status: STM {version('stm-nuke')} at {sys.prefix}")


@app.command()
def plan(
    shot: Folder,
    out: Out,
    frames: Frames = None,
    expects: Expects = None,
    plate: PlateHere = None,
    openjd: OpenJd = False,
    overwrite: Overwrite = False,
) -> None:
    """The first task: read the plate and check all inputs before anything is computed."""
    from stm_plugin.farm.work import FarmShot

    with _reports(openjd) as report, FarmShot(shot, _request(frames), expects=expects, plate=plate) as opened:
        made = opened.prepare(out, overwrite=overwrite, report=report)
        print(f"{counted(len(made.compute_steps), 'frame')} through the network")


@app.command("pass")
def run_pass(
    shot: Folder,
    name: Annotated[str, typer.Argument(metavar="PASS", help="KEY:forward or KEY:backward.")],
    frames: Frames = None,
    expects: Expects = None,
    plate: PlateHere = None,
    openjd: OpenJd = False,
) -> None:
    """A task: run one pass of the plan. Several run at once."""
    from stm_plugin.farm.parts import parse_pass
    from stm_plugin.farm.work import FarmShot

    with _reports(openjd) as report, FarmShot(shot, _request(frames), expects=expects, plate=plate) as opened:
        computed = opened.run_pass(parse_pass(name), report)
        print(f"{name}: {counted(computed, 'frame')} computed")


@app.command()
def finish(
    shot: Folder,
    frames: Annotated[str, typer.Argument(help="FIRST-LAST.")],
    out: Out,
    expects: Expects = None,
    plate: PlateHere = None,
    openjd: OpenJd = False,
    overwrite: Overwrite = False,
) -> None:
    """A task: write the mattes of some frames whose passes are done. Several run at once."""
    from stm_plugin.farm.work import FarmShot

    with _reports(openjd) as report, FarmShot(shot, _request(frames), expects=expects, plate=plate) as opened:
        written = opened.finish(out, overwrite=overwrite, report=report)
        print(f"{frames}: {counted(written, 'matte')} written")


@app.command()
def check(
    shot: Folder,
    out: Out,
    frames: Frames = None,
    expects: Expects = None,
    plate: PlateHere = None,
    openjd: OpenJd = False,
) -> None:
    """The last task: check that every matte exists, is whole and current; print its confidence."""
    from stm_plugin.farm.work import FarmShot

    with _reports(openjd) as report, FarmShot(shot, _request(frames), expects=expects, plate=plate) as opened:
        found = opened.check(out, report)
        _print_report(found)
        found.raise_if_wrong()


def merge(
    shot: Folder,
    sources: Annotated[list[Path], typer.Argument(metavar="FROM...", help="Other folders of the same shot.")],
    wait: Wait = 0.0,
) -> None:
    """Copy the undamaged results from other folders of the same shot."""
    from stm_plugin.farm.merge import merge as merge_folders

    for one in merge_folders(shot, sources, wait=wait):
        text = f"{one.folder}: {counted(one.copied, 'result')} copied, {one.known} existed"
        output.print(text, highlight=False, markup=False, soft_wrap=True)
        for path in one.damaged:
            output.print(f"{path}: damaged; left out", highlight=False, markup=False, soft_wrap=True)


def _job(shot: Path, mattes: str | None, frames: str | None, chunk: int, stm: str) -> Job:
    from stm_plugin.farm.writing import make_job

    return make_job(shot, mattes, _request(frames), chunk, stm)


@contextmanager
def _shot(shot: Path, keys: dict[int, str], out: Path) -> Iterator[Path]:
    """The shot store; with keys, a new one of a plate beside the bundle, removed where the bundle fails."""
    from stm_plugin.shot.shot import Shot
    from stm_plugin.store.description import PlateDescription

    if not keys:
        yield shot
        return
    folder = out.with_name(f"{out.name}.stmshot")
    existed = folder.exists()
    description = PlateDescription("files", str(shot.expanduser().absolute()))
    made = Shot.create(folder, description)
    try:
        with made:
            for frame, mask in keys.items():
                made.add_key(frame, mask, allow_empty=len(keys) > 1)
        yield folder
    except BaseException:
        if not existed:  # a second try with the right input must not find half a shot
            shutil.rmtree(folder)
        raise


def _request(frames: str | None) -> Request:
    return Request(*(parse_range(frames) or (None, None)))


@contextmanager
def _reports(openjd: bool) -> Iterator[Callable[[int, int, int], None]]:
    """Yields a function that reports progress. With `openjd`, errors are printed in OpenJD's format, too."""

    def report(done: int, total: int, frame: int) -> None:
        if openjd:
            _say(f"openjd_progress: {100 * done / max(1, total):.1f}")
            _say(f"openjd_status: frame {frame}, {done} of {total}")
        else:
            print(f"frame {frame}, {done} of {total}", flush=True)

    try:
        yield report
    except Exception as error:
        if openjd:
            _say(f"openjd_fail: {' '.join(str(as_stm_error(error) or error).split())}")
        raise


def _say(line: str) -> None:
    print(line, flush=True)


def _print_report(found: CheckReport) -> None:
    from stm_plugin.farm.work import lowest

    print(f"{counted(found.frames, 'frame')}, {len(found.problems)} wrong")
    for frame, problem in sorted(found.problems.items()):
        print(f"frame {frame}: {problem}")
    if found.qualities:
        mean = sum(one.confidence for one in found.qualities.values()) / len(found.qualities)
        least = ", ".join(f"{one.frame} ({one.confidence:.2f})" for one in lowest(found.qualities.values()))
        print(f"mean confidence {mean:.3f}; least on {least}")
    if found.advice is not None:
        print(f"The next key would help most on {found.advice.text}.")
