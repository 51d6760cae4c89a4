"""`stm info`: device, versions, weights and their licence, colour configuration."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from model.weights_file import read_manifest, shipped_edges, shipped_weights
from stm_plugin.cli.adapt import describe_adaptation
from stm_plugin.cli.as_json import print_json
from stm_plugin.cli.console import output
from stm_plugin.cli.propagate import AsJson
from stm_plugin.cli.weights import weights_table

_PACKAGES = (
    "stm-nuke",
    "torch",
    "torchvision",
    "numpy",
    "OpenImageIO",
    "opencolorio",
    "opencv-python-headless",
)


def info(
    ocio: Annotated[Path | None, typer.Option(help="OCIO config; else $OCIO, else the built-in one.")] = None,
    shot: Annotated[Path | None, typer.Option(help="A shot: show what its weights were adapted to.")] = None,
    spaces: Annotated[bool, typer.Option("--spaces", help="List the colour spaces too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Device, versions, weights with their licences, and the OCIO config."""
    from stm_plugin.configuration import configuration
    from stm_plugin.images.colour import load_config

    if as_json:
        print_json(information_json(ocio, shot, spaces))
        return
    table = Table.grid(padding=(0, 2))
    table.add_row("device", _device())
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in _PACKAGES:
        table.add_row(name, _version(name))
    config = load_config(ocio or configuration()["ocio_config"])
    table.add_row("OCIO config", f"{config.name} ({config.source})")
    output.print(table, highlight=False)
    output.print(weights_table(with_scores=False))
    output.print("`stm weights list` shows their licences and scores.", highlight=False)
    if shot is not None:
        from stm_plugin.store.store import ShotStore

        description = ShotStore.open(shot).description()
        record, used = description.adaptation, description.settings.adapt
        said = "not adapted" if record is None else describe_adaptation(record)
        off = "" if used or record is None else " (switched off)"
        output.print(f"{shot}: {said}{off}", highlight=False, soft_wrap=True)
    if spaces:
        output.print("\n".join(config.spaces), highlight=False)


def information_json(ocio: Path | None, shot: Path | None, spaces: bool) -> dict[str, Any]:
    """`stm info --json`."""
    from stm_plugin.configuration import configuration
    from stm_plugin.images.colour import load_config
    from stm_plugin.logs import COMMAND_LOG, log_files, log_folder
    from stm_plugin.server.runtime import LOG_NAME, runtime_folder
    from stm_plugin.store.store import ShotStore

    config = load_config(ocio or configuration()["ocio_config"])
    record = None if shot is None else ShotStore.open(shot).description().adaptation
    logs = [*log_files(runtime_folder(), LOG_NAME), *log_files(log_folder(), COMMAND_LOG)]
    return {
        "device": _device(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "ocio": {
            "name": config.name,
            "source": str(config.source),
            "spaces": list(config.spaces) if spaces else None,
        },
        "weights": [
            {**manifest.to_dict(), "use": manifest.use, "file": str(path)}
            for path in (*shipped_weights(), *shipped_edges())
            for manifest in (read_manifest(path),)
        ],
        "adapted": None if record is None else asdict(record),
        "logs": [str(path) for path in logs],
    }


def _device() -> str:
    """The device of a run. Torch, which loads slowly, is loaded only if there may be a GPU."""
    if not _may_have_gpu():
        return f"cpu ({len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()} threads)"
    import torch

    from stm_plugin.propagation.memory_forecast import pick_device

    device = pick_device()
    if device == "cuda":
        return f"cuda ({torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] >> 30} GiB)"
    return f"{device} ({torch.get_num_threads()} threads)" if device == "cpu" else device


def _may_have_gpu() -> bool:
    """Whether torch could find a GPU: a Mac, or a build with CUDA on a system with NVIDIA's driver."""
    if sys.platform == "darwin":
        return True
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    build = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    if build.get("cuda") is None:
        return build.get("hip") is not None
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
