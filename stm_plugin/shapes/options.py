"""The options of shapes. This module imports nothing heavy, so help texts appear at once."""

from __future__ import annotations

from typing import Literal

TOLERANCE = 0.75
"""Distance from the matte's contour in pixels of the plate, 95th percentile along it."""
LEAST_AREA = 30.0
"""Pixels of the plate: a smaller part or hole becomes no shape."""
MOST_PARTS = 100
"""The most parts and holes of one object on one frame; a matte with more is noise."""

ShapeFormat = Literal["nuke", "natron", "json", "svg"]
SUFFIXES: dict[str, ShapeFormat] = {".nk": "nuke", ".py": "natron", ".json": "json", ".svg": "svg"}
