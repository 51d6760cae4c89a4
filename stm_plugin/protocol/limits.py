"""Versions, limits and the plain types of the protocol; PROTOCOL.md sections 2, 3 and 5."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, Literal

VERSION: Final = (1, 4)
MAGIC: Final = b"STM\x01"
PREFIX: Final = struct.Struct("<4sB3sIIQ")
"""Magic, kind, three zero bytes, request id, header length, payload length."""

MAX_HEADER: Final = 4 << 20
MAX_HEADER_BEFORE_HELLO: Final = 4096
MAX_PAYLOAD: Final = 1 << 30
MAX_REQUEST_ID: Final = (1 << 32) - 1
MAX_DEPTH: Final = 16
MAX_INTEGER: Final = 1 << 53
MAX_UNANSWERED: Final = 32
MAX_SHOTS: Final = 64
MAX_CLIENTS: Final = 64
MAX_TEXT: Final = 4096
MAX_NAME_BYTES: Final = 255
"""Of one name in a path: the limit of file systems."""
MAX_FRAME: Final = 1_000_000_000
MAX_RANGE: Final = 1_000_000
MAX_DIGESTS: Final = 10_000
MAX_OBJECTS: Final = 16
MAX_CHANNELS: Final = 16
MAX_ORIGIN: Final = 1 << 20
MAX_SIDE: Final = 1 << 16
MAX_PIXELS: Final = 1 << 28
MAX_WAIT_MS: Final = 60_000

Range = tuple[int, int]
Rectangle = tuple[int, int, int, int]
"""x, y, width, height as in OpenEXR: y down."""
Direction = Literal["forward", "backward", "both"]
Layout = Literal["interleaved", "planar"]
PixelFormat = Literal["byte", "short", "half", "float"]
Rows = Literal["down", "up"]
MattePixels = Literal["half", "float"]
MatteLayer = Literal["matte", "confidence", "foreground"]

SAMPLE_BYTES: Final[Mapping[PixelFormat, int]] = {"byte": 1, "short": 2, "half": 2, "float": 4}
