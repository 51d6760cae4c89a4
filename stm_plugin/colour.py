"""Colour: from the plate's colour space to the display-referred sRGB that the network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_plugin.plate import FloatArray, PlateFrame


@dataclass(frozen=True)
class ColourConfig:
    """An OpenColorIO config. `source` says in words where it came from (given, $OCIO, built in)."""

    ocio: Any
    name: str
    source: str

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the colour spaces."""
        raise NotImplementedError

    def resolve(self, name: str) -> str:
        """The canonical name of a colour space, alias or role; ColourError with near names when unknown."""
        raise NotImplementedError


@dataclass(frozen=True)
class InputSpace:
    """An input colour space and in words why it was chosen."""

    name: str
    reason: str


def load_config(path: str | Path | None = None) -> ColourConfig:
    """The config at `path`, else $OCIO's, else the built-in one. ColourError where it cannot be loaded."""
    raise NotImplementedError


def find_input_space(frame: PlateFrame, config: ColourConfig, stated: str | None = None) -> InputSpace:
    """The frame's colour space: stated, else from metadata, the config's file rules, or the kind of file."""
    raise NotImplementedError


class ColourTransform:
    """Pixels of one input space to display-referred sRGB in [0, 1]."""

    def __init__(self, config: ColourConfig, input_space: str) -> None:
        self.input_space: str = input_space
        self.id: str = ""  # stable and content-based: part of every content address

    def to_display(self, pixels: FloatArray) -> FloatArray:
        """float32 (h, w, 3) of the input space -> new float32 (h, w, 3) in [0, 1], display-referred sRGB."""
        raise NotImplementedError
