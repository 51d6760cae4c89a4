"""The choices for a panel: devices, weights and settings by name."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

import torch

from model.weights_file import WeightsFileError, read_manifest, shipped_weights
from stm_plugin.errors import SettingsError
from stm_plugin.propagation.memory_forecast import describe_device, free_memory
from stm_plugin.server.backend import Information
from stm_plugin.settings import Device, Edges, Precision, Settings, describe_settings
from stm_plugin.windows import Window

_SUGGESTED_RULES = ("every:5", "first+previous", "first", "previous")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "device": get_args(Device),
    "finish.edges": get_args(Edges),
    "precision": get_args(Precision),
    "memory_rule": _SUGGESTED_RULES,
}


def information() -> Information:
    """The choices of this machine and this plug-in; may take seconds."""
    return Information(
        python=platform.python_version(),
        torch=torch.__version__,
        devices=tuple(_devices()),
        weights=tuple(_weights()),
        settings={one.name: _setting_json(one.name, one.default) for one in describe_settings()},
    )


def flat_settings(settings: Settings) -> dict[str, Any]:
    """All settings as plain values, by the names of `describe_settings`."""
    values = settings.to_json()
    finish = values.pop("finish")
    region = settings.region
    values["region"] = None if region is None else [region.x, region.y, region.width, region.height]
    return {**values, **{f"finish.{name}": value for name, value in finish.items()}}


def changed_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """`settings` with some values changed. SettingsError where one is invalid."""
    values = settings.to_json()
    for name, value in changes.items():
        part, dot, inner = name.partition(".")
        if dot and part == "finish":
            values["finish"][inner] = value
        elif name == "region" and value is not None:
            if not isinstance(value, list) or len(value) != 4 or not all(type(one) is int for one in value):
                raise SettingsError("The region must be [x, y, width, height] in whole pixels.")
            values[name] = dataclasses.asdict(Window(*value))
        elif name == "finish":
            raise SettingsError(
                "Set the settings of finishing one by one.", hint="For example finish.radius."
            )
        else:
            values[name] = value
    return Settings.from_json(values)


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


def _setting_json(name: str, default: Any) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", float: "number"}
    kind = "window" if name == "region" else kinds.get(type(default), "string")
    described: dict[str, Any] = {"default": default, "type": kind}
    if name in _CHOICES:
        described["choices"] = list(_CHOICES[name])
    return described
