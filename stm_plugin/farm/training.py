"""A job bundle that trains from a packed run within a given time: one task for each machine.

Several machines find each other by `torchrun` at an address, the rendezvous. Tasks of the open job format of
2023-09 do not know of each other: the address is a parameter, and all tasks must run at the same time.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.training.archive import is_packed, is_result, packed_config, train_for
from model.training.processes import is_first, joined_processes
from model.training.trainer import Losses, Trainer
from stm_plugin.errors import OutputError, SettingsError
from stm_plugin.farm.bundle import (
    ASSETS,
    PLAIN_VALUES,
    SPECIFICATION,
    TEMPLATE,
    VALUES,
    environment,
    file_text,
    stm_parameter,
    value_list,
)
from stm_plugin.files.outputs import Given, check_outputs
from stm_plugin.files.whole import store_error

_MEMORY = 8192
"""MiB of RAM that the task asks for: the samples of eight workers, and the network."""
_SECONDS_TO_STOP = 30
_PROGRAM = ("-m", "stm_plugin")
_SECONDS_TO_MEET = 3600
"""A task waits this long for the tasks of the other machines."""

Json = dict[str, Any]
Report = Callable[[Trainer, Losses], None]


@dataclass(frozen=True)
class Group:
    """The processes of a run.

    Attributes:
        machines: each runs one task.
        processes: of each machine; one for each GPU.
        rendezvous: HOST:PORT of one of the machines, which the others reach; needless for one machine.
    """

    machines: int = 1
    processes: int = 1
    rendezvous: str = ""

    @property
    def size(self) -> int:
        return self.machines * self.processes


@dataclass(frozen=True)
class TrainingJob:
    """The content of a bundle.

    Attributes:
        archive: from `stm train pack`.
        result: the file that the task writes, for `stm train collect`.
        minutes: for everything.
        device: a torch device name; the task asks for a GPU where it is `cuda`.
        stm: the command of the installation on the farm's machines.
        group: the machines and their processes.
    """

    archive: Path
    result: Path
    minutes: float
    device: str = "cuda"
    workers: int = 8
    stm: str = "stm"
    group: Group = Group()


def training_template(job: TrainingJob) -> Json:
    """The job template."""
    args = ["farm", "train", "--openjd", "--minutes", "{{Param.Minutes}}", "--device", "{{Param.Device}}"]
    args += ["--workers", "{{Param.Workers}}", "--scratch", "{{Session.WorkingDirectory}}"]
    if job.group.size > 1:
        args += ["--machines", str(job.group.machines), "--processes", "{{Param.Processes}}"]
    if job.group.machines > 1:
        args += ["--rendezvous", "{{Param.Rendezvous}}"]
    action = {
        "command": "{{Param.Stm}}",
        "args": [*args, "--", "{{Param.Archive}}", "{{Param.Result}}"],
        "cancelation": {"mode": "NOTIFY_THEN_TERMINATE", "notifyPeriodInSeconds": _SECONDS_TO_STOP},
    }
    amounts: list[Json] = [{"name": "amount.worker.memory", "min": _MEMORY * job.group.processes}]
    if job.device.startswith("cuda"):
        amounts.append({"name": "amount.worker.gpu", "min": job.group.processes})
    step: Json = {
        "name": "train",
        "hostRequirements": {"amounts": amounts},
        "script": {"actions": {"onRun": action}},
    }
    if job.group.machines > 1:
        machine = {"name": "Machine", "type": "INT", "range": f"1-{job.group.machines}"}
        step["parameterSpace"] = {"taskParameterDefinitions": [machine]}
    return {
        "specificationVersion": SPECIFICATION,
        "name": "STM training",
        "parameterDefinitions": _parameters(job),
        "jobEnvironments": [environment()],
        "steps": [step],
    }


def training_values(job: TrainingJob) -> dict[str, str | float | int]:
    """The values of the parameters."""
    found: dict[str, str | float | int] = {
        "Archive": str(job.archive.absolute()),
        "Result": str(job.result.absolute()),
        "Minutes": job.minutes,
        "Device": job.device,
        "Workers": job.workers,
        "Stm": job.stm,
    }
    if job.group.size > 1:
        found["Processes"] = job.group.processes
    if job.group.machines > 1:
        found["Rendezvous"] = job.group.rendezvous
    return found


def training_texts(job: TrainingJob) -> dict[str, str]:
    """The files of a bundle by name."""
    found = training_values(job)
    assets = {
        "inputs": {"filenames": [str(job.archive.absolute())], "directories": []},
        "outputs": {"directories": [str(job.result.absolute().parent)]},
        "referencedPaths": [],
    }
    return {
        TEMPLATE: file_text(training_template(job)),
        VALUES: file_text(value_list(found)),
        ASSETS: file_text({"assetReferences": assets}),
        PLAIN_VALUES: file_text(found),
    }


def check_files(archive: Path, result: Path) -> None:
    """Check the input, and that the result replaces nothing but an earlier result.

    Raises:
        SettingsError: the archive is no packed run.
        OutputError: the result's file is the archive, or something else.
    """
    if not is_packed(archive):
        raise SettingsError(f"{archive} is no packed run.", hint="Make one with `stm train pack`.")
    given = [Given("the packed run", archive)]
    try:
        check_outputs([(None, result)], given, is_ours=lambda _, path: is_result(path))
    except OutputError as error:
        error.hint = "Give the result another name or folder."
        raise


def check_group(archive: Path, group: Group) -> None:
    """Check before anything is queued that a run can be shared. SettingsError if not."""
    if group.machines > 1 and not re.fullmatch(r"\S+:[0-9]{1,5}", group.rendezvous):
        raise SettingsError(
            f"{group.machines} machines need an address where they meet.",
            hint="Give --rendezvous HOST:PORT: one of the machines, and a free port that the others reach.",
        )
    config = packed_config(archive)
    if config.batch % (group.size * config.accumulate):
        raise SettingsError(
            f"A batch of {config.batch} cannot be shared by {group.size} processes in equal parts"
            + (f", each in {config.accumulate} steps." if config.accumulate > 1 else "."),
            hint="Give other machines and processes, or pack the run with another batch.",
        )


def train_together(words: Sequence[str], group: Group) -> None:
    """The task of one of several machines, or with several processes: `torchrun` with words after `stm`.

    It waits for the tasks of the other machines. Where one process fails, the tasks of all machines fail.

    Raises:
        SettingsError: a process failed, or the machines did not meet.
    """
    from torch.distributed.run import main as torchrun

    if group.machines > 1:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={group.rendezvous}", "--rdzv-id=stm"]
        wait = _SECONDS_TO_MEET
        meeting.append(f"--rdzv-conf=join_timeout={wait},read_timeout={wait},last_call_timeout=1")
    else:
        meeting = ["--standalone"]
    numbers = [f"--nnodes={group.machines}", f"--nproc-per-node={group.processes}", "--max-restarts=0"]
    try:
        torchrun([*numbers, *meeting, *_PROGRAM, *words])
    except Exception as error:  # of many kinds: what a process says is in the log
        raise SettingsError(
            f"The training on {group.machines} machines with {group.processes} processes each failed: "
            f"{type(error).__name__}.",
            hint="The lines before say why. Run the tasks of all machines again.",
        ) from error


def train(
    archive: Path,
    result: Path,
    minutes: float,
    *,
    device: str,
    workers: int,
    scratch: Path | None = None,
    report: Report | None = None,
) -> None:
    """The task: train from an archive, and put what comes out into one file.

    The result appears whole or not at all. A task that was killed begins anew. Under `torchrun` the first
    process writes the result.

    Args:
        scratch: a folder for the data and the run; they are removed at the end.

    Raises:
        SettingsError: the archive is no packed run, or the time is too short.
        OutputError: the result's file is an input, or no result.
        StoreError: the result cannot be written.
    """
    check_files(archive, result)
    with (
        joined_processes(device) as here,
        tempfile.TemporaryDirectory(prefix="stm-train-", dir=scratch) as folder,
    ):
        run = Path(folder) / "run"
        try:
            made = train_for(archive, run, minutes, device=here, workers=workers, progress=report)
        except (ValueError, OSError) as error:
            raise SettingsError(f"The packed run cannot be trained: {error}") from error
        if is_first():
            _put(made, result, f".{result.name}.{Path(folder).name}.part")


def _put(made: Path, result: Path, partial_name: str) -> None:
    partial = result.with_name(partial_name)
    try:
        result.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, partial)
        partial.replace(result)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise store_error(error, result) from error


def _group_parameters(group: Group) -> list[Json]:
    processes: Json = {
        "name": "Processes",
        "type": "INT",
        "allowedValues": [group.processes],
        "description": "Of each machine. The host requirements are made for them.",
    }
    rendezvous: Json = {
        "name": "Rendezvous",
        "type": "STRING",
        "minLength": 3,
        "description": "HOST:PORT of one of the machines, where all tasks meet.",
    }
    return [processes] * (group.size > 1) + [rendezvous] * (group.machines > 1)


def _parameters(job: TrainingJob) -> list[Json]:
    return [
        {
            "name": "Archive",
            "type": "PATH",
            "objectType": "FILE",
            "dataFlow": "IN",
            "description": "The packed run, from `stm train pack`.",
        },
        {
            "name": "Result",
            "type": "PATH",
            "objectType": "FILE",
            "dataFlow": "OUT",
            "description": "The file for `stm train collect`.",
        },
        {
            "name": "Minutes",
            "type": "FLOAT",
            "minValue": 1,
            "description": "For everything. The run ends in this time.",
        },
        {
            "name": "Device",
            "type": "STRING",
            "allowedValues": [job.device],
            "description": "A torch device name. The host requirements are made for it.",
        },
        {
            "name": "Workers",
            "type": "INT",
            "minValue": 0,
            "maxValue": 64,
            "description": "Processes that prepare samples.",
        },
        *_group_parameters(job.group),
        stm_parameter(),
    ]
