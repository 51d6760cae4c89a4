"""The choices for a panel: devices, weights and settings by name."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

import torch

from model.weights_file import WeightsFileError, read_manifest, shipped_weights
from stm_plugin.configuration import Value, configuration
from stm_plugin.propagation.memory_forecast import describe_device, free_memory
from stm_plugin.server.backend import Information
from stm_plugin.settings import Device, Edges, PrecisionChoice, SettingHelp, describe_settings

_SUGGESTED_RULES = ("every:5", "first+previous", "first", "previous")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "device": get_args(Device),
    "finish.edges": get_args(Edges),
    "precision": get_args(PrecisionChoice),
    "memory_rule": _SUGGESTED_RULES,
}


def information() -> Information:
    """The choices of this machine and this plug-in; may take seconds.

    Raises:
        ConfigurationError: a configuration file cannot be used.
    """
    layers = configuration()
    return Information(
        python=platform.python_version(),
        torch=torch.__version__,
        devices=tuple(_devices()),
        weights=tuple(_weights()),
        settings={one.name: _setting_json(one, layers.values[one.name]) for one in describe_settings()},
    )


def _devices() -> Iterator[Mapping[str, Any]]:
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in [*names, "cpu"]:
        yield {"name": name, "label": describe_device(name), "memory": free_memory(name)}


def _weights() -> Iterator[Mapping[str, Any]]:
    for path in shipped_weights():
        try:
            manifest = read_manifest(path)
        except WeightsFileError:
            continue
        yield {
            "name": manifest.name,
            "id": manifest.id,
            "architecture": manifest.architecture,
            "licence": manifest.licence,
            "training_data": list(manifest.data),
        }


def _setting_json(about: SettingHelp, configured: Value) -> dict[str, Any]:
    """A setting for a panel: the default is what the configuration gives to new shots."""
    name, default = about.name, about.default
    kinds = {bool: "boolean", int: "integer", float: "number"}
    kind = "window" if name == "region" else kinds.get(type(default), "string")
    described: dict[str, Any] = {
        "default": configured.value,
        "type": kind,
        "locked": configured.why_locked,
    }
    if name in _CHOICES:
        described["choices"] = list(_CHOICES[name])
    return described
