"""Colour: from the plate's colour space to the display-referred sRGB that the network was trained on.

Two kinds of input are distinguished by the colour space's encoding in the OpenColorIO config (or, where an
old config states none, by converting test values):

- **display-referred** (sRGB, Rec.709, `sdr-video`, data): converted to sRGB and clipped to [0, 1]. sRGB stays
  as it is.
- **scene-referred** (`scene-linear`, `log`, and HDR video): converted to linear Rec.709 primaries, encoded
  with the sRGB curve extended above 1, then bent by the *shoulder*, channel by channel:

      shoulder(e) = e                                                    where e <= 0.9
      shoulder(e) = 0.9 + 0.1 * t / (1 + t), t = (e - 0.9) / 0.1         above

  Up to a linear value of 0.79 the picture is plain sRGB; 1.0 becomes 0.95, 16 becomes 0.996 and nothing
  reaches 1, so that the shape of a highlight stays visible. The curve has no kink (slope 1 at 0.9).

Negative values, which saturated colours of a wide gamut give, become 0. NaN becomes 0, +Inf 1 and -Inf 0.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio
import PyOpenColorIO as ocio

from stm_plugin.errors import ColourError
from stm_plugin.images.colour_tables import ColourTables, curve_and_matrix
from stm_plugin.images.half_float import to_float, to_half
from stm_plugin.images.movie import is_movie
from stm_plugin.images.plate import FrameHeader, PlateFrame
from stm_plugin.windows import FloatArray, PixelArray

BUILT_IN_CONFIG = "ocio://studio-config-v2.2.0_aces-v1.3_ocio-v2.4"
"""A fixed version, not `latest`: colours must not change with a new release."""
SHOULDER_START = 0.9
"""sRGB-encoded value above which highlights are compressed."""

_VERSION = "display-srgb-2"
"""Part of every transform's id: raise it when the pixels that come out change."""
_LINEAR_TARGET = "lin_rec709_scene"
_DISPLAY_TARGET = "srgb_rec709_scene"
HALF_MAX = 65504.0
"""The largest finite half float."""
_HUGE = 1e30
_HALF_INFINITY = 0x7C00
"""The bits of it; NaN has more of them, everything finite less."""
_BLOCK_ELEMENTS = 100_000
_IDENTITY_TOLERANCE = 2e-5
_CHROMATICITY_TOLERANCE = 2e-3
_NEAR_NAMES = 5

# Names by which configs know a colour space, by the names of the Color Interop Forum.
_KNOWN_SPACES: dict[str, tuple[str, ...]] = {
    "lin_ap0_scene": ("ACES2065-1", "ACES - ACES2065-1", "lin_ap0"),
    "lin_ap1_scene": ("ACEScg", "ACES - ACEScg", "lin_ap1"),
    "lin_rec709_scene": (
        "Linear Rec.709 (sRGB)",
        "Utility - Linear - sRGB",
        "Utility - Linear - Rec.709",
        "lin_rec709",
        "lin_srgb",
        "linear_srgb",
        "Linear sRGB / REC.709 D65",
    ),
    "lin_p3d65_scene": ("Linear P3-D65", "Utility - Linear - P3-D65", "lin_p3d65"),
    "lin_rec2020_scene": ("Linear Rec.2020", "Utility - Linear - Rec.2020", "lin_rec2020"),
    "lin_adobergb_scene": ("Linear AdobeRGB", "Utility - Linear - Adobe RGB", "lin_adobergb"),
    "lin_awg3": ("Linear ARRI Wide Gamut 3", "lin_arri_wide_gamut_3"),
    "lin_awg4": ("Linear ARRI Wide Gamut 4", "lin_arri_wide_gamut_4"),
    "srgb_rec709_scene": (
        "sRGB - Texture",
        "sRGB Encoded Rec.709 (sRGB)",
        "Utility - sRGB - Texture",
        "srgb_texture",
        "srgb_tx",
        "sRGB",
        "srgb8",
        "sRGB D65",
        "sRGB - Display",
        "out_srgb",
    ),
    "g22_rec709_scene": (
        "Gamma 2.2 Encoded Rec.709",
        "Gamma 2.2 Rec.709 - Texture",
        "g22_rec709",
        "Gamma2.2",
    ),
    "g24_rec709_scene": ("Gamma 2.4 Encoded Rec.709", "Gamma 2.4 Rec.709 - Texture", "g24_rec709", "rec709"),
    "film_log": ("Cineon", "Cineon Log", "cineon", "ADX10", "Input - ADX - ADX10", "lg10", "log"),
    "data": ("Raw", "raw", "data"),
}

# (red x, y, green x, y, blue x, y, white x, y) of linear spaces; the order is that of the EXR attribute.
_CHROMATICITIES: dict[str, tuple[float, ...]] = {
    "lin_rec709_scene": (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    "lin_ap0_scene": (0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.0770, 0.32168, 0.33767),
    "lin_ap1_scene": (0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767),
    "lin_rec2020_scene": (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    "lin_p3d65_scene": (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
    "lin_adobergb_scene": (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290),
    "lin_awg3": (0.684, 0.313, 0.221, 0.848, 0.0861, -0.102, 0.3127, 0.3290),
    "lin_awg4": (0.7347, 0.2653, 0.1424, 0.8576, 0.0991, -0.0308, 0.3127, 0.3290),
}

# What OpenImageIO or a file's header may call a space, in lower case -> the names above.
_METADATA_NAMES = {
    "linear": "lin_rec709_scene",
    "lin_srgb": "lin_rec709_scene",
    "lin_rec709": "lin_rec709_scene",
    "srgb": "srgb_rec709_scene",
    "rec709": "g24_rec709_scene",
    "kodaklog": "film_log",
    "acescg": "lin_ap1_scene",
    "aces2065-1": "lin_ap0_scene",
}
_LINEAR_KINDS = frozenset({".exr", ".sxr", ".hdr"})
_FILM_LOG_TRANSFERS = ("printing density", "logarithmic")
_FILM_KINDS = frozenset({".dpx", ".cin"})
_DEFAULT_RULE = "Default"
_GUESSED = "srgb_rec709_scene"  # OpenImageIO's default for every JPEG and PNG: the file states nothing


@dataclass(frozen=True, eq=False)
class ColourConfig:
    """An OpenColorIO config.

    Attributes:
        ocio: the `PyOpenColorIO.Config`.
        name: the config's own name, or its file's.
        source: where it came from, in words ("given: /show/config.ocio", "$OCIO: ...", "built in").
        built_in: whether it is the built-in one, whose file rules are no statement of a studio.
    """

    ocio: Any
    name: str
    source: str
    built_in: bool = False

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the active colour spaces."""
        return tuple(str(space.getName()) for space in self.ocio.getColorSpaces())

    @property
    def roles(self) -> dict[str, str]:
        """Role -> colour space."""
        return {str(role): str(space) for role, space in self.ocio.getRoles()}

    def find(self, *names: str) -> str | None:
        """The canonical name of the first of these colour spaces, aliases or roles in the config."""
        for name in names:
            space = self.ocio.getColorSpace(name)
            if space is not None:
                return str(space.getName())
        return None

    def resolve(self, name: str) -> str:
        """The canonical name of a colour space, alias or role; the interop forum's names are understood.

        Raises:
            ColourError: the config has none of that name; similar names are listed.
        """
        found = self.find(name, *_KNOWN_SPACES.get(name, ()))
        if found is not None:
            return found
        known = {other: space.getName() for space in self.ocio.getColorSpaces() for other in _names_of(space)}
        by_lower = {other.lower(): other for other in known}
        near = difflib.get_close_matches(name.lower(), by_lower, n=_NEAR_NAMES, cutoff=0.5)
        near += [other for other in by_lower if name.lower() in other and other not in near]
        spaces = list(dict.fromkeys(known[by_lower[other]] for other in near))[:_NEAR_NAMES]
        hint = f"Near it are {', '.join(spaces)}." if spaces else f"It has {', '.join(self.spaces)}."
        raise ColourError(f"The colour config {self.name} has no colour space {name!r}.", hint=hint)


@dataclass(frozen=True)
class InputSpace:
    """An input colour space (its name in the config), and why it was chosen, in words."""

    name: str
    reason: str


def load_config(path: str | Path | None = None) -> ColourConfig:
    """The config at `path` (a file or `ocio://name`), else that of $OCIO, else the built-in one.

    A config that does not validate is accepted: hosts ship some that name a missing display or colour space.
    An error is raised only where a conversion needs the missing part.

    Raises:
        ColourError: the config does not exist or cannot be read.
    """
    stated = str(path) if path else os.environ.get("OCIO", "").strip()
    location = stated or BUILT_IN_CONFIG
    source = "given" if path else "$OCIO"
    if not location.startswith("ocio://") and not Path(location).expanduser().is_file():
        raise ColourError(
            f"The colour config ({source}) does not exist.",
            path=location,
            hint="Correct the path, or leave it out to use the built-in config.",
        )
    try:
        if not location.startswith("ocio://"):
            location = str(Path(location).expanduser())
        config = ocio.Config.CreateFromFile(location)
    except (ocio.Exception, UnicodeError) as error:  # OCIO's own text may hold bytes of the file
        why = "it is no text" if isinstance(error, UnicodeError) else _first_line(error)
        raise ColourError(
            f"The colour config ({source}) cannot be used: {why}.",
            path=location,
            hint="Restore the file, or leave it out to use the built-in config.",
        ) from error
    name = config.getName() or Path(location).name
    return ColourConfig(
        ocio=config,
        name=name,
        source=f"{source}: {location}" if stated else "built in",
        built_in=not stated,
    )


def find_input_space(
    frame: FrameHeader | PlateFrame, config: ColourConfig, stated: str | None = None
) -> InputSpace:
    """The colour space of a frame's pixels.

    In this order: what the artist stated; what the file's header says (`colorInteropID`, `oiio:ColorSpace`,
    `acesImageContainerFlag`, chromaticities, a film log DPX); a file rule of a studio's config (those of the
    built-in one state nothing); the config's scene_linear role for EXR, HDR and float files and for pixels
    that a host pushed; sRGB for the rest, movies included (the network was trained on such pictures).

    Raises:
        ColourError: the stated space is not in the config, or the config lacks what this kind of file needs.
    """
    if stated:
        return InputSpace(config.resolve(stated), "stated")
    in_header = _space_in_header(frame, config)
    if in_header is not None:
        return in_header
    if frame.path is not None and not config.built_in:
        name, rule = config.ocio.getColorSpaceFromFilepath(str(frame.path))
        rule_name = config.ocio.getFileRules().getName(rule)
        if rule_name != _DEFAULT_RULE:
            return InputSpace(config.resolve(name), f"the config's file rule {rule_name!r}")
    return _space_of_kind(frame, config)


def _space_in_header(frame: FrameHeader | PlateFrame, config: ColourConfig) -> InputSpace | None:
    spec = frame.metadata
    for attribute in ("colorInteropID", "oiio:ColorSpace"):
        value = spec.get_string_attribute(attribute)
        if value and value.lower() not in (_GUESSED, "unknown", "scene_linear"):
            key = _METADATA_NAMES.get(value.lower(), value)
            name = config.find(value, *_KNOWN_SPACES.get(key, ()))
            if name is not None:
                return InputSpace(name, f"the file's {attribute} says {value}")
    if spec.get_int_attribute("acesImageContainerFlag") == 1:
        name = config.find(*_KNOWN_SPACES["lin_ap0_scene"])
        if name is not None:
            return InputSpace(name, "the file is an ACES container")
    stored = spec.getattribute("chromaticities")
    if isinstance(stored, tuple) and len(stored) == 8:
        for key, primaries in _CHROMATICITIES.items():
            if np.allclose(stored, primaries, rtol=0, atol=_CHROMATICITY_TOLERANCE):
                name = config.find(*_KNOWN_SPACES[key])
                if name is not None:
                    return InputSpace(name, f"the file's chromaticities are those of {name}")
    return _film_log_space(frame, config)


def _film_log_space(frame: FrameHeader | PlateFrame, config: ColourConfig) -> InputSpace | None:
    """The space of film log files: Cineon, logarithmic DPX, and 10-bit DPX that states no encoding."""
    kind = "" if frame.path is None else frame.path.suffix.lower()
    if kind not in _FILM_KINDS:
        return None
    transfer = frame.metadata.get_string_attribute("dpx:Transfer").lower()
    unsaid = transfer in ("", "undefined", "user defined")
    ten_bits = frame.metadata.get_int_attribute("oiio:BitsPerSample") == 10
    if kind == ".dpx" and transfer not in _FILM_LOG_TRANSFERS and not (unsaid and ten_bits):
        return None
    name = config.find(*_KNOWN_SPACES["film_log"])
    if name is None:
        raise ColourError(
            "The file holds film log values, and the colour config has no film log space (Cineon, ADX10).",
            frame=frame.frame,
            path=frame.path,
            hint="State the plate's colour space.",
        )
    why = "a 10-bit DPX that does not state its encoding" if kind == ".dpx" and unsaid else "a film log file"
    return InputSpace(name, why)


def _space_of_kind(frame: FrameHeader | PlateFrame, config: ColourConfig) -> InputSpace:
    path = frame.path
    is_float = frame.metadata.format.basetype in (oiio.HALF, oiio.FLOAT, oiio.DOUBLE)
    linear = path is None or (not is_movie(path) and (path.suffix.lower() in _LINEAR_KINDS or is_float))
    if linear:
        name = config.find("scene_linear", "default")
        what = "pixels from the host" if path is None else f"{path.suffix.lower()} holds scene-linear values"
    else:
        assert path is not None
        name = config.find(*_KNOWN_SPACES["srgb_rec709_scene"], "texture_paint", "color_picking")
        what = f"{path.suffix.lower()} holds display-referred values"
    if name is None:
        wanted = "scene_linear role" if linear else "sRGB colour space"
        raise ColourError(
            f"The colour config {config.name} has no {wanted} for this file.",
            frame=frame.frame,
            path=path,
            hint="State the plate's colour space.",
        )
    return InputSpace(name, what)


class ColourTransform:
    """Converts pixels of one input space to display-referred sRGB in [0, 1]. Thread-safe.

    Attributes:
        input_space: the canonical name of the input space.
        display_referred: whether the input is shown without the shoulder.
        id: made of the content: configs and names with the same conversion have the same id, and a changed
            conversion has another.
    """

    def __init__(self, config: ColourConfig, input_space: str) -> None:
        """Build the conversion.

        Raises:
            ColourError: the space is unknown, or the config does not define how it relates to sRGB.
        """
        self.input_space: str = config.resolve(input_space)
        self._config = config
        space = config.ocio.getColorSpace(self.input_space)
        self.display_referred: bool = _is_display_referred(config, space)
        target = _DISPLAY_TARGET if self.display_referred else _LINEAR_TARGET
        processor = None if space.isData() else _processor_to(config, self.input_space, target)
        self._cpu: Any = None
        self._matrix: FloatArray | None = None  # (3, 3), rows give R, G, B
        if processor is not None:
            self._matrix = _pure_matrix(processor)
            self._cpu = processor.getDefaultCPUProcessor()
            if processor.isNoOp() or (self.display_referred and _is_identity(self._cpu)):
                self._cpu = self._matrix = None
                processor = None
        operations = "identity" if processor is None else _operations_id(processor)
        kind = "display" if self.display_referred else "scene"
        self.id: str = hashlib.sha256(f"{_VERSION}\n{kind}\n{operations}".encode()).hexdigest()

    def to_display(self, pixels: PixelArray) -> FloatArray:
        """Convert a picture.

        Args:
            pixels: float16 or float32 (h, w, 3) of the input space; any values.

        Returns:
            A new float32 array (h, w, 3) in [0, 1], display-referred sRGB with Rec.709 primaries.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype not in (np.float16, np.float32):
            raise ValueError(f"pixels must be half or float (h, w, 3), not {pixels.dtype} {pixels.shape}")
        result = np.empty(pixels.shape, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for rows in row_blocks(pixels.shape):
                block = self._converted(_finite(pixels[rows]))
                if self.display_referred:
                    np.clip(block, 0.0, 1.0, out=result[rows])
                else:
                    cv2.LUT(to_half(block).view(np.uint16), _DISPLAY_TABLE, dst=result[rows])
        return result

    def tables(self) -> ColourTables | None:
        """The same conversion as tables and a matrix, for a graphics card: it differs by less than 1/1024.

        None where OpenColorIO's processor is no curve for each channel with a matrix behind it.
        """
        shown = None if self.display_referred else _DISPLAY_TABLE[0]
        if self._matrix is not None or self._cpu is None:
            return ColourTables(_HALF_TABLE[0], True, self._matrix, shown)
        found = curve_and_matrix(self._converted, _HALF_TABLE[0], self._shown)
        return None if found is None else ColourTables(found[0], False, found[1], shown)

    def _shown(self, block: FloatArray) -> FloatArray:
        """What is displayed of converted values (h, w, 3), in [0, 1]."""
        if self.display_referred:
            return np.clip(block, 0.0, 1.0)
        return np.asarray(cv2.LUT(to_half(block).view(np.uint16), _DISPLAY_TABLE), dtype=np.float32)

    def to_linear(self, pixels: PixelArray) -> FloatArray:
        """A picture (h, w, 3) of the input space in linear light, finite float32, with primaries of its own.

        What is linear stays as it is.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return self._applied(self._linear[0], _finite(pixels))

    def from_linear(self, linear: FloatArray) -> FloatArray:
        """The way back from `to_linear`, float32 (h, w, 3)."""
        return self._applied(self._linear[1], linear)

    @cached_property
    def _linear(self) -> tuple[Any, Any]:
        """Processors to linear light and back; None where the space is linear already, or holds data."""
        space = self._config.ocio.getColorSpace(self.input_space)
        if space.isData():
            return None, None
        there = _processor_to(self._config, self.input_space, _LINEAR_TARGET)
        if there.isNoOp() or _pure_matrix(there) is not None:
            return None, None
        back = _processor_from(self._config, _LINEAR_TARGET, self.input_space)
        return there.getDefaultCPUProcessor(), back.getDefaultCPUProcessor()

    @staticmethod
    def _applied(processor: Any, picture: FloatArray) -> FloatArray:
        if processor is None:
            return picture
        converted = np.array(picture, dtype=np.float32, order="C")
        processor.applyRGB(converted)
        return converted

    def _converted(self, block: FloatArray) -> FloatArray:
        """A block (rows, w, 3) of finite values in linear Rec.709, or in sRGB when display-referred."""
        if self._matrix is not None:
            return np.asarray(cv2.transform(block, self._matrix), dtype=np.float32)
        if self._cpu is None:
            return block
        converted = np.array(block, dtype=np.float32, order="C")
        self._cpu.applyRGB(converted)
        return converted


def shoulder(encoded: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Compress sRGB-encoded values above SHOULDER_START smoothly towards 1; any shape."""
    room = 1.0 - SHOULDER_START
    above = np.maximum(encoded - SHOULDER_START, 0.0) / room
    compressed: npt.NDArray[np.floating[Any]] = np.minimum(encoded, SHOULDER_START) + room * above / (
        1 + above
    )
    return compressed


def encode_srgb(linear: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """The sRGB curve for values from 0 up, extended above 1; any shape."""
    curve: npt.NDArray[np.floating[Any]] = 1.055 * np.power(np.maximum(linear, 0.0031308), 1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, linear * 12.92, curve)


def _build_display_table() -> FloatArray:
    """float32 (1, 65536): the displayed value of every half float by its bits; one look-up does the curve and
    the shoulder.

    A half keeps 11 bits: the displayed value is good to 3e-4, less than a tenth of an 8-bit step.
    """
    linear = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    shown = shoulder(encode_srgb(np.clip(np.nan_to_num(linear, nan=0.0), 0.0, HALF_MAX)))
    shown[linear == np.inf] = 1.0
    return np.ascontiguousarray(shown.astype(np.float32)[None])


_DISPLAY_TABLE = _build_display_table()


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Blocks of rows of a picture (h, w, C) that fit into the processor's second-level cache."""
    step = max(1, _BLOCK_ELEMENTS // max(1, shape[1] * shape[2]))
    for first in range(0, shape[0], step):
        yield slice(first, first + step)


def _finite(block: PixelArray) -> FloatArray:
    """The block as float32 with NaN as 0 and Inf as the largest half; itself when it is that already."""
    if block.dtype == np.float16:
        halves: npt.NDArray[np.float16] = np.ascontiguousarray(block, dtype=np.float16)
        bits = halves.view(np.uint16)
        if (bits & np.uint16(0x7FFF)).max() < _HALF_INFINITY:
            return to_float(halves)
        return np.asarray(cv2.LUT(bits, _HALF_TABLE), dtype=np.float32)
    if np.isfinite(block.sum(dtype=np.float32)):
        return block.astype(np.float32, copy=False)
    cleaned = np.nan_to_num(block, nan=0.0, posinf=HALF_MAX, neginf=-HALF_MAX)
    finite: FloatArray = np.clip(cleaned, -_HUGE, _HUGE).astype(np.float32, copy=False)
    return finite


def _build_half_table() -> FloatArray:
    """float32 (1, 65536): the finite value of every half float by its bits."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.nan_to_num(halves, nan=0.0, posinf=HALF_MAX, neginf=-HALF_MAX)
    return np.ascontiguousarray(finite[None])


_HALF_TABLE = _build_half_table()


def _names_of(space: Any) -> list[str]:
    return [str(space.getName()), *(str(alias) for alias in space.getAliases())]


def _processor_to(config: ColourConfig, source: str, target: str) -> Any:
    """An optimised processor from a space of the config to one of the built-in config."""
    try:
        processor = ocio.Config.GetProcessorToBuiltinColorSpace(config.ocio, source, target)
    except ocio.Exception as error:
        processor = _processor_by_scene_linear(config, source, target, error)
    return processor.getOptimizedProcessor(ocio.OPTIMIZATION_DEFAULT)


def _processor_from(config: ColourConfig, source: str, target: str) -> Any:
    """An optimised processor from a space of the built-in config to one of the config."""
    try:
        processor = ocio.Config.GetProcessorFromBuiltinColorSpace(source, config.ocio, target)
        return processor.getOptimizedProcessor(ocio.OPTIMIZATION_DEFAULT)
    except ocio.Exception:
        group = _processor_to(config, target, source).createGroupTransform()
        group.setDirection(ocio.TRANSFORM_DIR_INVERSE)
    try:
        return config.ocio.getProcessor(group)
    except ocio.Exception as error:
        raise ColourError(
            f"The colour space {target!r} of {config.name} has no way back from linear light: "
            f"{_first_line(error)}.",
            hint="State another colour space of the plate, or leave out the foreground's colours.",
        ) from error


def _processor_by_scene_linear(config: ColourConfig, source: str, target: str, cause: Exception) -> Any:
    """The processor for configs without interchange roles: scene_linear counts as linear Rec.709."""
    role = config.find("scene_linear")
    if role is None:
        raise ColourError(
            f"The colour config {config.name} does not define how {source!r} relates to other configs.",
            hint="Give it the role aces_interchange or scene_linear.",
        ) from cause
    try:
        group = ocio.GroupTransform()
        group.appendTransform(ocio.ColorSpaceTransform(src=source, dst=role))
        if target == _DISPLAY_TARGET:
            group.appendTransform(
                ocio.ExponentWithLinearTransform(
                    gamma=[2.4, 2.4, 2.4, 1.0],
                    offset=[0.055, 0.055, 0.055, 0.0],
                    negativeStyle=ocio.NEGATIVE_MIRROR,
                    direction=ocio.TRANSFORM_DIR_INVERSE,
                )
            )
        return config.ocio.getProcessor(group)
    except ocio.Exception as error:
        raise ColourError(
            f"The colour space {source!r} of {config.name} cannot be converted: {_first_line(error)}."
        ) from error


def _is_display_referred(config: ColourConfig, space: Any) -> bool:
    encoding = space.getEncoding()
    if space.isData() or encoding in ("data", "sdr-video"):
        return True
    if encoding in ("scene-linear", "log", "hdr-video", "edr-video", "display-linear"):
        return False
    # An old config states no encoding. A display-referred space has a curve, and its 1.0 is diffuse white.
    probe = np.array([[[0.5] * 3, [1.0] * 3]], dtype=np.float32)
    _processor_to(config, str(space.getName()), _LINEAR_TARGET).getDefaultCPUProcessor().applyRGB(probe)
    middle, white = float(probe[0, 0].mean()), float(probe[0, 1].mean())
    return abs(white - 1.0) < 0.02 and middle < 0.4


def _pure_matrix(processor: Any) -> FloatArray | None:
    """The (3, 3) matrix of a processor that is only a matrix; OpenCV applies it ten times as fast."""
    operations = list(processor.createGroupTransform())
    if len(operations) != 1 or not isinstance(operations[0], ocio.MatrixTransform):
        return None
    if operations[0].getDirection() != ocio.TRANSFORM_DIR_FORWARD or any(operations[0].getOffset()):
        return None
    matrix = np.array(operations[0].getMatrix(), dtype=np.float64).reshape(4, 4)
    return np.ascontiguousarray(matrix[:3, :3], dtype=np.float32)


def _is_identity(cpu: Any) -> bool:
    """Whether a processor does not change colours between 0 and 1 (another name for sRGB)."""
    steps = np.linspace(0.0, 1.0, 9, dtype=np.float32)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3).astype(np.float32)
    result = colours.copy()
    cpu.applyRGB(result)
    return bool(np.abs(result - colours).max() <= _IDENTITY_TOLERANCE)


def _operations_id(processor: Any) -> str:
    """A text of the processor's operations and look-up tables; equal processors have equal texts."""
    return str(processor.getCacheID())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
