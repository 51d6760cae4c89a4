"""Framing: bytes to messages and back; PROTOCOL.md section 2."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from stm_plugin.errors import ProtocolError
from stm_plugin.protocol.limits import (
    MAGIC,
    MAX_DEPTH,
    MAX_HEADER,
    MAX_INTEGER,
    MAX_PAYLOAD,
    PREFIX,
)


class Kind(IntEnum):
    """The kind of a message; byte 4 of its prefix."""

    REQUEST = 1
    REPLY = 2
    ERROR = 3
    EVENT = 4


class FramingError(ProtocolError):
    """The bytes are not a message. Their connection must be closed."""


@dataclass(frozen=True)
class Prefix:
    """The first 24 bytes of a message."""

    kind: Kind
    request_id: int
    header_bytes: int
    payload_bytes: int


@dataclass(frozen=True)
class Message:
    """One whole message."""

    kind: Kind
    request_id: int
    header: dict[str, Any]
    payload: bytes | bytearray | memoryview = b""


def encode_message(message: Message) -> bytes:
    """Prefix and header of a message; the payload follows them.

    Raises:
        FramingError: the header or the payload is longer than the protocol allows.
    """
    header = json.dumps(message.header, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = header.encode("utf-8", "replace")  # a file name that is not UTF-8 is sent with ?
    payload_bytes = len(message.payload)
    if len(data) > MAX_HEADER or payload_bytes > MAX_PAYLOAD:
        raise FramingError("A message is too long to be sent.")
    prefix = PREFIX.pack(MAGIC, message.kind, b"\0\0\0", message.request_id, len(data), payload_bytes)
    return prefix + data


def decode_prefix(data: bytes, *, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD) -> Prefix:
    """Read and check the 24 bytes of a prefix.

    Raises:
        FramingError: they are not a prefix, or exceed a limit.
    """
    if len(data) != PREFIX.size:
        raise FramingError(f"A message prefix has {PREFIX.size} bytes, not {len(data)}.")
    magic, kind, zero, request_id, header_bytes, payload_bytes = PREFIX.unpack(data)
    if magic != MAGIC:
        raise FramingError("The message does not begin with the protocol's magic bytes.")
    if kind not in tuple(Kind):
        raise FramingError(f"There is no kind of message {kind}.")
    if zero != b"\0\0\0":
        raise FramingError("The reserved bytes of the prefix are not zero.")
    if request_id == 0 and kind != Kind.ERROR:
        raise FramingError("The request id is 0.")
    if not 2 <= header_bytes <= max_header:
        raise FramingError(f"The header has {header_bytes} bytes; 2 to {max_header} are allowed.")
    if payload_bytes > max_payload:
        raise FramingError(f"The payload has {payload_bytes} bytes; {max_payload} are allowed.")
    return Prefix(Kind(kind), request_id, header_bytes, payload_bytes)


def decode_header(data: bytes | bytearray) -> dict[str, Any]:
    """Read and check the JSON object of a header.

    Raises:
        FramingError: it is not a valid JSON object of the protocol.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_repeats,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_small_integer,
        )
    except FramingError:
        raise
    except (ValueError, RecursionError) as error:
        raise FramingError(f"The header is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FramingError("The header is not a JSON object.")
    _check_tree(value)
    return value


def decode_message(data: bytes) -> Message:
    """Read exactly one message.

    Raises:
        FramingError: it is not exactly one message.
    """
    prefix = decode_prefix(data[: PREFIX.size])
    start = PREFIX.size + prefix.header_bytes
    if len(data) != start + prefix.payload_bytes:
        raise FramingError("The message is not as long as its prefix says.")
    header = decode_header(data[PREFIX.size : start])
    return Message(prefix.kind, prefix.request_id, header, data[start:])


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise FramingError("The header repeats a name.")
    return read


def _refuse_constant(text: str) -> float:
    raise FramingError(f"The header holds {text}.")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FramingError("The header holds a number that is too large.")
    return value


def _small_integer(text: str) -> int:
    digits_of_the_largest = 17  # with a sign
    if len(text) > digits_of_the_largest or abs(int(text)) > MAX_INTEGER:
        raise FramingError("The header holds an integer that is too large.")
    return int(text)


def _check_tree(root: dict[str, Any]) -> None:
    """Depth and text of a whole JSON value, without recursion."""
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
                deeper.extend(value.values())
            elif isinstance(value, list):
                deeper.extend(value)
            elif isinstance(value, str):
                _check_text(value)
        if not deeper:
            return
        level = deeper
    for value in level:
        if isinstance(value, (dict, list)):
            raise FramingError(f"The header is nested more than {MAX_DEPTH} deep.")
        if isinstance(value, str):
            _check_text(value)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FramingError("The header holds half a surrogate pair.") from error
