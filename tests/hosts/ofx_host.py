"""A small OpenFX host that checks every call of its plug-in.

What is checked: handles alive and of the right kind, properties that the standard knows for that object and
their types, writing only where a plug-in may, calls only inside an action, on the action's thread and in
actions that allow them, images released before their action ends, progress and parameter values as they
should be, and nothing asked or fetched any more once the host has said stop. Several threads may each send
actions, to different nodes or the same one. What is found is collected in `OfxHost.violations`; `nodes_of`
fails when there is any.

Only the standard library and NumPy: it also runs with sanitizers preloaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_double, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

OK, FAILED, ERR_UNKNOWN, ERR_BAD_HANDLE, ERR_BAD_INDEX, ERR_VALUE = 0, 1, 3, 9, 10, 11
REPLY_YES, REPLY_NO, REPLY_DEFAULT = 12, 13, 14

LOAD, UNLOAD = "OfxActionLoad", "OfxActionUnload"
DESCRIBE, DESCRIBE_IN_CONTEXT = "OfxActionDescribe", "OfxImageEffectActionDescribeInContext"
CREATE, DESTROY = "OfxActionCreateInstance", "OfxActionDestroyInstance"
CHANGED = "OfxActionInstanceChanged"
BEGIN_CHANGED, END_CHANGED = "OfxActionBeginInstanceChanged", "OfxActionEndInstanceChanged"
CLIP_PREFERENCES = "OfxImageEffectActionGetClipPreferences"
REGION_OF_DEFINITION = "OfxImageEffectActionGetRegionOfDefinition"
REGIONS_OF_INTEREST = "OfxImageEffectActionGetRegionsOfInterest"
FRAMES_NEEDED = "OfxImageEffectActionGetFramesNeeded"
BEGIN_RENDER, END_RENDER = "OfxImageEffectActionBeginSequenceRender", "OfxImageEffectActionEndSequenceRender"
RENDER = "OfxImageEffectActionRender"

GENERAL, FILTER = "OfxImageEffectContextGeneral", "OfxImageEffectContextFilter"
RGBA, RGB, ALPHA = "OfxImageComponentRGBA", "OfxImageComponentRGB", "OfxImageComponentAlpha"
BYTE, SHORT, HALF, FLOAT = "OfxBitDepthByte", "OfxBitDepthShort", "OfxBitDepthHalf", "OfxBitDepthFloat"
UNDO_TEXT, UNDO_STATE = "NatronOfxParamUndoRedoText", "NatronOfxParamUndoRedoState"
PREMULTIPLIED, UNPREMULTIPLIED = "OfxImageAlphaPremultiplied", "OfxImageAlphaUnPremultiplied"

COMPONENT_COUNTS = {RGBA: 4, RGB: 3, ALPHA: 1}
DEPTH_TYPES: dict[str, Any] = {BYTE: np.uint8, SHORT: np.uint16, HALF: np.float16, FLOAT: np.float32}
DEPTH_SCALES = {BYTE: 255.0, SHORT: 65535.0, HALF: None, FLOAT: None}

# What the standard (1.4) says an object has: name -> type. `_` at the end stands for any clip's name.
_INT, _DOUBLE, _STRING, _POINTER = "int", "double", "string", "pointer"


def _table(ints: str = "", doubles: str = "", strings: str = "", pointers: str = "") -> dict[str, str]:
    kinds = ((ints, _INT), (doubles, _DOUBLE), (strings, _STRING), (pointers, _POINTER))
    return {name: kind for names, kind in kinds for name in names.split()}


PROPERTIES: dict[str, dict[str, str]] = {
    "host": _table(
        ints="""OfxPropAPIVersion OfxPropVersion OfxImageEffectHostPropIsBackground
        OfxImageEffectPropSupportsOverlays OfxImageEffectPropSupportsMultiResolution
        OfxImageEffectPropSupportsTiles OfxImageEffectPropTemporalClipAccess
        OfxImageEffectPropMultipleClipDepths OfxImageEffectPropSupportsMultipleClipPARs
        OfxParamHostPropMaxPages OfxImageEffectPropSetableFrameRate
        OfxImageEffectPropSetableFielding OfxParamHostPropMaxParameters
        OfxImageEffectInstancePropSequentialRender OfxParamHostPropSupportsStringAnimation
        OfxParamHostPropSupportsChoiceAnimation OfxParamHostPropSupportsBooleanAnimation""",
        strings="""OfxPropName OfxPropLabel OfxPropType OfxPropVersionLabel
        OfxImageEffectHostPropNativeOrigin OfxImageEffectPropSupportedComponents
        OfxImageEffectPropSupportedContexts""",
        pointers="OfxPropHostOSHandle",
    ),
    "effect descriptor": _table(
        ints="""OfxPropVersion OfxImageEffectPluginPropSingleInstance
        OfxImageEffectPluginPropHostFrameThreading OfxImageEffectPropSupportsMultiResolution
        OfxImageEffectPropSupportsTiles OfxImageEffectPropTemporalClipAccess
        OfxImageEffectPluginPropFieldRenderTwiceAlways OfxImageEffectPropMultipleClipDepths
        OfxImageEffectPropSupportsMultipleClipPARs OfxImageEffectInstancePropSequentialRender""",
        strings="""OfxPropType OfxPropLabel OfxPropShortLabel OfxPropLongLabel OfxPropVersionLabel
        OfxPropPluginDescription OfxImageEffectPropSupportedContexts
        OfxImageEffectPluginPropGrouping OfxImageEffectPluginRenderThreadSafety
        OfxImageEffectPropSupportedPixelDepths OfxImageEffectPropClipPreferencesSlaveParam
        OfxPluginPropFilePath""",
    ),
    "effect instance": _table(
        ints="""OfxPropIsInteractive OfxImageEffectInstancePropSequentialRender
        OfxImageEffectPropSupportsTiles""",
        doubles="""OfxImageEffectPropProjectSize OfxImageEffectPropProjectOffset
        OfxImageEffectPropProjectExtent OfxImageEffectPropPixelAspectRatio
        OfxImageEffectInstancePropEffectDuration OfxImageEffectPropFrameRate""",
        strings="OfxPropType OfxImageEffectPropContext",
        pointers="OfxPropInstanceData OfxImageEffectPropPluginHandle",
    ),
    "clip descriptor": _table(
        ints="""OfxImageClipPropOptional OfxImageClipPropIsMask OfxImageEffectPropTemporalClipAccess
        OfxImageEffectPropSupportsTiles""",
        strings="""OfxPropType OfxPropName OfxPropLabel OfxPropShortLabel OfxPropLongLabel
        OfxImageEffectPropSupportedComponents OfxImageClipPropFieldExtraction""",
    ),
    "clip instance": _table(
        ints="""OfxImageClipPropConnected OfxImageClipPropContinuousSamples OfxImageClipPropOptional
        OfxImageClipPropIsMask OfxImageEffectPropTemporalClipAccess
        OfxImageEffectPropSupportsTiles""",
        doubles="""OfxImageEffectPropFrameRange OfxImageEffectPropUnmappedFrameRange
        OfxImageEffectPropFrameRate OfxImageEffectPropUnmappedFrameRate
        OfxImagePropPixelAspectRatio""",
        strings="""OfxPropType OfxPropName OfxPropLabel OfxImageEffectPropPixelDepth
        OfxImageEffectPropComponents OfxImageClipPropUnmappedPixelDepth
        OfxImageClipPropUnmappedComponents OfxImageEffectPropPreMultiplication
        OfxImageClipPropFieldOrder OfxImageClipPropColourspace
        OfxImageEffectPropSupportedComponents""",
    ),
    "image": _table(
        ints="OfxImagePropBounds OfxImagePropRegionOfDefinition OfxImagePropRowBytes",
        doubles="OfxImageEffectPropRenderScale OfxImagePropPixelAspectRatio",
        strings="""OfxPropType OfxImageEffectPropPixelDepth OfxImageEffectPropComponents OfxImagePropField
        OfxImageEffectPropPreMultiplication OfxImagePropUniqueIdentifier""",
        pointers="OfxImagePropData",
    ),
    "param": _table(
        ints="""OfxParamPropAnimates OfxParamPropSecret OfxParamPropEnabled OfxParamPropEvaluateOnChange
        OfxParamPropPersistant OfxParamPropCanUndo OfxParamPropGroupOpen
        OfxParamPropStringFilePathExists OfxParamPropPluginMayWrite OfxParamPropLayoutHint""",
        strings="""OfxPropType OfxPropName OfxPropLabel OfxPropShortLabel OfxPropLongLabel OfxParamPropHint
        OfxParamPropParent OfxParamPropScriptName OfxParamPropType OfxParamPropStringMode
        OfxParamPropDoubleType OfxParamPropChoiceOption OfxParamPropCacheInvalidation""",
    ),
    DESCRIBE_IN_CONTEXT + " in": _table(strings="OfxImageEffectPropContext"),
    CHANGED + " in": _table(
        doubles="OfxPropTime OfxImageEffectPropRenderScale",
        strings="OfxPropType OfxPropName OfxPropChangeReason",
    ),
    BEGIN_CHANGED + " in": _table(strings="OfxPropChangeReason"),
    END_CHANGED + " in": _table(strings="OfxPropChangeReason"),
    CLIP_PREFERENCES + " out": _table(
        ints="OfxImageClipPropContinuousSamples OfxImageEffectFrameVarying",
        doubles="OfxImageEffectPropFrameRate OfxImageClipPropPAR_",
        strings="""OfxImageClipPropFieldOrder OfxImageEffectPropPreMultiplication OfxImageClipPropComponents_
        OfxImageClipPropDepth_""",
    ),
    REGION_OF_DEFINITION + " in": _table(doubles="OfxPropTime OfxImageEffectPropRenderScale"),
    REGION_OF_DEFINITION + " out": _table(doubles="OfxImageEffectPropRegionOfDefinition"),
    REGIONS_OF_INTEREST + " in": _table(
        doubles="OfxPropTime OfxImageEffectPropRenderScale OfxImageEffectPropRegionOfInterest"
    ),
    REGIONS_OF_INTEREST + " out": _table(doubles="OfxImageClipPropRoI_"),
    FRAMES_NEEDED + " in": _table(doubles="OfxPropTime"),
    FRAMES_NEEDED + " out": _table(doubles="OfxImageClipPropFrameRange_"),
    RENDER + " in": _table(
        ints="""OfxImageEffectPropRenderWindow OfxImageEffectPropSequentialRenderStatus
        OfxImageEffectPropInteractiveRenderStatus OfxImageEffectPropRenderQualityDraft""",
        doubles="OfxPropTime OfxImageEffectPropRenderScale",
        strings="OfxImageEffectPropFieldToRender",
    ),
}
for _action in (BEGIN_RENDER, END_RENDER):
    PROPERTIES[_action + " in"] = _table(
        ints="""OfxPropIsInteractive OfxImageEffectPropSequentialRenderStatus
        OfxImageEffectPropInteractiveRenderStatus""",
        doubles="OfxImageEffectPropFrameRange OfxImageEffectPropFrameStep OfxImageEffectPropRenderScale",
    )

# Properties of a parameter whose type depends on the parameter.
_PARAM_VALUES = (
    "OfxParamPropDefault",
    "OfxParamPropMin",
    "OfxParamPropMax",
    "OfxParamPropDisplayMin",
    "OfxParamPropDisplayMax",
)
_VALUE_TYPES = {
    "OfxParamTypeInteger": (_INT, 1),
    "OfxParamTypeBoolean": (_INT, 1),
    "OfxParamTypeChoice": (_INT, 1),
    "OfxParamTypeDouble": (_DOUBLE, 1),
    "OfxParamTypeDouble2D": (_DOUBLE, 2),
    "OfxParamTypeString": (_STRING, 1),
}
_NO_VALUE = ("OfxParamTypeGroup", "OfxParamTypePage", "OfxParamTypePushButton")

# Which actions may make a call; the rest may come in any action.
_IMAGE_ACTIONS = (RENDER, CHANGED, BEGIN_CHANGED, END_CHANGED)
_SETTING_ACTIONS = (CREATE, CHANGED, BEGIN_CHANGED, END_CHANGED)
_DESCRIBING = (DESCRIBE, DESCRIBE_IN_CONTEXT)


class RectD(Structure):
    """A rectangle in canonical coordinates."""

    _fields_ = [("x1", c_double), ("y1", c_double), ("x2", c_double), ("y2", c_double)]


class HostStruct(Structure):
    """The OfxHost structure that the plug-in gets."""

    _fields_ = [
        ("host", c_void_p),
        ("fetch", CFUNCTYPE(c_void_p, c_void_p, c_char_p, c_int)),
    ]


class PluginStruct(Structure):
    """The OfxPlugin structure that the host gets."""

    _fields_ = [
        ("api", c_char_p),
        ("api_version", c_int),
        ("identifier", c_char_p),
        ("major", c_uint),
        ("minor", c_uint),
        ("set_host", CFUNCTYPE(None, POINTER(HostStruct))),
        ("main", CFUNCTYPE(c_int, c_char_p, c_void_p, c_void_p, c_void_p)),
    ]


class _Refused(Exception):
    """A call that gets the error status `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class PropertySet:
    """A property set of the plug-in."""

    kind: str
    values: dict[str, list[Any]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    writable: tuple[str, ...] = ()  # names; "*" is all
    alive: bool = True
    handle: int = 0
    keep: list[Any] = field(default_factory=list)  # what pointers point to

    def set(self, name: str, *values: Any) -> None:
        """Set a property from the host's side."""
        self.values[name] = list(values)


@dataclass
class Clip:
    """What is connected to an input: `read(frame)` gives float32 (h, w, c), top row first, or None.

    `origin` is the lower left pixel; `aspect` its pixel aspect; `frames` the range that the host tells.
    """

    read: Callable[[int], FloatArray | None]
    frames: tuple[float, float] = (1, 10)
    origin: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (32, 24)
    aspect: float = 1.0
    components: str = RGBA
    depth: str = FLOAT
    premultiplied: bool = False
    connected: bool = True
    negative_rows: bool = False
    padding: int = 0  # bytes at the end of each row
    fps: float = 24.0
    boxes: Callable[[int], tuple[int, int, int, int]] | None = None  # pixels, where they differ by frame
    reads: list[int] = field(default_factory=list)
    region_queries: int = 0

    def region(self, frame: int) -> tuple[float, float, float, float]:
        """The region of definition in canonical coordinates."""
        (x, y), (width, height) = self.origin, self.size
        if self.boxes is not None:
            left, bottom, right, top = self.boxes(frame)
            (x, y), (width, height) = (left, bottom), (right - left, top - bottom)
        return x * self.aspect, float(y), (x + width) * self.aspect, float(y + height)


@dataclass
class HostOptions:
    """The behaviour of the host.

    `one_channel_of_masks` and `fills_alpha` are what Natron does: a clip that is declared a mask gets the
    alpha of its input alone, and nothing where the input has none; any other RGB input becomes RGBA with an
    alpha of 1 beside an RGBA source.
    """

    name: str = "org.stm-for-nuke.TestHost"
    temporal: bool = True
    persistent_messages: bool = True
    progress: bool = True
    project: tuple[float, float] = (32.0, 24.0)
    frame_ranges: bool = True  # whether clips say their range
    one_channel_of_masks: bool = False
    fills_alpha: bool = False
    panel_was_open: bool = True  # without, brackets of changes make no undo step
    effect_undoes: bool = True  # as Natron does it: the effect sets a text, and is asked to undo by a state


class _Pixels:
    """An image in memory, in one of the layouts that hosts use."""

    def __init__(
        self,
        box: tuple[int, int, int, int],
        components: str,
        depth: str,
        negative_rows: bool = False,
        padding: int = 0,
    ) -> None:
        self.box, self.components, self.depth, self.negative_rows = box, components, depth, negative_rows
        width, height = box[2] - box[0], box[3] - box[1]
        self.type = np.dtype(DEPTH_TYPES[depth])
        row = width * COMPONENT_COUNTS[components] * self.type.itemsize + padding
        self.stride = row
        self.memory = np.full(row * height, 0xCD, np.uint8)
        bottom = (height - 1) * row if negative_rows else 0
        self.pointer = self.memory.ctypes.data + bottom
        self.row_bytes = -row if negative_rows else row

    def _rows(self) -> npt.NDArray[Any]:
        """(h, w, c) in the depth's type, the top row first."""
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        count = COMPONENT_COUNTS[self.components]
        lines = self.memory.reshape(height, self.stride)[:, : width * count * self.type.itemsize]
        if not self.negative_rows:
            lines = lines[::-1]
        rows: npt.NDArray[Any] = np.ascontiguousarray(lines).view(self.type).reshape(height, width, count)
        return rows

    def fill(self, picture: FloatArray) -> None:
        """Write float32 (h, w, c), top row first."""
        scale = DEPTH_SCALES[self.depth]
        if scale is None:
            values = picture.astype(self.type)
        else:
            values = np.floor(np.clip(picture, 0, 1) * scale + 0.5).astype(self.type)
        rows = np.ascontiguousarray(values if self.negative_rows else values[::-1])
        lines = self.memory.reshape(len(rows), self.stride)
        packed = rows.reshape(len(rows), -1).view(np.uint8)
        lines[:, : packed.shape[1]] = packed

    def picture(self) -> FloatArray:
        """Float32 (h, w, c), top row first."""
        scale = DEPTH_SCALES[self.depth]
        return self._rows().astype(np.float32) / np.float32(scale or 1.0)

    def raw(self) -> npt.NDArray[Any]:
        """The stored values (h, w, c), top row first."""
        return self._rows()


def box_scaled(picture: FloatArray, factor: int) -> FloatArray:
    """A proxy: the mean of factor x factor pixels."""
    height, width, count = picture.shape
    blocks = picture.reshape(height // factor, factor, width // factor, factor, count)
    means: FloatArray = blocks.mean(axis=(1, 3)).astype(np.float32)
    return means


@dataclass
class _Action:
    """A running action."""

    name: str
    stopped: bool = False  # the host has said that it wants no more of it
    shows_progress: bool = False
    is_clone: bool = False


class _ThreadState(threading.local):
    """The state of one thread: running actions, the innermost last, and images in use."""

    def __init__(self) -> None:
        self.actions: list[_Action] = []
        self.images: list[PropertySet] = []


class OfxHost:
    """One plug-in binary in one host.

    Args:
        binary: the .ofx file.
        options: the behaviour of the host.
    """

    def __init__(self, binary: Path, options: HostOptions | None = None) -> None:
        self.binary = binary
        self.options = options or HostOptions()
        self.violations: list[str] = []
        self.messages: list[tuple[str, str]] = []
        self._numbers = itertools.count(0x1000, 16)
        self._handles: dict[int, Any] = {}
        self._thread = _ThreadState()
        self._suites = _suites(self)
        self._properties = self._new_set("host")
        self._describe_host()
        self._fetch = HostStruct._fields_[1][1](self._fetch_suite)
        self._struct = HostStruct(self._properties.handle, self._fetch)
        self.library = ctypes.CDLL(str(binary))
        self.library.OfxGetNumberOfPlugins.restype = c_int
        self.library.OfxGetPlugin.restype = POINTER(PluginStruct)
        self.library.OfxGetPlugin.argtypes = [c_int]
        assert self.library.OfxGetNumberOfPlugins() == 1
        self.plugin = self.library.OfxGetPlugin(0).contents
        assert self.plugin.api == b"OfxImageEffectPluginAPI" and self.plugin.api_version == 1
        self.plugin.set_host(ctypes.byref(self._struct))
        self.act(LOAD, None)
        self.descriptor = self._new_effect("effect descriptor", None)
        self.act(DESCRIBE, self.descriptor)

    # ---- what a test uses

    def describe(self, context: str = GENERAL) -> Effect:
        """The description in a context, made anew."""
        effect = self._new_effect("effect descriptor", None)
        given = self._new_set(DESCRIBE_IN_CONTEXT + " in")
        given.set("OfxImageEffectPropContext", context)
        effect.context = context
        self.act(DESCRIBE_IN_CONTEXT, effect, given)
        for param in effect.params.values():
            self._check_param(param)
        return effect

    def create(
        self, clips: Mapping[str, Clip], context: str = GENERAL, saved: Mapping[str, Any] | None = None
    ) -> Effect:
        """A node with `clips` connected and the parameter values that were saved with a script."""
        described = self.describe(context)
        node = self._new_effect("effect instance", described)
        node.context = context
        self._introduce(node)
        node.connect({name: clips.get(name) for name in described.clips})
        for name, value in (saved or {}).items():
            node.params[name].value = value
        assert self.act(CREATE, node) in (OK, REPLY_DEFAULT)
        return node

    def render_clone(self, node: Effect) -> Effect:
        """A second instance of a node for a render beside another, with the same parameters."""
        clone = Effect(self, "effect instance", None)
        clone.is_instance = clone.is_clone = True
        clone.properties.writable = ("OfxPropInstanceData",)
        clone.context, clone.params = node.context, node.params
        clone.described_clips = node.described_clips
        self._introduce(clone)
        for name in ("Size", "Offset", "Extent"):  # Natron's clones tell a project of no size
            clone.properties.set(f"OfxImageEffectPropProject{name}", 0.0, 0.0)
        clone.connect({name: clip.source for name, clip in node.clips.items()})
        assert self.act(CREATE, clone) in (OK, REPLY_DEFAULT)
        return clone

    def _introduce(self, node: Effect) -> None:
        """Set an instance's properties."""
        context, properties = node.context, node.properties
        properties.set("OfxImageEffectPropContext", context)
        properties.set("OfxImageEffectPropProjectSize", *self.options.project)
        properties.set("OfxImageEffectPropProjectOffset", 0.0, 0.0)
        properties.set("OfxImageEffectPropProjectExtent", *self.options.project)
        properties.set("OfxImageEffectPropPixelAspectRatio", 1.0)
        properties.set("OfxPropInstanceData", 0)
        properties.writable = ("OfxPropInstanceData",)

    def unload(self) -> None:
        """Unload the plug-in."""
        self.act(UNLOAD, None)

    def violation(self, text: str) -> None:
        """Record something that the plug-in must not do."""
        where = self.action() or "outside an action"
        self.violations.append(f"{where}: {text}")

    # ---- actions

    def act(
        self,
        name: str,
        effect: Effect | None,
        given: PropertySet | None = None,
        answer: PropertySet | None = None,
    ) -> int:
        """Send an action and check what it left behind."""
        actions, images = self._thread.actions, self._thread.images
        actions.append(_Action(name, is_clone=effect is not None and effect.is_clone))
        before = len(images)
        try:
            status = self.plugin.main(
                name.encode(),
                None if effect is None else effect.handle,
                None if given is None else given.handle,
                None if answer is None else answer.handle,
            )
            if len(images) > before:
                self.violation(f"{len(images) - before} images were not released")
                del images[before:]
            if actions[-1].shows_progress:
                self.violation("progress was not ended")
        finally:
            actions.pop()
            for one in (given, answer):
                if one is not None:
                    one.alive = False
        return int(status)

    def action(self) -> str:
        """The running action."""
        return self._thread.actions[-1].name if self._thread.actions else ""

    # ---- objects

    def _new_set(self, kind: str, writable: tuple[str, ...] = ()) -> PropertySet:
        created = PropertySet(kind, types=dict(PROPERTIES.get(kind, {})), writable=writable)
        created.handle = self.register(created)
        return created

    def new_set(self, kind: str, writable: tuple[str, ...] = ()) -> PropertySet:
        """A property set of one of the kinds in PROPERTIES."""
        return self._new_set(kind, writable)

    def register(self, thing: Any) -> int:
        """A new handle; handles are never used twice."""
        handle = next(self._numbers)
        self._handles[handle] = thing
        return handle

    def find(self, handle: int | None, kind: type[Any]) -> Any:
        """The object of a handle.

        Raises:
            _Refused: no object has it, its object is destroyed, or is of another kind.
        """
        found = self._handles.get(handle or 0)
        if not isinstance(found, kind):
            self.violation(f"a {kind.__name__} handle that is none")
            raise _Refused(ERR_BAD_HANDLE)
        if not getattr(found, "alive", True):
            self.violation(f"a {kind.__name__} handle that is dead")
            raise _Refused(ERR_BAD_HANDLE)
        return found

    def allow(self, call: str, actions: Sequence[str] | None = None, forbidden: Sequence[str] = ()) -> None:
        """Record a violation if a call is outside an action, on another thread, or in a wrong action."""
        name = self.action()
        if not name:
            self.violation(f"{call} outside an action, or on another thread than the action's")
            return
        if (actions is not None and name not in actions) or name in forbidden:
            self.violation(f"{call} is not allowed in {name}")

    def still_wanted(self, call: str) -> None:
        """Record a violation if a call comes after the host has told the action to stop."""
        if self._thread.actions and self._thread.actions[-1].stopped:
            self.violation(f"{call} after the host has said stop")

    def creates_clone(self) -> bool:
        """Whether the running action makes an instance that only renders."""
        action = self._thread.actions[-1] if self._thread.actions else None
        return action is not None and action.is_clone and action.name == CREATE

    def under_way(self) -> _Action:
        """The innermost action of this thread, in which suites record its calls."""
        return self._thread.actions[-1]

    def _new_effect(self, kind: str, described: Effect | None) -> Effect:
        return Effect(self, kind, described)

    def _describe_host(self) -> None:
        host, options = self._properties, self.options
        host.set("OfxPropName", options.name)
        host.set("OfxPropLabel", "Test host")
        host.set("OfxPropType", "OfxTypeImageEffectHost")
        host.set("OfxPropAPIVersion", 1, 4)
        host.set("OfxPropVersionLabel", "1.0")
        host.set("OfxImageEffectPropTemporalClipAccess", int(options.temporal))
        host.set("OfxImageEffectPropSupportsMultiResolution", 1)
        host.set("OfxImageEffectPropSupportedComponents", RGBA, RGB, ALPHA)
        host.set("OfxImageEffectPropSupportedContexts", GENERAL, FILTER)

    def _check_param(self, param: Param) -> None:
        values = param.properties.values
        if param.type in _NO_VALUE:
            return
        default = values.get("OfxParamPropDefault")
        if param.type == "OfxParamTypeChoice":
            options = values.get("OfxParamPropChoiceOption", [])
            if not options or default is None or not 0 <= default[0] < len(options):
                self.violation(f"the choice {param.name} has no options or a default outside them")
        if param.type in ("OfxParamTypeInteger", "OfxParamTypeDouble", "OfxParamTypeDouble2D"):
            for end in _PARAM_VALUES:
                if len(values.get(end, [])) != _VALUE_TYPES[param.type][1]:
                    self.violation(f"the parameter {param.name} has no {end}")
            low, high = values["OfxParamPropMin"], values["OfxParamPropMax"]
            if not all(a <= v <= b for a, v, b in zip(low, default or low, high, strict=True)):
                self.violation(f"the default of {param.name} is outside its range")

    def _fetch_suite(self, host: int, name: bytes, version: int) -> int | None:
        if host != self._properties.handle:
            self.violation("fetchSuite with another host's handle")
        suite = self._suites.get((name.decode(), version))
        if suite is None or (name == b"OfxProgressSuite" and not self.options.progress):
            return None
        if name == b"OfxMessageSuite" and version == 2 and not self.options.persistent_messages:
            return None
        return ctypes.addressof(suite)

    def new_image(
        self, clip: str, pixels: _Pixels, premultiplied: bool, scale: float, aspect: float
    ) -> PropertySet:
        """Give out an image; the plug-in must release it before the action ends."""
        image = self._new_set("image")
        image.set("OfxPropType", "OfxTypeImage")
        image.set("OfxImagePropData", pixels.pointer)
        image.set("OfxImagePropBounds", *pixels.box)
        image.set("OfxImagePropRegionOfDefinition", 0, 0, 1, 1)  # hosts are known to tell wrong ones
        image.set("OfxImagePropRowBytes", pixels.row_bytes)
        image.set("OfxImageEffectPropPixelDepth", pixels.depth)
        image.set("OfxImageEffectPropComponents", pixels.components)
        image.set("OfxImageEffectPropPreMultiplication", PREMULTIPLIED if premultiplied else UNPREMULTIPLIED)
        image.set("OfxImageEffectPropRenderScale", scale, scale)
        image.set("OfxImagePropPixelAspectRatio", aspect)
        image.set("OfxImagePropField", "OfxFieldNone")
        image.set("OfxImagePropUniqueIdentifier", f"{clip} {image.handle}")
        image.keep.append(pixels)
        self._thread.images.append(image)
        return image

    def release_image(self, image: PropertySet) -> None:
        """Take an image back."""
        images = self._thread.images
        if not any(one is image for one in images):
            self.violation("an image that is none was released")
            raise _Refused(ERR_BAD_HANDLE)
        images[:] = [one for one in images if one is not image]
        image.alive = False
        image.keep.clear()


@dataclass
class Param:
    """A parameter of a description or of a node."""

    name: str
    type: str
    properties: PropertySet
    value: Any = None
    handle: int = 0
    alive: bool = True
    is_linked: bool = False  # to that of another node: it cannot be changed
    owner: Effect | None = None
    keep: deque[Any] = field(default_factory=lambda: deque(maxlen=16))  # texts that were handed out


@dataclass
class ClipState:
    """A clip of an effect, with its connected source."""

    name: str
    properties: PropertySet
    effect: Effect
    source: Clip | None = None
    handle: int = 0
    alive: bool = True


@dataclass
class ParamSet:
    """The parameters of one effect as a handle."""

    effect: Effect
    alive: bool = True


class Effect:
    """A described effect or a node of it."""

    def __init__(self, host: OfxHost, kind: str, described: Effect | None) -> None:
        self.host = host
        self.alive = True
        self.is_instance = described is not None
        self.is_clone = False
        self.described_clips: dict[str, dict[str, list[Any]]] = {}
        self.bracket: dict[str, Any] | None = None  # values before what is being changed as one step
        self.undo_steps: list[dict[str, Any]] = []
        self.redo_steps: list[dict[str, Any]] = []
        self.context = ""
        self.params: dict[str, Param] = {}
        self.clips: dict[str, ClipState] = {}
        self.persistent: str | None = None
        self.progress_open = False
        self.progress_values: list[float] = []
        self.progress_bars: list[list[float]] = []  # the values of each bar that was shown
        self.progress_labels: list[str] = []
        self.progress_answer: Callable[[float], int] = lambda part: OK
        self.abort_answer: Callable[[], int] = lambda: 0
        self.when_cleared: Callable[[], object] = lambda: None  # what happens when its message is taken away
        self.output: _Pixels | None = None
        self.scale = 1.0
        self.properties = host.new_set(kind, () if self.is_instance else ("*",))
        self.handle = host.register(self)
        self.param_set = ParamSet(self)
        self.param_set_handle = host.register(self.param_set)
        if described is not None:
            self.described_clips = {name: one.properties.values for name, one in described.clips.items()}
            for one in described.params.values():
                default = one.properties.values.get("OfxParamPropDefault", [None])
                value = _initial(one.type, default)
                param = Param(one.name, one.type, one.properties, value=value, owner=self)
                param.handle = host.register(param)
                self.params[one.name] = param

    # ---- what a test uses

    def connect(self, sources: Mapping[str, Clip | None]) -> None:
        """Make the clips of a node."""
        for name, source in sources.items():
            properties = self.host.new_set("clip instance")
            clip = ClipState(name, properties, self, source)
            clip.handle = self.host.register(clip)
            properties.set("OfxPropName", name)
            properties.set("OfxImageClipPropConnected", int(source is not None and source.connected))
            if source is not None:
                if self.host.options.frame_ranges:
                    properties.set("OfxImageEffectPropFrameRange", *map(float, source.frames))
                properties.set("OfxImageEffectPropFrameRate", source.fps)
                properties.set("OfxImagePropPixelAspectRatio", source.aspect)
                properties.set("OfxImageEffectPropComponents", self._handed_out(name, source))
                properties.set("OfxImageClipPropUnmappedComponents", source.components)
                properties.set("OfxImageEffectPropPixelDepth", source.depth)
            self.clips[name] = clip

    def _one_channel_only(self, name: str) -> bool:
        is_mask = self.described_clips.get(name, {}).get("OfxImageClipPropIsMask", [0]) == [1]
        return self.host.options.one_channel_of_masks and is_mask

    def _handed_out(self, name: str, source: Clip) -> str:
        """The components of an input's pictures."""
        if self._one_channel_only(name):
            return ALPHA
        if source.components == RGB and self.host.options.fills_alpha:
            return RGBA
        return source.components

    def undo(self) -> None:
        """Undo the last step as a host does: its parameters get their old values, with change actions."""
        self.redo_steps.append(self._take_values(self.undo_steps.pop()))

    def redo(self) -> None:
        """Do again what was undone last."""
        self.undo_steps.append(self._take_values(self.redo_steps.pop()))

    def _take_values(self, step: dict[str, Any]) -> dict[str, Any]:
        """Set the values of a step; returns those that were there."""
        before = {name: self.params[name].value for name in step}
        if UNDO_STATE in step:  # the effect does it
            before = {UNDO_STATE: not step[UNDO_STATE]}
        for name, value in step.items():
            self.params[name].value = value
            self.changed(name, 1.0, "OfxChangePluginEdited")
        return before

    def value(self, name: str) -> Any:
        """A parameter's value."""
        return self.params[name].value

    def set(self, name: str, value: Any) -> None:
        """Change a parameter as a user does, with the actions that follow."""
        self.params[name].value = value
        self.changed(name, 1.0)

    def press(self, button: str, time: float) -> int:
        """Press a push button at a time."""
        assert self.params[button].type == "OfxParamTypePushButton"
        return self.changed(button, time)

    def changed(self, name: str, time: float, reason: str = "OfxChangeUserEdited") -> int:
        """The three actions of a change."""
        for bracket in (BEGIN_CHANGED, CHANGED, END_CHANGED):
            given = self.host.new_set(bracket + " in")
            given.set("OfxPropChangeReason", reason)
            if bracket == CHANGED:
                given.set("OfxPropType", "OfxTypeParameter")
                given.set("OfxPropName", name)
                given.set("OfxPropTime", float(time))
                given.set("OfxImageEffectPropRenderScale", 1.0, 1.0)
            status = self.host.act(bracket, self, given)
            if bracket == CHANGED:
                answer = status
        return answer

    def saved(self) -> dict[str, Any]:
        """The node's state in a script: persistent parameter values."""
        return {
            one.name: one.value
            for one in self.params.values()
            if one.type not in _NO_VALUE and one.properties.values.get("OfxParamPropPersistant", [1]) == [1]
        }

    def frames_needed(self, time: float) -> dict[str, list[float]]:
        """The answer to getFramesNeeded, by clip."""
        given = self.host.new_set(FRAMES_NEEDED + " in")
        given.set("OfxPropTime", float(time))
        answer = self.host.new_set(FRAMES_NEEDED + " out", ("*",))
        inputs = [name for name in self.clips if name != "Output"]
        for name in inputs:
            answer.set(f"OfxImageClipPropFrameRange_{name}", float(time), float(time))
        assert self.host.act(FRAMES_NEEDED, self, given, answer) in (OK, REPLY_DEFAULT)
        return {name: answer.values[f"OfxImageClipPropFrameRange_{name}"] for name in inputs}

    def region_of_definition(self, time: float) -> list[float]:
        """The answer to getRegionOfDefinition."""
        given = self.host.new_set(REGION_OF_DEFINITION + " in")
        given.set("OfxPropTime", float(time))
        given.set("OfxImageEffectPropRenderScale", 1.0, 1.0)
        answer = self.host.new_set(REGION_OF_DEFINITION + " out", ("*",))
        assert self.host.act(REGION_OF_DEFINITION, self, given, answer) == OK
        return answer.values["OfxImageEffectPropRegionOfDefinition"]

    def regions_of_interest(self, time: float, region: Sequence[float]) -> dict[str, list[float]]:
        """The answer to getRegionsOfInterest, by clip."""
        given = self.host.new_set(REGIONS_OF_INTEREST + " in")
        given.set("OfxPropTime", float(time))
        given.set("OfxImageEffectPropRenderScale", 1.0, 1.0)
        given.set("OfxImageEffectPropRegionOfInterest", *region)
        answer = self.host.new_set(REGIONS_OF_INTEREST + " out", ("*",))
        assert self.host.act(REGIONS_OF_INTEREST, self, given, answer) == OK
        return {name.rsplit("_", 1)[1]: values for name, values in answer.values.items()}

    def clip_preferences(self) -> dict[str, Any]:
        """The answer to getClipPreferences."""
        answer = self.host.new_set(CLIP_PREFERENCES + " out", ("*",))
        assert self.host.act(CLIP_PREFERENCES, self, None, answer) == OK
        return {name: values[0] for name, values in answer.values.items()}

    def render(
        self,
        time: float,
        *,
        window: tuple[int, int, int, int] | None = None,
        components: str = RGBA,
        depth: str = FLOAT,
        scale: float = 1.0,
        in_order: bool = False,
        in_window: bool = False,
        negative_rows: bool = False,
        padding: int = 0,
    ) -> tuple[int, _Pixels]:
        """Render one frame: the status and the output image. Pixels that were not rendered stay 0xCD."""
        source = self.clips["Source"].source
        assert source is not None
        (x, y), (width, height) = source.origin, source.size
        box = tuple(round(side * scale) for side in (x, y, x + width, y + height))
        assert len(box) == 4
        self.output = _Pixels(box, components, depth, negative_rows, padding)
        self.scale = scale
        for action in (BEGIN_RENDER, RENDER, END_RENDER):
            given = self.host.new_set(action + " in")
            given.set("OfxImageEffectPropRenderScale", scale, scale)
            given.set("OfxImageEffectPropSequentialRenderStatus", int(in_order))
            given.set("OfxImageEffectPropInteractiveRenderStatus", int(in_window))
            if action == RENDER:
                given.set("OfxPropTime", float(time))
                given.set("OfxImageEffectPropRenderWindow", *(window or box))
                given.set("OfxImageEffectPropFieldToRender", "OfxFieldNone")
                status = self.host.act(action, self, given)
            else:
                given.set("OfxImageEffectPropFrameRange", float(time), float(time))
                given.set("OfxImageEffectPropFrameStep", 1.0)
                self.host.act(action, self, given)
        self.scale = 1.0
        return status, self.output

    def destroy(self) -> None:
        """Destroy the node."""
        assert self.host.act(DESTROY, self) in (OK, REPLY_DEFAULT)
        self.alive = self.param_set.alive = self.properties.alive = False
        for param in () if self.is_clone else self.params.values():
            param.alive = False
        for clip in self.clips.values():
            clip.alive = clip.properties.alive = False

    # ---- what the suites use

    def image(self, clip: ClipState, time: float) -> PropertySet:
        """An image of a clip.

        Raises:
            _Refused: it has none.
        """
        if clip.name == "Output":
            if self.output is None or self.host.action() != RENDER:
                self.host.violation("the output image is only for render")
                raise _Refused(FAILED)
            return self.host.new_image("Output", self.output, False, self.scale, 1.0)
        source = clip.source
        if source is None:
            self.host.violation(f"an image of {clip.name}, which is not connected")
            raise _Refused(FAILED)
        low, high = source.frames
        if not low <= time <= high:
            self.host.violation(f"an image of {clip.name} at {time}, outside its range")
            raise _Refused(FAILED)
        picture = source.read(round(time))
        if picture is None or (self._one_channel_only(clip.name) and source.components == RGB):
            raise _Refused(FAILED)
        components = self._handed_out(clip.name, source)
        if components == ALPHA and source.components == RGBA:
            picture = picture[..., 3:]
        if components == RGBA and source.components == RGB:
            picture = np.concatenate([picture[..., :3], np.ones_like(picture[..., :1])], axis=-1)
        source.reads.append(round(time))
        factor = round(1 / self.scale)
        if factor > 1:
            picture = box_scaled(picture, factor)
        left, bottom = source.origin if source.boxes is None else source.boxes(round(time))[:2]
        x, y = round(left * self.scale), round(bottom * self.scale)
        box = (x, y, x + picture.shape[1], y + picture.shape[0])
        pixels = _Pixels(box, components, source.depth, source.negative_rows, source.padding)
        pixels.fill(picture[..., : COMPONENT_COUNTS[components]])
        return self.host.new_image(clip.name, pixels, source.premultiplied, self.scale, source.aspect)


def _initial(kind: str, default: list[Any]) -> Any:
    if kind in _NO_VALUE:
        return None
    if kind == "OfxParamTypeDouble2D":
        return tuple(default)
    if default[0] is None:
        return "" if kind == "OfxParamTypeString" else 0
    return default[0]


# ---- suites


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8")


def _guarded(host: OfxHost, name: str, work: Callable[..., int | None]) -> Callable[..., int]:
    """A suite function that turns errors into statuses; no exception reaches C."""

    def call(*arguments: Any) -> int:
        try:
            answer = work(*arguments)
            return OK if answer is None else answer
        except _Refused as refused:
            return refused.status
        except Exception as error:
            host.violation(f"{name}: {type(error).__name__}: {error}")
            return FAILED

    return call


def _structure(
    host: OfxHost, name: str, functions: Sequence[tuple[Any, Callable[..., int | None] | None]]
) -> Structure:
    """A suite: pairs of a prototype and a function; None is a call that this effect must not make."""
    fields = [(f"f{index}", prototype) for index, (prototype, _) in enumerate(functions)]
    kind = type(name, (Structure,), {"_fields_": fields})
    suite: Structure = kind()
    for (field_name, prototype), (_, work) in zip(fields, functions, strict=True):

        def refuse(*arguments: Any, _name: str = f"{name}.{field_name}") -> int:
            host.violation(f"{_name} is not for this effect")
            return FAILED

        setattr(suite, field_name, prototype(_guarded(host, name, work or refuse)))
    return suite


def _suites(host: OfxHost) -> dict[tuple[str, int], Structure]:
    return {
        ("OfxPropertySuite", 1): _property_suite(host),
        ("OfxImageEffectSuite", 1): _effect_suite(host),
        ("OfxParameterSuite", 1): _parameter_suite(host),
        ("OfxMessageSuite", 1): _message_suite(host, 1),
        ("OfxMessageSuite", 2): _message_suite(host, 2),
        ("OfxProgressSuite", 1): _progress_suite(host),
    }


def _type_of(host: OfxHost, owner: PropertySet, name: str) -> str:
    known = owner.types.get(name)
    if known is None and "_" in name:
        known = owner.types.get(name[: name.rindex("_") + 1])
    if known is None:
        host.violation(f"the property {name} is not one of a {owner.kind}")
        raise _Refused(ERR_UNKNOWN)
    return known


def _property_suite(host: OfxHost) -> Structure:
    def checked(handle: int, name: bytes, kind: str) -> tuple[PropertySet, str]:
        host.allow("a property call")
        owner: PropertySet = host.find(handle, PropertySet)
        text = _text(name)
        if _type_of(host, owner, text) != kind:
            host.violation(f"the property {text} is no {kind}")
            raise _Refused(ERR_VALUE)
        return owner, text

    def written(handle: int, name: bytes, kind: str, index: int, value: Any) -> None:
        owner, text = checked(handle, name, kind)
        if "*" not in owner.writable and text not in owner.writable:
            host.violation(f"the property {text} of a {owner.kind} is not the plug-in's to write")
            raise _Refused(ERR_VALUE)
        values = owner.values.setdefault(text, [])
        if not 0 <= index <= len(values):
            host.violation(f"the property {text} is written at {index} before {len(values)}")
            raise _Refused(ERR_BAD_INDEX)
        values[index : index + 1] = [value]

    def read(handle: int, name: bytes, kind: str, index: int) -> Any:
        owner, text = checked(handle, name, kind)
        if text not in owner.values:
            raise _Refused(ERR_UNKNOWN)
        if not 0 <= index < len(owner.values[text]):
            raise _Refused(ERR_BAD_INDEX)
        return owner.values[text][index]

    def setter(kind: str) -> Callable[..., None]:
        def set_one(handle: int, name: bytes, index: int, value: Any) -> None:
            written(handle, name, kind, index, _text(value) if kind == _STRING else (value or 0))

        return set_one

    def set_doubles(handle: int, name: bytes, count: int, values: Any) -> None:
        owner, text = checked(handle, name, _DOUBLE)
        if "*" not in owner.writable:
            host.violation(f"the property {text} of a {owner.kind} is not the plug-in's to write")
            raise _Refused(ERR_VALUE)
        owner.values[text] = [values[index] for index in range(count)]

    def getter(kind: str) -> Callable[..., None]:
        def get_one(handle: int, name: bytes, index: int, into: Any) -> None:
            value = read(handle, name, kind, index)
            if kind == _STRING:
                kept = c_char_p(value.encode("utf-8"))
                host.find(handle, PropertySet).keep.append(kept)
                into[0] = kept
            else:
                into[0] = value

        return get_one

    def dimension(handle: int, name: bytes, into: Any) -> None:
        host.allow("a property call")
        owner: PropertySet = host.find(handle, PropertySet)
        _type_of(host, owner, _text(name))
        into[0] = len(owner.values.get(_text(name), []))

    def one(kind: Any) -> Any:
        return CFUNCTYPE(c_int, c_void_p, c_char_p, c_int, kind)

    unused = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int, c_void_p)
    return _structure(
        host,
        "OfxPropertySuite",
        [
            (one(c_void_p), setter(_POINTER)),
            (one(c_char_p), setter(_STRING)),
            (one(c_double), setter(_DOUBLE)),
            (one(c_int), setter(_INT)),
            (unused, None),
            (unused, None),
            (one(POINTER(c_double)), set_doubles),
            (unused, None),
            (one(POINTER(c_void_p)), getter(_POINTER)),
            (one(POINTER(c_char_p)), getter(_STRING)),
            (one(POINTER(c_double)), getter(_DOUBLE)),
            (one(POINTER(c_int)), getter(_INT)),
            (unused, None),
            (unused, None),
            (unused, None),
            (unused, None),
            (CFUNCTYPE(c_int, c_void_p, c_char_p), None),
            (CFUNCTYPE(c_int, c_void_p, c_char_p, POINTER(c_int)), dimension),
        ],
    )


def _effect_suite(host: OfxHost) -> Structure:
    def get_properties(handle: int, into: Any) -> None:
        host.allow("getPropertySet")
        into[0] = host.find(handle, Effect).properties.handle

    def get_params(handle: int, into: Any) -> None:
        host.allow("getParamSet", forbidden=(DESCRIBE,))
        into[0] = host.find(handle, Effect).param_set_handle

    def define(handle: int, name: bytes, into: Any) -> None:
        host.allow("clipDefine", (DESCRIBE_IN_CONTEXT,))
        effect: Effect = host.find(handle, Effect)
        clip = ClipState(_text(name), host.new_set("clip descriptor", ("*",)), effect)
        effect.clips[clip.name] = clip
        into[0] = clip.properties.handle

    def get_handle(handle: int, name: bytes, into: Any, properties: Any) -> int | None:
        host.allow("clipGetHandle", forbidden=_DESCRIBING)
        clip = host.find(handle, Effect).clips.get(_text(name))
        if clip is None:
            return ERR_UNKNOWN
        into[0] = clip.handle
        if properties:
            properties[0] = clip.properties.handle
        return OK

    def clip_properties(handle: int, into: Any) -> None:
        host.allow("clipGetPropertySet")
        into[0] = host.find(handle, ClipState).properties.handle

    def get_image(handle: int, time: float, region: Any, into: Any) -> None:
        host.allow("clipGetImage", _IMAGE_ACTIONS)
        host.still_wanted("clipGetImage")
        clip: ClipState = host.find(handle, ClipState)
        into[0] = clip.effect.image(clip, time).handle

    def release(handle: int) -> None:
        host.allow("clipReleaseImage", _IMAGE_ACTIONS)
        host.release_image(host.find(handle, PropertySet))

    def region_of(handle: int, time: float, into: Any) -> int | None:
        host.allow("clipGetRegionOfDefinition", forbidden=_DESCRIBING)
        source = host.find(handle, ClipState).source
        if source is None:
            return FAILED
        rectangle = into[0]
        source.region_queries += 1
        rectangle.x1, rectangle.y1, rectangle.x2, rectangle.y2 = source.region(round(time))
        return OK

    def abort(handle: int) -> int:
        host.allow("abort", (RENDER,))
        host.still_wanted("abort")
        effect: Effect = host.find(handle, Effect)
        answer = effect.abort_answer()
        if answer:
            host.under_way().stopped = True
        return answer

    handle_only = CFUNCTYPE(c_int, c_void_p)
    pair = CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p))
    return _structure(
        host,
        "OfxImageEffectSuite",
        [
            (pair, get_properties),
            (pair, get_params),
            (CFUNCTYPE(c_int, c_void_p, c_char_p, POINTER(c_void_p)), define),
            (CFUNCTYPE(c_int, c_void_p, c_char_p, POINTER(c_void_p), POINTER(c_void_p)), get_handle),
            (pair, clip_properties),
            (CFUNCTYPE(c_int, c_void_p, c_double, POINTER(RectD), POINTER(c_void_p)), get_image),
            (handle_only, release),
            (CFUNCTYPE(c_int, c_void_p, c_double, POINTER(RectD)), region_of),
            (handle_only, abort),
            (CFUNCTYPE(c_int, c_void_p, c_size_t, POINTER(c_void_p)), None),
            (handle_only, None),
            (pair, None),
            (handle_only, None),
        ],
    )


def _parameter_suite(host: OfxHost) -> Structure:
    def define(handle: int, kind: bytes, name: bytes, into: Any) -> None:
        host.allow("paramDefine", (DESCRIBE_IN_CONTEXT,))
        effect = host.find(handle, ParamSet).effect
        text, param_type = _text(name), _text(kind)
        if text in effect.params:
            host.violation(f"the parameter {text} is defined twice")
        properties = host.new_set("param", ("*",))
        if param_type in _VALUE_TYPES:
            properties.types.update(dict.fromkeys(_PARAM_VALUES, _VALUE_TYPES[param_type][0]))
        elif param_type not in _NO_VALUE:
            host.violation(f"the parameter type {param_type} is not known")
        effect.params[text] = Param(text, param_type, properties)
        if into:
            into[0] = properties.handle

    def get_handle(handle: int, name: bytes, into: Any, properties: Any) -> int | None:
        host.allow("paramGetHandle", forbidden=_DESCRIBING)
        param = host.find(handle, ParamSet).effect.params.get(_text(name))
        if param is None:
            host.violation(f"there is no parameter {_text(name)}")
            return ERR_UNKNOWN
        into[0] = param.handle
        if properties:
            properties[0] = param.properties.handle
        return OK

    def get_value(handle: int, first: int, second: int, *rest: int) -> None:
        host.allow("paramGetValue", forbidden=_DESCRIBING)
        param: Param = host.find(handle, Param)
        if param.type == "OfxParamTypeString":
            text = c_char_p(param.value.encode("utf-8"))
            param.keep.append(text)
            ctypes.cast(first, POINTER(c_char_p))[0] = text
        elif param.type == "OfxParamTypeDouble2D":
            ctypes.cast(first, POINTER(c_double))[0] = param.value[0]
            ctypes.cast(second, POINTER(c_double))[0] = param.value[1]
        elif param.type == "OfxParamTypeDouble":
            ctypes.cast(first, POINTER(c_double))[0] = param.value
        elif param.type in _NO_VALUE:
            host.violation(f"the parameter {param.name} has no value")
            raise _Refused(ERR_VALUE)
        else:
            ctypes.cast(first, POINTER(c_int))[0] = int(param.value)

    def set_value(handle: int, first: int | None, *rest: Any) -> None:
        host.allow("paramSetValue", _SETTING_ACTIONS)
        param: Param = host.find(handle, Param)
        if host.creates_clone():
            host.violation(f"{param.name} is set by an instance that only renders")
        if param.is_linked:
            return
        owner = param.owner
        is_secret = param.properties.values.get("OfxParamPropSecret", [0]) == [1]
        if owner is not None and host.options.effect_undoes:
            if param.name == UNDO_TEXT and host.options.panel_was_open:
                owner.undo_steps.append({UNDO_STATE: False})
                owner.redo_steps.clear()
        elif owner is not None and owner.bracket is not None and not is_secret:
            if not owner.bracket and owner.undo_steps and param.name in owner.undo_steps[-1]:
                owner.bracket = (
                    owner.undo_steps.pop()
                )  # the first value decides whether a step joins the last one
            owner.bracket.setdefault(param.name, param.value)
        if param.type == "OfxParamTypeString":
            param.value = _text(ctypes.cast(first or 0, c_char_p).value)
        elif param.type in ("OfxParamTypeInteger", "OfxParamTypeChoice", "OfxParamTypeBoolean"):
            param.value = c_int(first or 0).value
        elif param.type == "OfxParamTypeDouble":
            param.value = float(rest[-1])
        else:
            host.violation(f"a value for {param.name} of type {param.type}")

    def edit_begin(handle: int, name: bytes) -> None:
        host.allow("paramEditBegin", (CHANGED,))
        effect = host.find(handle, ParamSet).effect
        if effect.bracket is not None:
            host.violation("a bracket of changes inside another")
        effect.bracket = {}

    def edit_end(handle: int) -> None:
        host.allow("paramEditEnd", (CHANGED,))
        effect = host.find(handle, ParamSet).effect
        if effect.bracket is None:
            host.violation("the end of a bracket that was not begun")
            return
        step, effect.bracket = effect.bracket, None
        if host.options.panel_was_open and step:
            effect.undo_steps.append(step)
            effect.redo_steps.clear()

    # The values are variadic in C. By the calling conventions of Linux integers and pointers come like
    # ordinary arguments, so that ordinary callbacks receive them. A number has its own registers.
    variadic = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_double)
    unused = CFUNCTYPE(c_int, c_void_p, c_double)
    pair = CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p))
    return _structure(
        host,
        "OfxParameterSuite",
        [
            (CFUNCTYPE(c_int, c_void_p, c_char_p, c_char_p, POINTER(c_void_p)), define),
            (CFUNCTYPE(c_int, c_void_p, c_char_p, POINTER(c_void_p), POINTER(c_void_p)), get_handle),
            (pair, None),
            (pair, None),
            (variadic, get_value),
            (unused, None),
            (unused, None),
            (unused, None),
            (variadic, set_value),
            *[(unused, None)] * 7,
            (CFUNCTYPE(c_int, c_void_p, c_char_p), edit_begin),
            (CFUNCTYPE(c_int, c_void_p), edit_end),
        ],
    )


def _message_suite(host: OfxHost, version: int) -> Structure:
    def noted(handle: int, kind: bytes, form: bytes) -> str:
        host.allow("a message")
        text = _text(form)
        if "%" in text.replace("%%", ""):
            host.violation(f"a message with a conversion and no argument: {text}")
        shown = text.replace("%%", "%")
        host.messages.append((_text(kind), shown))
        return shown

    def message(handle: int, kind: bytes, number: bytes, form: bytes) -> None:
        noted(handle, kind, form)

    def persist(handle: int, kind: bytes, number: bytes, form: bytes) -> None:
        effect: Effect = host.find(handle, Effect)
        effect.persistent = noted(handle, kind, form)

    def clear(handle: int) -> None:
        host.allow("clearPersistentMessage")
        effect: Effect = host.find(handle, Effect)
        effect.persistent = None
        work, effect.when_cleared = effect.when_cleared, lambda: None
        work()

    prototype = CFUNCTYPE(c_int, c_void_p, c_char_p, c_char_p, c_char_p)
    functions: list[tuple[Any, Any]] = [(prototype, message)]
    if version == 2:
        functions += [(prototype, persist), (CFUNCTYPE(c_int, c_void_p), clear)]
    return _structure(host, f"OfxMessageSuite{version}", functions)


def _progress_suite(host: OfxHost) -> Structure:
    def start(handle: int, label: bytes) -> None:
        host.allow("progressStart")
        effect: Effect = host.find(handle, Effect)
        if effect.progress_open:
            host.violation("progress was started twice")
        effect.progress_labels.append(_text(label))
        effect.progress_bars.append([])
        effect.progress_open = host.under_way().shows_progress = True

    def update(handle: int, part: float) -> int:
        host.allow("progressUpdate")
        effect: Effect = host.find(handle, Effect)
        if not effect.progress_open or not 0.0 <= part <= 1.0:
            host.violation("progress outside start and end, or outside 0 to 1")
        host.still_wanted("progressUpdate")
        effect.progress_values.append(part)
        effect.progress_bars[-1].append(part)
        answer = effect.progress_answer(part)
        if answer == REPLY_NO:
            host.under_way().stopped = True
        return answer

    def end(handle: int) -> None:
        host.allow("progressEnd")
        effect: Effect = host.find(handle, Effect)
        if not effect.progress_open:
            host.violation("progress was ended twice")
        effect.progress_open = host.under_way().shows_progress = False

    return _structure(
        host,
        "OfxProgressSuite",
        [
            (CFUNCTYPE(c_int, c_void_p, c_char_p), start),
            (CFUNCTYPE(c_int, c_void_p, c_double), update),
            (CFUNCTYPE(c_int, c_void_p), end),
        ],
    )


@contextlib.contextmanager
def nodes_of(host: OfxHost, *nodes: Effect) -> Iterator[None]:
    """Destroy the nodes at the end, and fail if the plug-in broke a rule."""
    try:
        yield
    finally:
        for node in nodes:
            if node.alive:
                node.destroy()
    assert host.violations == [], "\n".join(host.violations)
