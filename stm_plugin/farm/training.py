"""A job bundle with one task: train from a packed run on one machine within a given time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.training.archive import is_packed, is_result, train_for
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

Json = dict[str, Any]
Report = Callable[[Trainer, Losses], None]


@dataclass(frozen=True)
class TrainingJob:
    """The content of a bundle.

    Attributes:
        archive: from `stm train pack`.
        result: the file that the task writes, for `stm train collect`.
        minutes: for everything.
        device: a torch device name; the task asks for a GPU where it is `cuda`.
        stm: the command of the installation on the farm's machines.
    """

    archive: Path
    result: Path
    minutes: float
    device: str = "cuda"
    workers: int = 8
    stm: str = "stm"


def training_template(job: TrainingJob) -> Json:
    """The job template."""
    args = ["farm", "train", "--openjd", "--minutes", "{{Param.Minutes}}", "--device", "{{Param.Device}}"]
    args += ["--workers", "{{Param.Workers}}", "--scratch", "{{Session.WorkingDirectory}}"]
    action = {
        "command": "{{Param.Stm}}",
        "args": [*args, "--", "{{Param.Archive}}", "{{Param.Result}}"],
        "cancelation": {"mode": "NOTIFY_THEN_TERMINATE", "notifyPeriodInSeconds": _SECONDS_TO_STOP},
    }
    amounts: list[Json] = [{"name": "amount.worker.memory", "min": _MEMORY}]
    if job.device.startswith("cuda"):
        amounts.append({"name": "amount.worker.gpu", "min": 1})
    step = {
        "name": "train",
        "hostRequirements": {"amounts": amounts},
        "script": {"actions": {"onRun": action}},
    }
    return {
        "specificationVersion": SPECIFICATION,
        "name": "STM training",
        "parameterDefinitions": _parameters(job),
        "jobEnvironments": [environment()],
        "steps": [step],
    }


def training_values(job: TrainingJob) -> dict[str, str | float | int]:
    """The values of the parameters."""
    return {
        "Archive": str(job.archive.absolute()),
        "Result": str(job.result.absolute()),
        "Minutes": job.minutes,
        "Device": job.device,
        "Workers": job.workers,
        "Stm": job.stm,
    }


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

    The result appears whole or not at all. A task that was killed begins anew.

    Args:
        scratch: a folder for the data and the run; they are removed at the end.

    Raises:
        SettingsError: the archive is no packed run, or the time is too short.
        OutputError: the result's file is an input, or no result.
        StoreError: the result cannot be written.
    """
    check_files(archive, result)
    with tempfile.TemporaryDirectory(prefix="stm-train-", dir=scratch) as folder:
        run = Path(folder) / "run"
        try:
            made = train_for(archive, run, minutes, device=device, workers=workers, progress=report)
        except (ValueError, OSError) as error:
            raise SettingsError(f"The packed run cannot be trained: {error}") from error
        partial = result.with_name(f".{result.name}.{Path(folder).name}.part")
        try:
            result.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, partial)
            partial.replace(result)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise store_error(error, result) from error


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
        stm_parameter(),
    ]
