"""Requests as typed values; PROTOCOL.md section 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, cast, get_args

from stm_plugin.protocol.errors import RequestError
from stm_plugin.protocol.fields import (
    TOKEN,
    Fields,
    boolean,
    channel_name,
    choice,
    digest,
    digests_by_frame,
    direction,
    frame_number,
    frame_range,
    handle,
    integer,
    list_of,
    mapping,
    matching,
    metadata_values,
    number,
    object_name,
    object_names,
    path,
    renames,
    text,
    version,
    window,
)
from stm_plugin.protocol.images import ImageLayout, MappedPixels
from stm_plugin.protocol.limits import (
    MAX_INTEGER,
    MAX_OBJECTS,
    MAX_REQUEST_ID,
    MAX_WAIT_MS,
    VERSION,
    Direction,
    MattePixels,
    Range,
    Rectangle,
    Rows,
)


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
        spoken = fields.take("protocol", version)
        if spoken[0] != VERSION[0]:
            raise RequestError(
                "version",
                f"The engine speaks protocol {VERSION[0]}.{VERSION[1]}, the host {spoken[0]}.{spoken[1]}.",
                hint="Install the plug-in again so that both sides are of one version.",
                details={"protocol": list(VERSION)},
            )
        return cls(
            protocol=spoken,
            token=fields.take("token", matching(TOKEN, "64 hexadecimal digits")),
            client=fields.take("client", text),
            pid=fields.take("pid", integer(0, MAX_REQUEST_ID)),
            events=fields.take("events", boolean, False),
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


_aspect = number(1e-3, 1e3)


def _plate(value: Any) -> PushedGeometry | PlateFiles:
    fields = Fields(mapping(value), "plate")
    kind = fields.take("kind", choice(("pushed", "files")))
    read: PushedGeometry | PlateFiles
    if kind == "pushed":
        read = PushedGeometry(
            frames=fields.take("frames", frame_range),
            display_window=fields.take("display_window", window),
            canvas=fields.take("canvas", window, None),
            pixel_aspect=fields.take("pixel_aspect", _aspect, 1.0),
            fps=fields.take("fps", number(1e-3, 1e6), None),
            colour_space=fields.take("colour_space", text, None),
        )
    else:
        read = PlateFiles(
            sequence=fields.take("sequence", path),
            frames=fields.take("frames", frame_range, None),
            layer=fields.take("layer", text, None),
            view=fields.take("view", text, None),
            colour_space=fields.take("colour_space", text, None),
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
            folder=fields.take("folder", path),
            create=fields.take("create", boolean, False),
            owner=fields.take("owner", text, None),
            plate=fields.take("plate", _plate, None),
            settings=fields.take("settings", mapping, {}),
            objects=fields.take("objects", object_names, ()),
        )


@dataclass(frozen=True)
class CloseShot(ShotRequest):
    """Give a shot's handle back."""

    op: ClassVar[str] = "close_shot"

    @classmethod
    def read(cls, fields: Fields) -> CloseShot:
        return cls(shot=fields.take("shot", handle))


@dataclass(frozen=True)
class PlateNeeded(ShotRequest):
    """Which plate frames does the engine lack?"""

    op: ClassVar[str] = "plate_needed"
    frames: Range | None = None
    digests: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, fields: Fields) -> PlateNeeded:
        return cls(
            shot=fields.take("shot", handle),
            frames=fields.take("frames", frame_range, None),
            digests=fields.take("digests", digests_by_frame, {}),
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
            shot=fields.take("shot", handle),
            frame=fields.take("frame", frame_number),
            image=fields.take("image", ImageLayout.read),
            display_window=fields.take("display_window", window, None),
            pixel_aspect=fields.take("pixel_aspect", _aspect, None),
            digest=fields.take("digest", digest, None),
            metadata=fields.take("metadata", metadata_values, {}),
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
        fields = Fields(mapping(value), "objects")
        read = cls(fields.take("name", object_name), fields.take("channel", channel_name))
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
            shot=fields.take("shot", handle),
            frame=fields.take("frame", frame_number),
            objects=fields.take("objects", list_of(MaskChannel.read, MAX_OBJECTS)),
            image=fields.take("image", ImageLayout.read),
            digest=fields.take("digest", digest, None),
            replace=fields.take("replace", boolean, False),
            allow_empty=fields.take("allow_empty", boolean, False),
            interrupt=fields.take("interrupt", boolean, False),
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
        return cls(shot=fields.take("shot", handle))


@dataclass(frozen=True)
class RemoveKey(ShotRequest):
    """Take a key away."""

    op: ClassVar[str] = "remove_key"
    frame: int = 0
    interrupt: bool = False

    @classmethod
    def read(cls, fields: Fields) -> RemoveKey:
        return cls(
            shot=fields.take("shot", handle),
            frame=fields.take("frame", frame_number),
            interrupt=fields.take("interrupt", boolean, False),
        )


@dataclass(frozen=True)
class GetSettings(ShotRequest):
    """All settings of a shot."""

    op: ClassVar[str] = "get_settings"

    @classmethod
    def read(cls, fields: Fields) -> GetSettings:
        return cls(shot=fields.take("shot", handle))


@dataclass(frozen=True)
class SetSettings(ShotRequest):
    """Change some settings of a shot."""

    op: ClassVar[str] = "set_settings"
    settings: Mapping[str, Any] = field(default_factory=dict)
    interrupt: bool = False

    @classmethod
    def read(cls, fields: Fields) -> SetSettings:
        return cls(
            shot=fields.take("shot", handle),
            settings=fields.take("settings", mapping),
            interrupt=fields.take("interrupt", boolean, False),
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
            shot=fields.take("shot", handle),
            rename=fields.take("rename", renames, {}),
            remove=fields.take("remove", object_names, ()),
            interrupt=fields.take("interrupt", boolean, False),
        )


@dataclass(frozen=True)
class Status(ShotRequest):
    """What is done, stale, missing, and why."""

    op: ClassVar[str] = "status"
    frames: Range | None = None

    @classmethod
    def read(cls, fields: Fields) -> Status:
        return cls(shot=fields.take("shot", handle), frames=fields.take("frames", frame_range, None))


@dataclass(frozen=True)
class PlanRequest(ShotRequest):
    """What would be computed."""

    op: ClassVar[str] = "plan"
    frames: Range | None = None
    direction: Direction = "both"

    @classmethod
    def read(cls, fields: Fields) -> PlanRequest:
        return cls(
            shot=fields.take("shot", handle),
            frames=fields.take("frames", frame_range, None),
            direction=fields.take("direction", direction, "both"),
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
            shot=fields.take("shot", handle),
            frames=fields.take("frames", frame_range, None),
            direction=fields.take("direction", direction, "both"),
            detach=fields.take("detach", boolean, False),
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
            shot=fields.take("shot", handle),
            pattern=fields.take("pattern", path),
            frames=fields.take("frames", frame_range, None),
            channel=fields.take("channel", channel_name, None),
            objects=fields.take("objects", object_names, ()),
            detach=fields.take("detach", boolean, False),
        )


SHAPE_FORMATS: Final = ("nuke", "natron", "json", "svg")


@dataclass(frozen=True)
class Shapes(ShotRequest):
    """Write the mattes as splines."""

    op: ClassVar[str] = "shapes"
    file: str = ""
    format: str = "nuke"
    frames: Range | None = None
    objects: tuple[str, ...] = ()
    tolerance: float = 0.75
    detach: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Shapes:
        return cls(
            shot=fields.take("shot", handle),
            file=fields.take("file", path),
            format=fields.take("format", choice(SHAPE_FORMATS), "nuke"),
            frames=fields.take("frames", frame_range, None),
            objects=fields.take("objects", object_names, ()),
            tolerance=fields.take("tolerance", number(0.05, 100.0), 0.75),
            detach=fields.take("detach", boolean, False),
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
            job=fields.take("job", handle),
            wait_ms=fields.take("wait_ms", integer(0, MAX_WAIT_MS), 0),
            seen=fields.take("seen", integer(0, MAX_INTEGER), 0),
        )


@dataclass(frozen=True)
class Cancel(Request):
    """Stop a job."""

    op: ClassVar[str] = "cancel"
    job: str = ""

    @classmethod
    def read(cls, fields: Fields) -> Cancel:
        return cls(job=fields.take("job", handle))


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
            shot=fields.take("shot", handle),
            frame=fields.take("frame", frame_number),
            objects=fields.take("objects", object_names, ()),
            window=fields.take("window", window, None),
            format=fields.take("format", choice(get_args(MattePixels)), "half"),
            rows=fields.take("rows", choice(get_args(Rows)), "down"),
            wait_ms=fields.take("wait_ms", integer(0, MAX_WAIT_MS), 0),
            stale=fields.take("stale", boolean, False),
            into=fields.take("into", lambda value: MappedPixels.read(value, with_offset=True), None),
        )


REQUESTS: Final[Mapping[str, type[Request]]] = {
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
        Shapes,
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
    kind = REQUESTS.get(op) if isinstance(op, str) else None
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
