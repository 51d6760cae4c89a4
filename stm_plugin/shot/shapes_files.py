"""Writing files of shapes: whole or not there, and never over what the artist gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stm_plugin.errors import MatteError
from stm_plugin.files.whole import write_atomically
from stm_plugin.images.plate import Plate, PlateSource

_OURS = (b"STMShapes", b"curvegroup", b"Shapes for Natron.", b'"stm-shapes"', b"http://www.w3.org/2000/svg")
