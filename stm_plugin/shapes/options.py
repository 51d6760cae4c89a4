"""What a person can say about shapes. Nothing heavy is imported here: help must not wait for it."""

from __future__ import annotations

from typing import Literal

TOLERANCE = 0.75
"""Pixels of the plate from the matte's contour, 95th percentile along it."""
LEAST_AREA = 30.0
"""Pixels of the plate: a smaller part or hole becomes no shape."""
MOST_PARTS = 100
"""Parts and holes of one object on one frame: more are specks, not shapes."""

ShapeFormat = Literal["nuke", "natron", "json", "svg"]
SUFFIXES: dict[str, ShapeFormat] = {".nk": "nuke", ".py": "natron", ".json": "json", ".svg": "svg"}
