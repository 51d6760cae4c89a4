"""Requests as typed values; PROTOCOL.md section 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from stm_plugin.protocol.errors import RequestError
from stm_plugin.protocol.images import ImageLayout, MappedTarget, ScratchFile
from stm_plugin.protocol.limits import (
    MAX_INTEGER,
    MAX_OBJECTS,
    MAX_REQUEST_ID,
    VERSION,
    Direction,
    MatteLayer,
    MattePixels,
    Rows,
)
from stm_plugin.protocol.models import (
    AsList,
    ChannelName,
    Content,
    Digest,
    Digests,
    Frame,
    FrameRange,
    Handle,
    Metadata,
    Model,
    ObjectName,
    ObjectNames,
    PathText,
    PixelAspect,
    Renames,
    Text,
    Token,
    WaitMs,
    Window,
)


class Request(Model):
    """The base of all requests. `op` is its name in the header."""

    op: ClassVar[str] = ""


class ShotRequest(Request):
    """A request about an open shot."""

    shot: Handle


_VersionPart = Annotated[int, Field(ge=0, le=65535)]


class Hello(Request):
    """The first request of a connection. Another major version is refused before all else is read."""

    op: ClassVar[str] = "hello"
    protocol: Annotated[tuple[_VersionPart, _VersionPart], AsList]
    token: Annotated[Token, Field(repr=False)]
    client: Text
    pid: Annotated[int, Field(ge=0, le=MAX_REQUEST_ID)]
    events: bool = False

    @field_validator("protocol")
    @classmethod
    def _check_version(cls, spoken: tuple[int, int]) -> tuple[int, int]:
        if spoken[0] != VERSION[0]:
            raise RequestError(
                "version",
                f"The engine speaks protocol {VERSION[0]}.{VERSION[1]}, the host {spoken[0]}.{spoken[1]}.",
                hint="Install the plug-in again so that both sides are of one version.",
                details={"protocol": list(VERSION)},
            )
        return spoken


class Ping(Request):
    """Whether the engine runs, and how busy it is."""

    op: ClassVar[str] = "ping"


class Info(Request):
    """The devices, weights and settings to choose from."""

    op: ClassVar[str] = "info"


class Shutdown(Request):
    """Stop the engine."""

    op: ClassVar[str] = "shutdown"


class PushedGeometry(Model):
    """A plate whose pixels the host pushes."""

    kind: Literal["pushed"] = "pushed"
    frames: FrameRange
    display_window: Window
    canvas: Window | None = None
    pixel_aspect: PixelAspect = 1.0
    fps: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    colour_space: Text | None = None


class PlateFiles(Model):
    """A plate that the engine reads from files."""

    kind: Literal["files"] = "files"
    sequence: PathText
    frames: FrameRange | None = None
    layer: Text | None = None
    view: Text | None = None
    colour_space: Text | None = None


class OpenShot(Request):
    """Open a shot store, or create it."""

    op: ClassVar[str] = "open_shot"
    folder: PathText
    create: bool = False
    owner: Text | None = None
    plate: Annotated[PushedGeometry | PlateFiles, Field(discriminator="kind")] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    objects: ObjectNames = ()
    scratch: PathText | None = None
    copy_of: PathText | None = None


class CloseShot(ShotRequest):
    """Close a shot for this connection."""

    op: ClassVar[str] = "close_shot"


class PlateNeeded(ShotRequest):
    """The plate frames that the engine needs."""

    op: ClassVar[str] = "plate_needed"
    frames: FrameRange | None = None
    digests: Digests = Field(default_factory=dict)


class PixelRequest(ShotRequest):
    """A request that brings pixels: described by `image`, or in a `file` of the client's scratch folder."""

    SOURCES: ClassVar[tuple[str, ...]] = ("image", "file")
    frame: Frame
    image: ImageLayout | None = None
    file: ScratchFile | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if sum(getattr(self, name) is not None for name in self.SOURCES) != 1:
            raise self.refusal(f"give either {' or '.join(self.SOURCES)}")
        return self

    def refusal(self, words: str) -> RequestError:
        """The error for pixels that do not fit the request."""
        return RequestError("bad_request", f"{self.op}: {words}.", frame=self.frame)


class PushPlate(PixelRequest):
    """One plate frame's pixels; with `path`, those of a file that the engine reads."""

    op: ClassVar[str] = "push_plate"
    SOURCES: ClassVar[tuple[str, ...]] = ("image", "file", "path")
    CHANNELS: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("R", "G", "B"),
        ("R", "G", "B", "A"),
        ("Y",),
        ("Y", "A"),
    )
    display_window: Window | None = None
    pixel_aspect: PixelAspect | None = None
    digest: Digest | None = None
    metadata: Metadata = Field(default_factory=dict)
    path: PathText | None = None

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if self.image is None:
            if self.display_window is not None or self.pixel_aspect is not None:
                raise self.refusal("display_window and pixel_aspect are those of the file")
            return self
        if self.image.channels not in self.CHANNELS:
            raise self.refusal("the channels must be R G B, R G B A, Y or Y A")
        if self.image.premultiplied and "A" not in self.image.channels:
            raise self.refusal("premultiplied needs A")
        return self


class MaskChannel(Model):
    """One object's mask: a channel of the pushed image."""

    name: ObjectName
    channel: ChannelName


class PushKey(PixelRequest):
    """The masks of one key."""

    op: ClassVar[str] = "push_key"
    objects: Annotated[tuple[MaskChannel, ...], AsList, Field(max_length=MAX_OBJECTS)]
    digest: Digest | None = None
    replace: bool = False
    allow_empty: bool = False
    interrupt: bool = False

    @model_validator(mode="after")
    def _check_objects(self) -> Self:
        names = [one.name for one in self.objects]
        if not names or len(set(names)) != len(names):
            raise self.refusal("name each object once")
        if self.image is not None:
            self.check_channels(self.image)
        return self

    def check_channels(self, image: ImageLayout) -> None:
        """Raises RequestError where an object's channel is not in the image."""
        for one in self.objects:
            if one.channel not in image.channels:
                raise self.refusal(f"the image has no channel {one.channel}")


class ListKeys(ShotRequest):
    """The keys of a shot."""

    op: ClassVar[str] = "list_keys"


class RemoveKey(ShotRequest):
    """Remove a key."""

    op: ClassVar[str] = "remove_key"
    frame: Frame
    interrupt: bool = False


class KeptMask(Model):
    """One object's mask that the store has, as `list_keys` named its content."""

    name: ObjectName
    content: Content


class RestoreKey(ShotRequest):
    """Make a key of masks that the store has kept."""

    op: ClassVar[str] = "restore_key"
    frame: Frame
    objects: Annotated[tuple[KeptMask, ...], AsList, Field(max_length=MAX_OBJECTS)]
    digest: Digest | None = None
    interrupt: bool = False

    @model_validator(mode="after")
    def _check_objects(self) -> Self:
        names = [one.name for one in self.objects]
        if not names or len(set(names)) != len(names):
            raise ValueError("must name each object once")
        return self


class GetSettings(ShotRequest):
    """All settings of a shot."""

    op: ClassVar[str] = "get_settings"


class SetSettings(ShotRequest):
    """Change some settings of a shot."""

    op: ClassVar[str] = "set_settings"
    settings: dict[str, Any]
    interrupt: bool = False


class SetObjects(ShotRequest):
    """Rename or remove objects."""

    op: ClassVar[str] = "set_objects"
    rename: Renames = Field(default_factory=dict)
    remove: ObjectNames = ()
    interrupt: bool = False


class Status(ShotRequest):
    """The state of all frames, and why."""

    op: ClassVar[str] = "status"
    frames: FrameRange | None = None


class PlanRequest(ShotRequest):
    """The plan of a propagation."""

    op: ClassVar[str] = "plan"
    frames: FrameRange | None = None
    direction: Direction = "both"


class Propagate(ShotRequest):
    """Compute the frames that are not done."""

    op: ClassVar[str] = "propagate"
    frames: FrameRange | None = None
    direction: Direction = "both"
    detach: bool = False


class Export(ShotRequest):
    """Write matte files."""

    op: ClassVar[str] = "export"
    pattern: PathText
    frames: FrameRange | None = None
    channel: ChannelName | None = None
    objects: ObjectNames = ()
    cryptomatte: bool | None = None
    overwrite: bool = False
    detach: bool = False


class Shapes(ShotRequest):
    """Write the mattes as splines."""

    op: ClassVar[str] = "shapes"
    file: PathText
    format: Literal["nuke", "natron", "json", "svg"] = "nuke"
    frames: FrameRange | None = None
    objects: ObjectNames = ()
    tolerance: Annotated[float, Field(ge=0.05, le=100.0)] = 0.75
    detach: bool = False


class JobRequest(Request):
    """The state of a job."""

    op: ClassVar[str] = "job"
    job: Handle
    wait_ms: WaitMs = 0
    seen: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0


class Cancel(Request):
    """Stop a job."""

    op: ClassVar[str] = "cancel"
    job: Handle


class GetMatte(ShotRequest):
    """The finished matte of one frame."""

    op: ClassVar[str] = "get_matte"
    frame: Frame
    objects: ObjectNames = ()
    window: Window | None = None
    format: MattePixels = "half"
    rows: Rows = "down"
    wait_ms: WaitMs = 0
    stale: bool = False
    layer: MatteLayer = "matte"
    into: MappedTarget | None = None


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
        RestoreKey,
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
    """The request of a header.

    Raises:
        RequestError: unknown operation, wrong field, or wrong length of the payload.
    """
    op = header.get("op")
    kind = REQUESTS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise RequestError("bad_request", f"There is no operation {str(op)[:64]!r}.")
    request = kind.read_object({name: value for name, value in header.items() if name != "op"}, kind.op)
    image = request.image if isinstance(request, PixelRequest) else None
    if payload_bytes and (image is None or image.mapped is not None):
        raise RequestError("bad_request", f"{kind.op}: a payload is not expected.")
    if image is not None:
        image.check_inside(payload_bytes if image.mapped is None else image.mapped.bytes)
    return request
