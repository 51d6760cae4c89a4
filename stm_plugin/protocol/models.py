"""The types of the protocol's fields, and JSON objects as typed values; PROTOCOL.md section 3.

Pydantic reads the objects. This module has the types of their fields and the error texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
    model_validator,
)

from stm_plugin.protocol.errors import RequestError
from stm_plugin.protocol.limits import (
    MAX_DIGESTS,
    MAX_FRAME,
    MAX_NAME_BYTES,
    MAX_OBJECTS,
    MAX_ORIGIN,
    MAX_PAYLOAD,
    MAX_PIXELS,
    MAX_RANGE,
    MAX_SIDE,
    MAX_TEXT,
    MAX_WAIT_MS,
)

_FRAME = re.compile(r"0|-?[1-9][0-9]{0,9}")


class Model(BaseModel):
    """A JSON object with exactly these fields, without conversions. Null counts as absent."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if type(given) is not dict:
            return given
        return {
            name: value for name, value in given.items() if value is not None or name not in cls.model_fields
        }

    @classmethod
    def read_object(cls, given: Any, where: str) -> Self:
        """The value of a JSON object; `where` is the beginning of the error text.

        Raises:
            RequestError: a field is missing, unknown, or has an invalid value.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise RequestError("bad_request", f"{where}: {_sentence(error)}.") from error


def _sentence(error: ValidationError) -> str:
    """The first fault, in words."""
    first = error.errors(include_url=False)[0]
    kind, place = first["type"], [str(one)[:64] for one in first["loc"]]
    if kind == "extra_forbidden":
        inside = f" in {'.'.join(place[:-1])}" if place[:-1] else ""
        return f"there is no field {place[-1]!r}{inside}"
    name = f"the field {'.'.join(place)}" if place else "it"
    if kind == "missing":
        return f"{name} is missing"
    if kind.startswith("union_tag"):
        return f"{name} must have a kind: {first['ctx'].get('expected_tags', 'it has none')}"
    words = str(first["ctx"]["error"]) if kind == "value_error" else _WORDS.get(kind) or first["msg"]
    words = re.sub(r"^(Input|\w+) should ", "must ", words.split(" after validation")[0])
    return f"{name} {words}"


_WORDS: Final = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
}
"""Texts for errors that the library describes in terms of Python."""


def _matching(pattern: str, words: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {words}")
        return text

    return AfterValidator(check)


def _check(holds: Callable[[Any], bool], words: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(words)
        return value

    return AfterValidator(check)


def _fits_a_file_system(path: str) -> bool:
    longest = max(len(part.encode("utf-8")) for part in re.split(r"[/\\]", path))
    return longest <= MAX_NAME_BYTES and len(path.encode("utf-8")) < MAX_TEXT


def _are_distinct(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _frame_numbers(given: Any) -> Any:
    """The names of a JSON object as frame numbers."""
    if type(given) is not dict:
        return given
    if not all(_FRAME.fullmatch(name) for name in given):
        raise ValueError("must have frame numbers as names")
    return {int(name): value for name, value in given.items()}


def _text_or_number(given: Any) -> Any:
    if type(given) not in (str, int, float):
        raise ValueError("must be a text or a number")
    if type(given) is str and (len(given) > MAX_TEXT or "\0" in given):
        raise ValueError(f"must be a text of at most {MAX_TEXT} characters without NUL")
    return given


DISTINCT: Final = _check(_are_distinct, "must not repeat a name")
AsList: Final = Strict(False)
"""A list in JSON becomes a tuple. Its items are strict."""

Text = Annotated[
    str, Field(max_length=MAX_TEXT), _check(lambda text: "\0" not in text, "must be a text without NUL")
]
PathText = Annotated[
    Text,
    _check(
        _fits_a_file_system,
        f"must be a path: names of at most {MAX_NAME_BYTES} bytes, below {MAX_TEXT} in all",
    ),
]
ObjectName = Annotated[
    str,
    _matching(
        r"[A-Za-z_][A-Za-z0-9_-]{0,63}",
        "a name: up to 64 letters, digits, _ and -, with a letter or _ first",
    ),
]
ChannelName = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", "a channel name")]
Digest = Annotated[str, _matching(r"[\x21-\x7e]{1,128}", "1 to 128 visible ASCII characters")]
Content = Annotated[str, _matching(r"[0-9a-f]{64}", "64 hex digits")]
Handle = Annotated[str, _matching(r"[a-z][0-9]{1,12}", "a handle that the engine gave")]
Token = Annotated[str, _matching(r"[0-9a-f]{64}", "64 hex digits")]
MappedName = Annotated[str, _matching(r"[A-Za-z0-9_-]{1,64}", "a file name")]
ScratchName = Annotated[
    str,
    _matching(
        r"([A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}/){0,7}[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}",
        "a file name: up to 8 parts of letters, digits, _, - and ., with no . first",
    ),
]

Frame = Annotated[int, Field(ge=-MAX_FRAME, le=MAX_FRAME)]
FrameRange = Annotated[
    tuple[Frame, Frame],
    AsList,
    _check(
        lambda frames: 0 <= frames[1] - frames[0] < MAX_RANGE,
        f"must be [first, last] with at most {MAX_RANGE} frames",
    ),
]
_Origin = Annotated[int, Field(ge=-MAX_ORIGIN, le=MAX_ORIGIN)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Window = Annotated[
    tuple[_Origin, _Origin, _Side, _Side],
    AsList,
    _check(lambda window: window[2] * window[3] <= MAX_PIXELS, f"must have at most {MAX_PIXELS} pixels"),
]
PixelAspect = Annotated[float, Field(ge=1e-3, le=1e3)]
ByteOffset = Annotated[int, Field(ge=0, le=MAX_PAYLOAD)]
ByteStride = Annotated[int, Field(ge=-MAX_PAYLOAD, le=MAX_PAYLOAD)]
WaitMs = Annotated[int, Field(ge=0, le=MAX_WAIT_MS)]

ObjectNames = Annotated[tuple[ObjectName, ...], AsList, Field(max_length=MAX_OBJECTS), DISTINCT]
Renames = Annotated[dict[ObjectName, ObjectName], Field(max_length=MAX_OBJECTS)]
Digests = Annotated[dict[Frame, Digest], BeforeValidator(_frame_numbers), Field(max_length=MAX_DIGESTS)]
Metadata = Annotated[
    dict[Text, Annotated[str | int | float, PlainValidator(_text_or_number)]], Field(max_length=256)
]


def ranges_of(frames: Sequence[int] | set[int] | frozenset[int]) -> list[list[int]]:
    """Frames as ascending, separate `[first, last]` ranges."""
    ranges: list[list[int]] = []
    for frame in sorted(set(frames)):
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    return ranges
