"""The job bundle: a template in the open job format (Open Job Description 2023-09), values, and assets.

The files are JSON, which is valid YAML. In that format a step waits for whole steps, so finishing begins when
all passes are done. `commands` lists which passes each chunk needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import model
from stm_plugin.farm.parts import Parts, pass_text
from stm_plugin.farm.work import FarmShot
from stm_plugin.images.plate import Plate
from stm_plugin.planning.values import Plan
from stm_plugin.propagation.memory_forecast import Forecast

TEMPLATE = "template.yaml"
VALUES = "parameter_values.yaml"
"""The format of AWS Deadline Cloud."""
ASSETS = "asset_references.yaml"
PLAIN_VALUES = "parameters.json"
"""The format of `openjd run --job-param file://...`."""
SPECIFICATION = "jobtemplate-2023-09"
FILES = (TEMPLATE, VALUES, ASSETS, PLAIN_VALUES)

_MEBIBYTE = 1 << 20
_SECONDS_TO_STOP = 30
_MOST_NAME = 100

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The content of a bundle.

    Attributes:
        frames: `1001-1100`.
        out: the matte sequence.
        plate: its path in the shot; empty where a host pushed its pixels.
        address: the job's address, which must be equal on all machines.
        memory: the forecast of a pass; None if no pass has to run.
        gpu: whether passes need one.
        inputs: files that are read besides the shot's folder.
        stm: the command of the installation on the farm's machines.
    """

    shot: Path
    frames: str
    out: Path
    plate: str
    address: str
    parts: Parts
    memory: Forecast
    gpu: bool
    inputs: tuple[Path, ...] = ()
    stm: str = "stm"


def job_of(opened: FarmShot, plan: Plan, parts: Parts, out: str, stm: str = "stm") -> Job:
    """The job of a plan. DeviceError where it does not fit this machine's memory."""
    shipped = Path(model.__path__[0]).resolve()
    given = {_plain(one.path) for one in opened.inputs.given}
    plate = opened.description.plate
    return Job(
        shot=_plain(opened.store.folder),
        frames=f"{plan.frames[0].frame}-{plan.frames[-1].frame}",
        out=_plain(Path(out).expanduser()),
        plate=str(_plain(plate.text)) if isinstance(opened.plate, Plate) else "",
        address=opened.address,
        parts=parts,
        memory=opened.propagation.forecast(plan, workers=1).forecast,  # others are taken where there is room
        gpu=opened.settings.device.startswith("cuda"),
        inputs=tuple(sorted(one for one in given if not one.resolve().is_relative_to(shipped))),
        stm=stm,
    )


def _plain(path: str | Path) -> Path:
    """The absolute path without `..`, so that a farm's rules for folders find its beginning."""
    whole = Path(path).absolute()
    return whole.parent.resolve() / whole.name if ".." in whole.parts else whole


def template(job: Job) -> Json:
    """The job template."""
    name = "".join(one for one in job.shot.stem if one.isprintable()).replace("{{", "{ {")
    steps = [_step("plan", job, [])]
    if job.parts.passes:
        passes = [pass_text(one.name) for one in job.parts.passes]
        steps.append(_step("propagate", job, ["plan"], ("Pass", passes)))
    chunks = [one.text for one in job.parts.chunks]
    steps.append(_step("finish", job, [steps[-1]["name"]], ("Chunk", chunks)))
    steps.append(_step("check", job, ["finish"]))
    return {
        "specificationVersion": SPECIFICATION,
        "name": f"STM {name}"[:_MOST_NAME],
        "parameterDefinitions": _parameters(job),
        "jobEnvironments": [environment()],
        "steps": steps,
    }


def values(job: Job) -> dict[str, str]:
    """The values of the parameters."""
    found = {"Shot": str(job.shot), "Mattes": str(job.out)}
    if job.plate:
        found["Plate"] = job.plate
    return {**found, "Frames": job.frames, "Expects": job.address, "Stm": job.stm}


def texts(job: Job) -> dict[str, str]:
    """The files of a bundle by name."""
    assets = {
        "inputs": {"filenames": [str(one) for one in job.inputs], "directories": [str(job.shot)]},
        "outputs": {"directories": [str(job.shot), str(job.out.parent)]},
        "referencedPaths": [],
    }
    found = {
        TEMPLATE: template(job),
        VALUES: value_list(values(job)),
        ASSETS: {"assetReferences": assets},
        PLAIN_VALUES: values(job),
    }
    return {name: file_text(content) for name, content in found.items()}


def value_list(given: Mapping[str, str | float | int]) -> Json:
    """Values in the format of `VALUES`."""
    return {"parameterValues": [{"name": one, "value": value} for one, value in given.items()]}


def file_text(content: Mapping[str, Any]) -> str:
    """The text of a file of a bundle."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def stm_parameter() -> Json:
    """The parameter with the command of the installation."""
    return {
        "name": "Stm",
        "type": "STRING",
        "minLength": 1,
        "default": "stm",
        "description": "The command of the installation on the farm's machines.",
    }


def _parameters(job: Job) -> list[Json]:
    found: list[Json] = [
        {
            "name": "Shot",
            "type": "PATH",
            "objectType": "DIRECTORY",
            "dataFlow": "INOUT",
            "description": "The shot store, NAME.stmshot.",
        },
        {
            "name": "Mattes",
            "type": "PATH",
            "objectType": "FILE",
            "dataFlow": "NONE",
            "description": "The matte sequence, matte.####.exr.",
        },
        {
            "name": "Plate",
            "type": "PATH",
            "objectType": "FILE",
            "dataFlow": "NONE",
            "description": "The path of the plate in the shot; mapped where machines mount it elsewhere.",
        },
        {
            "name": "Frames",
            "type": "STRING",
            "description": "FIRST-LAST of the job. The tasks are made for these frames.",
            "allowedValues": [job.frames],
        },
        {
            "name": "Expects",
            "type": "STRING",
            "description": "Stands for keys, weights and settings; a task refuses a shot with others.",
        },
        stm_parameter(),
    ]
    return [one for one in found if job.plate or one["name"] != "Plate"]


def environment() -> Json:
    """Prints which installation a session uses, and fails where there is none."""
    enter = {"command": "{{Param.Stm}}", "args": ["farm", "activate"]}
    return {
        "name": "STM",
        "description": "The installation of STM on this machine.",
        "variables": {"OMP_WAIT_POLICY": "PASSIVE"},
        "script": {"actions": {"onEnter": enter}},
    }


def _step(name: str, job: Job, after: list[str], tasks: tuple[str, list[str]] | None = None) -> Json:
    verb = "pass" if name == "propagate" else name
    args = ["farm", verb, "--openjd"]
    if name != "propagate":
        args += ["--out", "{{Param.Mattes}}"]
    if name != "finish":
        args += ["--frames", "{{Param.Frames}}"]
    args += ["--expects", "{{Param.Expects}}"]
    if job.plate:
        args += ["--plate", "{{Param.Plate}}"]
    args += ["--", "{{Param.Shot}}"]  # frames may be negative: what follows is not an option
    if tasks is not None:
        args.append(f"{{{{Task.Param.{tasks[0]}}}}}")
    action = {
        "command": "{{Param.Stm}}",
        "args": args,
        "cancelation": {"mode": "NOTIFY_THEN_TERMINATE", "notifyPeriodInSeconds": _SECONDS_TO_STOP},
    }
    step: Json = {"name": name}
    if after:
        step["dependencies"] = [{"dependsOn": one} for one in after]
    if tasks is not None:
        parameter = {"name": tasks[0], "type": "STRING", "range": tasks[1]}
        step["parameterSpace"] = {"taskParameterDefinitions": [parameter]}
    bytes_needed = job.memory.total if name == "propagate" else job.memory.fixed
    amounts: list[Json] = [{"name": "amount.worker.memory", "min": -(-bytes_needed // _MEBIBYTE)}]
    if name == "propagate" and job.gpu:
        amounts.append({"name": "amount.worker.gpu", "min": 1})
    step["hostRequirements"] = {"amounts": amounts}
    step["script"] = {"actions": {"onRun": action}}
    return step
