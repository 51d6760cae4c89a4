"""The tasks of a job for OpenCue: a Python script for its package `outline` (PyOutline)."""

from __future__ import annotations

import re
from pprint import pformat

from stm_plugin.farm.bundle import Job
from stm_plugin.farm.commands import Command, commands

_MEBIBYTE = 1 << 20

_SCRIPT = '''\
"""A job for OpenCue. It needs the package opencue-pyoutline (its version 1.37 imports `packaging`, too).

    python SCRIPT            sends the job to the server of the configuration
    python SCRIPT --print    prints the job's specification; needs no server
"""

import sys

import outline
import outline.cuerun
from outline.modules.shell import ShellCommand

JOB = {job}
# (layer, layers that it waits for, command line, arguments of the layer)
LAYERS = {layers}


def build():
    job = outline.Outline(JOB)
    made = {{}}
    for name, after, command, arguments in LAYERS:
        made[name] = ShellCommand(name, command=command, **arguments)
        job.add_layer(made[name])
        for one in after:
            made[name].depend_all(made[one])
    return job


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        print(outline.cuerun.OutlineLauncher(build()).serialize(use_pycuerun=False))
    else:
        outline.cuerun.launch(build(), use_pycuerun=False)
'''


def outline_script(job: Job) -> str:
    """A script that builds the outline of a job: one layer of one frame per task."""
    layers = [
        (
            layer_name(one.name),
            [layer_name(before) for before in one.after],
            one.line,
            _arguments(one, job),
        )
        for one in commands(job)
    ]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"stm-{job.shot.stem}")
    return _SCRIPT.format(job=repr(name), layers=pformat(layers, width=110, sort_dicts=False))


def layer_name(task: str) -> str:
    """`pass_1001_forward` for `pass 1001:forward`. A frame's minus becomes an m."""
    return re.sub(r"(?<![0-9])-", "m", task).replace(" ", "_").replace(":", "_").replace("-", "_")


def _arguments(task: Command, job: Job) -> dict[str, object]:
    """What a layer asks for: memory by the engine's forecast, and a GPU where passes need one."""
    runs_network = task.name.startswith("pass ")
    needed = job.memory.total if runs_network else job.memory.fixed
    found: dict[str, object] = {
        "type": "Render" if task.name != "check" else "Util",
        "memory": f"{-(-needed // _MEBIBYTE)}m",
    }
    if runs_network and job.gpu:
        found["gpus"] = 1
    return found
