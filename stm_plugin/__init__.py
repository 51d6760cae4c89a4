"""STM for Nuke: from one roto key to a matte channel for the whole shot.

The names in `__all__` are the public interface for Python. They follow semantic versions; docs/python.md has
examples. Each is loaded when it is first asked for: importing this package loads nothing that computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stm_plugin.errors import StmError as StmError
    from stm_plugin.images.mask import MaskReading as MaskReading
    from stm_plugin.planning.values import Request as Request
    from stm_plugin.settings import FinishSettings as FinishSettings
    from stm_plugin.settings import Settings as Settings
    from stm_plugin.shot.export import MatteWriter as MatteWriter
    from stm_plugin.shot.propagate import propagate as propagate
    from stm_plugin.shot.shot import Shot as Shot
    from stm_plugin.store.description import PlateDescription as PlateDescription
    from stm_plugin.windows import Window as Window

    __version__: str

__all__ = [
    "FinishSettings",
    "MaskReading",
    "MatteWriter",
    "PlateDescription",
    "Request",
    "Settings",
    "Shot",
    "StmError",
    "Window",
    "__version__",
    "propagate",
]

_ROOMS = {
    "FinishSettings": "settings",
    "MaskReading": "images.mask",
    "MatteWriter": "shot.export",
    "PlateDescription": "store.description",
    "Request": "planning.values",
    "Settings": "settings",
    "Shot": "shot.shot",
    "StmError": "errors",
    "Window": "windows",
    "propagate": "shot.propagate",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib import metadata

        return metadata.version("stm-nuke")
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
