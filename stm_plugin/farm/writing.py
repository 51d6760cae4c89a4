"""Making the job of a shot, and writing its bundle; the command line and the page of `stm review` call it."""

from __future__ import annotations

from pathlib import Path

from stm_plugin.farm.bundle import FILES, Job, job_of, texts
from stm_plugin.farm.parts import DEFAULT_CHUNK, parts_of
from stm_plugin.farm.work import FarmShot
from stm_plugin.files.outputs import Given, listed_outputs
from stm_plugin.files.whole import write_atomically
from stm_plugin.planning.values import Request
from stm_plugin.store.store import with_suffix


def make_job(
    shot: Path,
    mattes: str | None = None,
    request: Request | None = None,
    chunk: int = DEFAULT_CHUNK,
    stm: str = "stm",
) -> Job:
    """The job of a shot. Nothing is written and the lock is not needed.

    Args:
        shot: the store, with or without its suffix.
        mattes: the sequence that the job writes; NAME.####.exr beside the shot if None.
        chunk: frames of a finishing task.
        stm: the command `stm` on the farm's machines.

    Raises:
        OutputError: the mattes must not be written.
        StmError: the shot cannot be opened, or it does not fit this machine.
    """
    folder = with_suffix(shot)
    out = mattes or str(folder.with_name(f"{folder.stem}.####.exr"))
    with FarmShot(folder, request or Request()) as opened:
        made = opened.propagation.plan(opened.request)
        opened.writer(out).check(opened.inputs, opened.store.folder, [one.frame for one in made.frames])
        return job_of(opened, made, parts_of(made, chunk), out, stm)


def write_bundle(job: Job, folder: Path, *, overwrite: bool = False) -> None:
    """Write the files of a job into a folder.

    Raises:
        OutputError: a file is an input, or not made by STM; nothing was written.
        StoreError: the folder cannot be written.
    """
    given = [Given("an input", one) for one in job.inputs]
    with listed_outputs(folder, [folder / name for name in FILES], given, overwrite):
        for name, text in texts(job).items():
            write_atomically(folder / name, text.encode())


def tasks_of(job: Job) -> str:
    """`2 passes, 5 chunks of frames`."""
    passes, chunks = len(job.parts.passes), len(job.parts.chunks)
    return (
        f"{passes} {'pass' if passes == 1 else 'passes'}, "
        f"{chunks} {'chunk' if chunks == 1 else 'chunks'} of frames"
    )
