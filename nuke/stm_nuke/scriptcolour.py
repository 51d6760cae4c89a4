"""The working space of the open script, for the engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nuke
from stm_nuke.errors import PlateError
from stm_nuke.releases import OCIO_CONFIG_KNOBS, root_value

ENGINE_CONFIG = "ocio://studio-config-v2.2.0_aces-v1.3_ocio-v2.4"
"""The config that defines Nuke's own colour management (no OCIO)."""
NUKE_LINEAR = "Linear Rec.709 (sRGB)"
"""Nuke's own working space, for any $OCIO."""
_CONFIG_FOLDER = Path("plugins") / "OCIOConfigs" / "configs"


@dataclass(frozen=True)
class WorkingSpace:
    """A colour space and its config, as in the engine's settings."""

    colour_space: str
    ocio_config: str | None


def working_space(executable: str = "") -> WorkingSpace:
    """The colour space of pixels between nodes.

    Raises:
        PlateError: the script's OCIO config cannot be found.
    """
    if root_value("colorManagement") != "OCIO":
        return WorkingSpace(NUKE_LINEAR, ENGINE_CONFIG)
    return WorkingSpace(str(root_value("workingSpaceLUT") or "scene_linear"), _config_of_script(executable))


def _config_of_script(executable: str) -> str | None:
    if os.environ.get("OCIO"):
        return None  # the engine reads it itself
    name = str(root_value(*OCIO_CONFIG_KNOBS) or "")
    if name in ("", "custom"):
        path = str(root_value("customOCIOConfigPath") or "")
        if path:
            return path
        raise PlateError(
            "The script's OCIO config has no path.",
            hint="Set it in Project Settings, or in the STM node's Settings.",
        )
    folder = Path(executable or nuke.EXE_PATH).parent / _CONFIG_FOLDER
    for file in (folder / f"{name}.ocio", folder / name / "config.ocio"):
        if file.is_file():
            return str(file)
    raise PlateError(
        f"The script's OCIO config {name} is not in {folder}.",
        hint="Name the file under OCIO config in the STM node's Settings.",
    )
