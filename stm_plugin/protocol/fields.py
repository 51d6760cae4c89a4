"""Reading the fields of a JSON object, each by its type; PROTOCOL.md section 3."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast, get_args

from stm_plugin.protocol.errors import RequestError
from stm_plugin.protocol.limits import (
    MAX_DIGESTS,
    MAX_FRAME,
    MAX_NAME_BYTES,
    MAX_OBJECTS,
    MAX_ORIGIN,
    MAX_PIXELS,
    MAX_RANGE,
    MAX_SIDE,
    MAX_TEXT,
    Direction,
    Range,
    Rectangle,
)

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_CHANNEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[\x21-\x7e]{1,128}")
_FRAME = re.compile(r"0|-?[1-9][0-9]{0,9}")
TOKEN = re.compile(r"[0-9a-f]{64}")
_REQUIRED: Final = object()


class Fields:
    """The fields of one JSON object, taken one by one; what is left over at the end is an error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where

    def take(self, name: str, read: Callable[[Any], T], default: Any = _REQUIRED) -> T:
        """The value of a field as `read` understands it; null is the same as absent.

        Raises:
            RequestError: the field is missing, or `read` refuses it with a ValueError.
        """
        value = self._values.pop(name, None)
        if value is None:
            if default is _REQUIRED:
                raise RequestError("bad_request", f"{self._where}: the field {name} is missing.")
            return cast(T, default)
        try:
            return read(value)
        except ValueError as error:
            raise RequestError("bad_request", f"{self._where}: the field {name} {error}.") from error

    def done(self) -> None:
        """Raises RequestError if a field has not been taken."""
        if self._values:
            name = min(self._values)
            raise RequestError("bad_request", f"{self._where}: there is no field {name[:64]!r}.")


def integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return float(value)

    return read


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT or "\0" in value:
        raise ValueError(f"must be a text of at most {MAX_TEXT} characters without NUL")
    return value


def path(value: Any) -> str:
    read = text(value)
    longest = max((len(part.encode("utf-8")) for part in re.split(r"[/\\]", read)), default=0)
    if longest > MAX_NAME_BYTES or len(read.encode("utf-8")) >= MAX_TEXT:
        raise ValueError(f"must be a path: names of at most {MAX_NAME_BYTES} bytes, below {MAX_TEXT} in all")
    return read


def matching(pattern: re.Pattern[str], what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if type(value) is not str or not pattern.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return read


def choice(alternatives: tuple[Any, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not str or value not in alternatives:
            raise ValueError(f"must be one of {', '.join(alternatives)}")
        return value

    return read


def list_of(read_one: Callable[[Any], T], most: int) -> Callable[[Any], tuple[T, ...]]:
    def read(value: Any) -> tuple[T, ...]:
        if type(value) is not list or len(value) > most:
            raise ValueError(f"must be a list of at most {most}")
        return tuple(read_one(one) for one in value)

    return read


def mapping(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("must be an object")
    return value


frame_number = integer(-MAX_FRAME, MAX_FRAME)
object_name = matching(_NAME, "a name: up to 64 letters, digits, _ and -, with a letter or _ first")
channel_name = matching(_CHANNEL, "a channel name")
digest = matching(_DIGEST, "1 to 128 visible ASCII characters")
handle = matching(re.compile(r"[a-z][0-9]{1,12}"), "a handle that the engine gave")
direction = cast(Callable[[Any], Direction], choice(get_args(Direction)))


def version(value: Any) -> tuple[int, int]:
    read = list_of(integer(0, 65535), 2)(value)
    if len(read) != 2:
        raise ValueError("must be [major, minor]")
    return read[0], read[1]


def frame_range(value: Any) -> Range:
    read = list_of(frame_number, 2)(value)
    if len(read) != 2 or read[0] > read[1] or read[1] - read[0] >= MAX_RANGE:
        raise ValueError(f"must be [first, last] with at most {MAX_RANGE} frames")
    return read[0], read[1]


def window(value: Any) -> Rectangle:
    if type(value) is not list or len(value) != 4:
        raise ValueError("must be [x, y, width, height]")
    x, y = (integer(-MAX_ORIGIN, MAX_ORIGIN)(one) for one in value[:2])
    width, height = (integer(1, MAX_SIDE)(one) for one in value[2:])
    if width * height > MAX_PIXELS:
        raise ValueError(f"must have at most {MAX_PIXELS} pixels")
    return x, y, width, height


def distinct(read: Callable[[Any], tuple[str, ...]]) -> Callable[[Any], tuple[str, ...]]:
    def checked(value: Any) -> tuple[str, ...]:
        names = read(value)
        if len(set(names)) != len(names):
            raise ValueError("must not repeat a name")
        return names

    return checked


object_names = distinct(list_of(object_name, MAX_OBJECTS))


def digests_by_frame(value: Any) -> dict[int, str]:
    given = mapping(value)
    if len(given) > MAX_DIGESTS:
        raise ValueError(f"must have at most {MAX_DIGESTS} entries")
    read = {}
    for name, one in given.items():
        if not _FRAME.fullmatch(name):
            raise ValueError("must have frame numbers as names")
        read[frame_number(int(name))] = digest(one)
    return read


def metadata_values(value: Any) -> dict[str, str | int | float]:
    given = mapping(value)
    if len(given) > 256 or not all(type(one) in (str, int, float) for one in given.values()):
        raise ValueError("must have at most 256 texts and numbers")
    return {text(name): text(one) if isinstance(one, str) else one for name, one in given.items()}


def renames(value: Any) -> dict[str, str]:
    given = mapping(value)
    if len(given) > MAX_OBJECTS:
        raise ValueError(f"must have at most {MAX_OBJECTS} entries")
    return {object_name(old): object_name(new) for old, new in given.items()}


def ranges_of(frames: Sequence[int] | set[int] | frozenset[int]) -> list[list[int]]:
    """Frames as ascending `[first, last]` ranges that do not touch."""
    ranges: list[list[int]] = []
    for frame in sorted(set(frames)):
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    return ranges
