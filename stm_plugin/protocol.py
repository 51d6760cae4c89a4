"""The engine protocol as `ofx_bridge/PROTOCOL.md` writes it down: framing, and requests as typed values.

Nothing here knows of sockets, shots or pixels' values: bytes become validated values, and values bytes.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Final, Literal, TypeVar, cast, get_args

from stm_plugin.errors import (
    ColourError,
    DeviceError,
    KeyframeError,
    MaskError,
    MatteError,
    PlateError,
    PropagationCancelled,
    ProtocolError,
    SettingsError,
    StmError,
    StoreBusyError,
    StoreError,
    WeightsError,
)

VERSION: Final = (1, 0)
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
MAX_TEXT: Final = 4096
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
"""x, y, width, height in the sense of OpenEXR: y down."""
Direction = Literal["forward", "backward", "both"]
Layout = Literal["interleaved", "planar"]
PixelFormat = Literal["byte", "short", "half", "float"]
Rows = Literal["down", "up"]
MattePixels = Literal["half", "float"]

SAMPLE_BYTES: Final[Mapping[PixelFormat, int]] = {"byte": 1, "short": 2, "half": 2, "float": 4}

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_CHANNEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[\x21-\x7e]{1,128}")
_FRAME = re.compile(r"0|-?[1-9][0-9]{0,9}")
_TOKEN = re.compile(r"[0-9a-f]{64}")
_REQUIRED: Final = object()


# Framing ---------------------------------------------------------------------------------------------


class Kind(IntEnum):
    """What a message is; byte 4 of its prefix."""

    REQUEST = 1
    REPLY = 2
    ERROR = 3
    EVENT = 4


class FramingError(ProtocolError):
    """The bytes are not a message. The connection that they came from cannot go on."""


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
    """Prefix and header of a message; the payload follows as it is.

    Raises:
        FramingError: the header or the payload is longer than the protocol allows.
    """
    header = json.dumps(message.header, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = header.encode("utf-8")
    payload_bytes = len(message.payload)
    if len(data) > MAX_HEADER or payload_bytes > MAX_PAYLOAD:
        raise FramingError("A message is too long to be sent.")
    prefix = PREFIX.pack(MAGIC, message.kind, b"\0\0\0", message.request_id, len(data), payload_bytes)
    return prefix + data


def decode_prefix(data: bytes, *, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD) -> Prefix:
    """Read and check the 24 bytes of a prefix.

    Raises:
        FramingError: they are not a prefix, or announce more than is allowed.
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
        FramingError: it is not a JSON object as the protocol wants it.
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
    """Read one message that is held as a whole, with nothing after it.

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


# Errors ----------------------------------------------------------------------------------------------


class RequestError(StmError):
    """A request that cannot be carried out, with the code that the protocol gives to the reason."""

    def __init__(
        self,
        code: str,
        what: str,
        *,
        frame: int | None = None,
        path: str | None = None,
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what, frame=frame, path=path, hint=hint)
        self.code = code
        self.details = dict(details or {})


_CODES: Final[tuple[tuple[type[StmError], str], ...]] = (
    (StoreBusyError, "store_busy"),
    (StoreError, "store"),
    (PlateError, "plate"),
    (MaskError, "mask"),
    (KeyframeError, "key"),
    (ColourError, "colour"),
    (MatteError, "matte"),
    (SettingsError, "settings"),
    (WeightsError, "weights"),
    (DeviceError, "device"),
    (PropagationCancelled, "cancelled"),
    (FramingError, "framing"),
    (ProtocolError, "bad_request"),
)


def error_code(error: StmError) -> str:
    """The protocol's code for an error."""
    if isinstance(error, RequestError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal")


def error_header(error: StmError) -> dict[str, Any]:
    """The header of the error message that tells a client of `error`."""
    return {
        "code": error_code(error),
        "what": error.what,
        "frame": error.frame,
        "path": error.path,
        "hint": error.hint,
        "text": str(error),
        "details": error.details if isinstance(error, RequestError) else {},
    }


# Reading fields --------------------------------------------------------------------------------------


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


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return value

    return read


def _number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return float(value)

    return read


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT or "\0" in value:
        raise ValueError(f"must be a text of at most {MAX_TEXT} characters without NUL")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if type(value) is not str or not pattern.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return read


def _choice(alternatives: tuple[Any, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not str or value not in alternatives:
            raise ValueError(f"must be one of {', '.join(alternatives)}")
        return value

    return read


def _list_of(read_one: Callable[[Any], T], most: int) -> Callable[[Any], tuple[T, ...]]:
    def read(value: Any) -> tuple[T, ...]:
        if type(value) is not list or len(value) > most:
            raise ValueError(f"must be a list of at most {most}")
        return tuple(read_one(one) for one in value)

    return read


def _mapping(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("must be an object")
    return value


_frame = _integer(-MAX_FRAME, MAX_FRAME)
_name = _matching(_NAME, "a name: up to 64 letters, digits, _ and -, with a letter or _ first")
_channel = _matching(_CHANNEL, "a channel name")
_digest = _matching(_DIGEST, "1 to 128 visible ASCII characters")
_handle = _matching(re.compile(r"[a-z][0-9]{1,12}"), "a handle that the engine gave")
_direction = cast(Callable[[Any], Direction], _choice(get_args(Direction)))


def _version(value: Any) -> tuple[int, int]:
    read = _list_of(_integer(0, 65535), 2)(value)
    if len(read) != 2:
        raise ValueError("must be [major, minor]")
    return read[0], read[1]


def _range(value: Any) -> Range:
    read = _list_of(_frame, 2)(value)
    if len(read) != 2 or read[0] > read[1] or read[1] - read[0] >= MAX_RANGE:
        raise ValueError(f"must be [first, last] with at most {MAX_RANGE} frames")
    return read[0], read[1]


def _window(value: Any) -> Rectangle:
    if type(value) is not list or len(value) != 4:
        raise ValueError("must be [x, y, width, height]")
    x, y = (_integer(-MAX_ORIGIN, MAX_ORIGIN)(one) for one in value[:2])
    width, height = (_integer(1, MAX_SIDE)(one) for one in value[2:])
    if width * height > MAX_PIXELS:
        raise ValueError(f"must have at most {MAX_PIXELS} pixels")
    return x, y, width, height


def _distinct(read: Callable[[Any], tuple[str, ...]]) -> Callable[[Any], tuple[str, ...]]:
    def checked(value: Any) -> tuple[str, ...]:
        names = read(value)
        if len(set(names)) != len(names):
            raise ValueError("must not repeat a name")
        return names

    return checked


_names = _distinct(_list_of(_name, MAX_OBJECTS))


def _digests(value: Any) -> dict[int, str]:
    given = _mapping(value)
    if len(given) > MAX_DIGESTS:
        raise ValueError(f"must have at most {MAX_DIGESTS} entries")
    read = {}
    for name, digest in given.items():
        if not _FRAME.fullmatch(name):
            raise ValueError("must have frame numbers as names")
        read[_frame(int(name))] = _digest(digest)
    return read


def _metadata(value: Any) -> dict[str, str | int | float]:
    given = _mapping(value)
    if len(given) > 256 or not all(type(one) in (str, int, float) for one in given.values()):
        raise ValueError("must have at most 256 texts and numbers")
    return {_text(name): _text(one) if isinstance(one, str) else one for name, one in given.items()}


def _renames(value: Any) -> dict[str, str]:
    given = _mapping(value)
    if len(given) > MAX_OBJECTS:
        raise ValueError(f"must have at most {MAX_OBJECTS} entries")
    return {_name(old): _name(new) for old, new in given.items()}


# Images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MappedPixels:
    """Pixels in a mapped file: its name in the map folder and how many of its bytes count."""

    name: str
    bytes: int
    offset: int = 0

    @classmethod
    def read(cls, value: Any, *, with_offset: bool = False) -> MappedPixels:
        fields = Fields(_mapping(value), "mapped")
        read = cls(
            name=fields.take("name", _matching(re.compile(r"[A-Za-z0-9_-]{1,64}"), "a file name")),
            bytes=fields.take("bytes", _integer(1, MAX_PAYLOAD)),
            offset=fields.take("offset", _integer(0, MAX_PAYLOAD), 0) if with_offset else 0,
        )
        fields.done()
        return read


@dataclass(frozen=True)
class ImageLayout:
    """Where each value of an image lies in a run of bytes; PROTOCOL.md section 5.

    Attributes:
        row_bytes: bytes from one row to the one BELOW it; negative where the bottom row comes first.
        offset: the first value of the top row.
    """

    format: PixelFormat
    channels: tuple[str, ...]
    data_window: Rectangle
    layout: Layout
    offset: int
    row_bytes: int
    plane_bytes: int = 0
    premultiplied: bool = False
    mapped: MappedPixels | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one value."""
        return SAMPLE_BYTES[self.format]

    @property
    def pixel_bytes(self) -> int:
        """Bytes from a value to the same channel's value in the next column."""
        return self.sample_bytes * (1 if self.layout == "planar" else len(self.channels))

    @property
    def channel_bytes(self) -> int:
        """Bytes from a value to the next channel's value of the same pixel."""
        return self.plane_bytes if self.layout == "planar" else self.sample_bytes

    @classmethod
    def read(cls, value: Any) -> ImageLayout:
        """Raises RequestError where the description is wrong in itself."""
        fields = Fields(_mapping(value), "image")
        image = cls(
            format=fields.take("format", _choice(get_args(PixelFormat))),
            channels=fields.take("channels", _distinct(_list_of(_channel, MAX_CHANNELS))),
            data_window=fields.take("data_window", _window),
            layout=fields.take("layout", _choice(get_args(Layout))),
            offset=fields.take("offset", _integer(0, MAX_PAYLOAD), 0),
            row_bytes=fields.take("row_bytes", _integer(-MAX_PAYLOAD, MAX_PAYLOAD)),
            plane_bytes=fields.take("plane_bytes", _integer(-MAX_PAYLOAD, MAX_PAYLOAD), 0),
            premultiplied=fields.take("premultiplied", _boolean, False),
            mapped=fields.take("mapped", MappedPixels.read, None),
        )
        fields.done()
        image._check_strides()
        return image

    def _check_strides(self) -> None:
        width, height = self.data_window[2:]
        if not self.channels:
            raise RequestError("bad_request", "image: there are no channels.")
        if any(stride % self.sample_bytes for stride in (self.row_bytes, self.offset, self.plane_bytes)):
            raise RequestError("bad_request", "image: strides must be multiples of a value's bytes.")
        if abs(self.row_bytes) < width * self.pixel_bytes:
            raise RequestError("bad_request", "image: row_bytes is shorter than a row.")
        if self.layout == "interleaved":
            if self.plane_bytes:
                raise RequestError("bad_request", "image: plane_bytes is for planar images.")
        elif len(self.channels) > 1 and abs(self.plane_bytes) < height * abs(self.row_bytes):
            raise RequestError("bad_request", "image: the planes overlap.")

    def extent(self) -> tuple[int, int]:
        """First byte that the image has a value in, and the byte after the last."""
        width, height = self.data_window[2:]
        steps = (
            (width - 1) * self.pixel_bytes,
            (height - 1) * self.row_bytes,
            (len(self.channels) - 1) * self.channel_bytes,
        )
        first = self.offset + sum(step for step in steps if step < 0)
        last = self.offset + sum(step for step in steps if step > 0)
        return first, last + self.sample_bytes

    def check_inside(self, available: int) -> None:
        """Raises RequestError if a value lies outside the `available` bytes."""
        first, end = self.extent()
        if first < 0 or end > available:
            raise RequestError(
                "bad_request", f"image: it needs the bytes {first} to {end} and there are {available}."
            )

    def to_json(self) -> dict[str, Any]:
        """The description as it stands in a header."""
        written: dict[str, Any] = {
            "format": self.format,
            "channels": list(self.channels),
            "data_window": list(self.data_window),
            "layout": self.layout,
            "offset": self.offset,
            "row_bytes": self.row_bytes,
            "plane_bytes": self.plane_bytes,
            "premultiplied": self.premultiplied,
        }
        if self.mapped is not None:
            written["mapped"] = {"name": self.mapped.name, "bytes": self.mapped.bytes}
        return written


# Requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What every request shares. `op` is its name in the header."""

    op: ClassVar[str] = ""
    takes_payload: ClassVar[bool] = False

    @classmethod
    def read(cls, fields: Fields) -> Request:
        """Take the fields of this request; the caller checks that none is left over."""
        return cls()


@dataclass(frozen=True)
class ShotRequest(Request):
    """A request about an open shot."""

    shot: str = ""


@dataclass(frozen=True)
class Hello(Request):
    """The first request of a connection."""

    op: ClassVar[str] = "hello"
    protocol: tuple[int, int] = VERSION
    token: str = field(default="", repr=False)
    client: str = ""
    pid: int = 0
    events: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Hello:
        version = fields.take("protocol", _version)
        if version[0] != VERSION[0]:
            raise RequestError(
                "version",
                f"The engine speaks protocol {VERSION[0]}.{VERSION[1]}, the host {version[0]}.{version[1]}.",
                hint="Install the plug-in again so that both sides are of one version.",
                details={"protocol": list(VERSION)},
            )
        return cls(
            protocol=version,
            token=fields.take("token", _matching(_TOKEN, "64 hexadecimal digits")),
            client=fields.take("client", _text),
            pid=fields.take("pid", _integer(0, MAX_REQUEST_ID)),
            events=fields.take("events", _boolean, False),
        )


@dataclass(frozen=True)
class Ping(Request):
    """Is anyone there?"""

    op: ClassVar[str] = "ping"


@dataclass(frozen=True)
class Info(Request):
    """What can be chosen: devices, weights, settings."""

    op: ClassVar[str] = "info"


@dataclass(frozen=True)
class Shutdown(Request):
    """End the engine."""

    op: ClassVar[str] = "shutdown"


@dataclass(frozen=True)
class PushedGeometry:
    """A plate whose pixels the host pushes."""

    frames: Range
    display_window: Rectangle
    canvas: Rectangle | None = None
    pixel_aspect: float = 1.0
    fps: float | None = None
    colour_space: str | None = None


@dataclass(frozen=True)
class PlateFiles:
    """A plate that the engine reads from files."""

    sequence: str
    frames: Range | None = None
    layer: str | None = None
    view: str | None = None
    colour_space: str | None = None


_aspect = _number(1e-3, 1e3)


def _plate(value: Any) -> PushedGeometry | PlateFiles:
    fields = Fields(_mapping(value), "plate")
    kind = fields.take("kind", _choice(("pushed", "files")))
    read: PushedGeometry | PlateFiles
    if kind == "pushed":
        read = PushedGeometry(
            frames=fields.take("frames", _range),
            display_window=fields.take("display_window", _window),
            canvas=fields.take("canvas", _window, None),
            pixel_aspect=fields.take("pixel_aspect", _aspect, 1.0),
            fps=fields.take("fps", _number(1e-3, 1e6), None),
            colour_space=fields.take("colour_space", _text, None),
        )
    else:
        read = PlateFiles(
            sequence=fields.take("sequence", _text),
            frames=fields.take("frames", _range, None),
            layer=fields.take("layer", _text, None),
            view=fields.take("view", _text, None),
            colour_space=fields.take("colour_space", _text, None),
        )
    fields.done()
    return read


@dataclass(frozen=True)
class OpenShot(Request):
    """Open a shot store, or create it."""

    op: ClassVar[str] = "open_shot"
    folder: str = ""
    create: bool = False
    owner: str | None = None
    plate: PushedGeometry | PlateFiles | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    objects: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> OpenShot:
        return cls(
            folder=fields.take("folder", _text),
            create=fields.take("create", _boolean, False),
            owner=fields.take("owner", _text, None),
            plate=fields.take("plate", _plate, None),
            settings=fields.take("settings", _mapping, {}),
            objects=fields.take("objects", _names, ()),
        )


@dataclass(frozen=True)
class CloseShot(ShotRequest):
    """Give a shot's handle back."""

    op: ClassVar[str] = "close_shot"

    @classmethod
    def read(cls, fields: Fields) -> CloseShot:
        return cls(shot=fields.take("shot", _handle))


@dataclass(frozen=True)
class PlateNeeded(ShotRequest):
    """Which plate frames does the engine lack?"""

    op: ClassVar[str] = "plate_needed"
    frames: Range | None = None
    digests: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, fields: Fields) -> PlateNeeded:
        return cls(
            shot=fields.take("shot", _handle),
            frames=fields.take("frames", _range, None),
            digests=fields.take("digests", _digests, {}),
        )


@dataclass(frozen=True)
class PushPlate(ShotRequest):
    """One plate frame's pixels."""

    op: ClassVar[str] = "push_plate"
    takes_payload: ClassVar[bool] = True
    CHANNELS: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("R", "G", "B"),
        ("R", "G", "B", "A"),
        ("Y",),
        ("Y", "A"),
    )
    frame: int = 0
    image: ImageLayout = field(default=cast(ImageLayout, None))
    display_window: Rectangle | None = None
    pixel_aspect: float | None = None
    digest: str | None = None
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)

    @classmethod
    def read(cls, fields: Fields) -> PushPlate:
        read = cls(
            shot=fields.take("shot", _handle),
            frame=fields.take("frame", _frame),
            image=fields.take("image", ImageLayout.read),
            display_window=fields.take("display_window", _window, None),
            pixel_aspect=fields.take("pixel_aspect", _aspect, None),
            digest=fields.take("digest", _digest, None),
            metadata=fields.take("metadata", _metadata, {}),
        )
        if read.image.channels not in cls.CHANNELS:
            raise RequestError(
                "bad_request", "push_plate: the channels must be R G B, R G B A, Y or Y A.", frame=read.frame
            )
        if read.image.premultiplied and "A" not in read.image.channels:
            raise RequestError("bad_request", "push_plate: premultiplied needs A.", frame=read.frame)
        return read


@dataclass(frozen=True)
class MaskChannel:
    """One object's mask: a channel of the pushed image."""

    name: str
    channel: str

    @classmethod
    def read(cls, value: Any) -> MaskChannel:
        fields = Fields(_mapping(value), "objects")
        read = cls(fields.take("name", _name), fields.take("channel", _channel))
        fields.done()
        return read


@dataclass(frozen=True)
class PushKey(ShotRequest):
    """The masks of one key."""

    op: ClassVar[str] = "push_key"
    takes_payload: ClassVar[bool] = True
    frame: int = 0
    objects: tuple[MaskChannel, ...] = ()
    image: ImageLayout = field(default=cast(ImageLayout, None))
    digest: str | None = None
    replace: bool = False
    allow_empty: bool = False
    interrupt: bool = False

    @classmethod
    def read(cls, fields: Fields) -> PushKey:
        read = cls(
            shot=fields.take("shot", _handle),
            frame=fields.take("frame", _frame),
            objects=fields.take("objects", _list_of(MaskChannel.read, MAX_OBJECTS)),
            image=fields.take("image", ImageLayout.read),
            digest=fields.take("digest", _digest, None),
            replace=fields.take("replace", _boolean, False),
            allow_empty=fields.take("allow_empty", _boolean, False),
            interrupt=fields.take("interrupt", _boolean, False),
        )
        names = [one.name for one in read.objects]
        if not names or len(set(names)) != len(names):
            raise RequestError("bad_request", "push_key: name each object once.", frame=read.frame)
        for one in read.objects:
            if one.channel not in read.image.channels:
                raise RequestError(
                    "bad_request", f"push_key: the image has no channel {one.channel}.", frame=read.frame
                )
        return read


@dataclass(frozen=True)
class ListKeys(ShotRequest):
    """The keys of a shot."""

    op: ClassVar[str] = "list_keys"

    @classmethod
    def read(cls, fields: Fields) -> ListKeys:
        return cls(shot=fields.take("shot", _handle))


@dataclass(frozen=True)
class RemoveKey(ShotRequest):
    """Take a key away."""

    op: ClassVar[str] = "remove_key"
    frame: int = 0
    interrupt: bool = False

    @classmethod
    def read(cls, fields: Fields) -> RemoveKey:
        return cls(
            shot=fields.take("shot", _handle),
            frame=fields.take("frame", _frame),
            interrupt=fields.take("interrupt", _boolean, False),
        )


@dataclass(frozen=True)
class GetSettings(ShotRequest):
    """All settings of a shot."""

    op: ClassVar[str] = "get_settings"

    @classmethod
    def read(cls, fields: Fields) -> GetSettings:
        return cls(shot=fields.take("shot", _handle))


@dataclass(frozen=True)
class SetSettings(ShotRequest):
    """Change some settings of a shot."""

    op: ClassVar[str] = "set_settings"
    settings: Mapping[str, Any] = field(default_factory=dict)
    interrupt: bool = False

    @classmethod
    def read(cls, fields: Fields) -> SetSettings:
        return cls(
            shot=fields.take("shot", _handle),
            settings=fields.take("settings", _mapping),
            interrupt=fields.take("interrupt", _boolean, False),
        )


@dataclass(frozen=True)
class SetObjects(ShotRequest):
    """Rename or remove objects."""

    op: ClassVar[str] = "set_objects"
    rename: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    interrupt: bool = False

    @classmethod
    def read(cls, fields: Fields) -> SetObjects:
        return cls(
            shot=fields.take("shot", _handle),
            rename=fields.take("rename", _renames, {}),
            remove=fields.take("remove", _names, ()),
            interrupt=fields.take("interrupt", _boolean, False),
        )


@dataclass(frozen=True)
class Status(ShotRequest):
    """What is done, stale, missing, and why."""

    op: ClassVar[str] = "status"
    frames: Range | None = None

    @classmethod
    def read(cls, fields: Fields) -> Status:
        return cls(shot=fields.take("shot", _handle), frames=fields.take("frames", _range, None))


@dataclass(frozen=True)
class PlanRequest(ShotRequest):
    """What would be computed."""

    op: ClassVar[str] = "plan"
    frames: Range | None = None
    direction: Direction = "both"

    @classmethod
    def read(cls, fields: Fields) -> PlanRequest:
        return cls(
            shot=fields.take("shot", _handle),
            frames=fields.take("frames", _range, None),
            direction=fields.take("direction", _direction, "both"),
        )


@dataclass(frozen=True)
class Propagate(ShotRequest):
    """Compute what is not done."""

    op: ClassVar[str] = "propagate"
    frames: Range | None = None
    direction: Direction = "both"
    detach: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Propagate:
        return cls(
            shot=fields.take("shot", _handle),
            frames=fields.take("frames", _range, None),
            direction=fields.take("direction", _direction, "both"),
            detach=fields.take("detach", _boolean, False),
        )


@dataclass(frozen=True)
class Export(ShotRequest):
    """Write matte files."""

    op: ClassVar[str] = "export"
    pattern: str = ""
    frames: Range | None = None
    channel: str | None = None
    objects: tuple[str, ...] = ()
    detach: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Export:
        return cls(
            shot=fields.take("shot", _handle),
            pattern=fields.take("pattern", _text),
            frames=fields.take("frames", _range, None),
            channel=fields.take("channel", _channel, None),
            objects=fields.take("objects", _names, ()),
            detach=fields.take("detach", _boolean, False),
        )


@dataclass(frozen=True)
class JobRequest(Request):
    """How far is a job?"""

    op: ClassVar[str] = "job"
    job: str = ""
    wait_ms: int = 0
    seen: int = 0

    @classmethod
    def read(cls, fields: Fields) -> JobRequest:
        return cls(
            job=fields.take("job", _handle),
            wait_ms=fields.take("wait_ms", _integer(0, MAX_WAIT_MS), 0),
            seen=fields.take("seen", _integer(0, MAX_INTEGER), 0),
        )


@dataclass(frozen=True)
class Cancel(Request):
    """Stop a job."""

    op: ClassVar[str] = "cancel"
    job: str = ""

    @classmethod
    def read(cls, fields: Fields) -> Cancel:
        return cls(job=fields.take("job", _handle))


@dataclass(frozen=True)
class GetMatte(ShotRequest):
    """The finished matte of one frame."""

    op: ClassVar[str] = "get_matte"
    frame: int = 0
    objects: tuple[str, ...] = ()
    window: Rectangle | None = None
    format: MattePixels = "half"
    rows: Rows = "down"
    wait_ms: int = 0
    stale: bool = False
    into: MappedPixels | None = None

    @classmethod
    def read(cls, fields: Fields) -> GetMatte:
        return cls(
            shot=fields.take("shot", _handle),
            frame=fields.take("frame", _frame),
            objects=fields.take("objects", _names, ()),
            window=fields.take("window", _window, None),
            format=fields.take("format", _choice(get_args(MattePixels)), "half"),
            rows=fields.take("rows", _choice(get_args(Rows)), "down"),
            wait_ms=fields.take("wait_ms", _integer(0, MAX_WAIT_MS), 0),
            stale=fields.take("stale", _boolean, False),
            into=fields.take("into", lambda value: MappedPixels.read(value, with_offset=True), None),
        )


_REQUESTS: Final[Mapping[str, type[Request]]] = {
    kind.op: kind
    for kind in (
        Hello,
        Ping,
        Info,
        Shutdown,
        OpenShot,
        CloseShot,
        PlateNeeded,
        PushPlate,
        PushKey,
        ListKeys,
        RemoveKey,
        GetSettings,
        SetSettings,
        SetObjects,
        Status,
        PlanRequest,
        Propagate,
        Export,
        JobRequest,
        Cancel,
        GetMatte,
    )
}


def read_request(header: Mapping[str, Any], payload_bytes: int) -> Request:
    """The request that a header stands for.

    Raises:
        RequestError: there is no such operation, or a field or the length of the payload is wrong.
    """
    op = header.get("op")
    kind = _REQUESTS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise RequestError("bad_request", f"There is no operation {str(op)[:64]!r}.")
    fields = Fields({name: value for name, value in header.items() if name != "op"}, kind.op)
    request = kind.read(fields)
    fields.done()
    image = request.image if isinstance(request, (PushPlate, PushKey)) else None
    if payload_bytes and (image is None or image.mapped is not None):
        raise RequestError("bad_request", f"{kind.op}: a payload is not expected.")
    if image is not None:
        image.check_inside(payload_bytes if image.mapped is None else image.mapped.bytes)
    return request


# Ranges ----------------------------------------------------------------------------------------------


def ranges_of(frames: Sequence[int] | set[int] | frozenset[int]) -> list[list[int]]:
    """Frames as ascending `[first, last]` ranges that do not touch."""
    ranges: list[list[int]] = []
    for frame in sorted(set(frames)):
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    return ranges
