"""OpenFX effects as Nuke has them: nodes of the class `OFX<identifier>_v<major>`, found on $OFX_PLUGIN_PATH.

The effect is the real binary, in the strict OpenFX host of these tests.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _knobs as k
from ._host import host

if TYPE_CHECKING:
    from ._graph import Node
    from ._pixels import Picture

_ARCHITECTURE = "Linux-x86-64"
_HOST_FILE = Path(__file__).resolve().parents[2] / "ofx_host.py"
_CHANNELS = ("rgba.red", "rgba.green", "rgba.blue", "rgba.alpha")
_KNOBS: dict[str, Any] = {
    "OfxParamTypeString": k.String_Knob,
    "OfxParamTypeInteger": k.Int_Knob,
    "OfxParamTypeBoolean": k.Boolean_Knob,
}


@dataclass(frozen=True)
class Plugin:
    """A bundle's effect: the host that loaded it, and its description."""

    host: Any
    described: Any


def _host_module() -> Any:
    """The OpenFX host. It outlives the stand-in that a test imports anew: a library is loaded once."""
    name = "nuke_stand_in_ofx_host"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, _HOST_FILE)
        assert found is not None and found.loader is not None
        module: Any = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)
        module.loaded = {}
    return sys.modules[name]


def violations() -> list[str]:
    """The errors that the OpenFX hosts found in the effects' calls."""
    return [text for one in _host_module().loaded.values() for text in one.violations]


def plugin_of(class_name: str) -> Plugin | None:
    """The effect of this node class; None if no bundle on the path contains it."""
    if not class_name.startswith("OFX"):
        return None
    for folder in filter(None, os.environ.get("OFX_PLUGIN_PATH", "").split(os.pathsep)):
        for binary in sorted(Path(folder).glob(f"*.ofx.bundle/Contents/{_ARCHITECTURE}/*.ofx")):
            plugin = _load(binary.resolve())
            about = plugin.host.plugin
            if class_name == f"OFX{about.identifier.decode()}_v{about.major}":
                return plugin
    return None


def _load(binary: Path) -> Plugin:
    loaded = _host_module().loaded
    if binary not in loaded:
        loaded[binary] = _host_module().OfxHost(binary)
    return Plugin(loaded[binary], loaded[binary].describe())


def inputs_of(plugin: Plugin) -> int:
    """How many inputs a node of the effect has."""
    return sum(name != "Output" for name in plugin.described.clips)


def add_knobs(node: Node, plugin: Plugin) -> None:
    """A knob for each parameter that has a value, by its name."""
    for param in plugin.described.params.values():
        default = param.properties.values.get("OfxParamPropDefault", [""])[0]
        if param.type == "OfxParamTypeChoice":
            options = param.properties.values["OfxParamPropChoiceOption"]
            node._add_native(param.name, k.Enumeration_Knob, [str(one) for one in options])
            knob = node._knobs[param.name]
            knob._value = knob._original = str(options[int(default)])
        elif param.type in _KNOBS:
            kind = _KNOBS[param.type]
            node._add_native(param.name, kind, kind("", "")._accept(default))


def render(node: Node, frame: float, view: str) -> Picture:
    """The effect's picture. RuntimeError with its message if it fails."""
    from ._pixels import Picture, _input, range_of

    plugin = plugin_of(node.Class())
    if plugin is None:
        raise RuntimeError(f"{node.Class()}: Unknown command")
    above = _input(node, 0, frame, view)
    clips = _host_module()

    def read(at: int) -> npt.NDArray[np.float32]:
        picture = _input(node, 0, at, view).over(above.window)
        return np.stack([picture.plane(name) for name in _CHANNELS], axis=-1)

    x, y, width, height = above.window
    first, last = range_of(node)
    source = clips.Clip(
        read,
        frames=(min(first, frame), max(last, frame)),  # beyond its range a Read holds its ends
        origin=(x, above.format.height() - y - height),
        size=(width, height),
        aspect=above.format.pixelAspect(),
    )
    assert host.root is not None
    whole = host.root["format"].value()
    plugin.host.options.project = (whole.width() * whole.pixelAspect(), float(whole.height()))
    instance = plugin.host.create({"Source": source})
    try:
        for param in instance.params.values():
            knob = node.knob(param.name)
            if knob is not None:
                param.value = knob._number()
        status, pixels = instance.render(frame)
        if status not in (clips.OK, clips.REPLY_DEFAULT):
            raise RuntimeError(f"{node.fullName()}: {instance.persistent or 'the effect failed'}")
        found = pixels.picture()
    finally:
        instance.destroy()
    planes = {name: np.ascontiguousarray(found[..., index]) for index, name in enumerate(_CHANNELS)}
    return replace(Picture(planes, above.window, above.format), metadata=above.metadata)
