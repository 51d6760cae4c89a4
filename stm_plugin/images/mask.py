"""Masks: what the artist gives on a key, from any image, as soft mattes of named objects.

How a file is understood (`mode="auto"`); the first rule that fits counts:

1. **Palette image** (an indexed PNG, GIF or TIFF, as DAVIS and most annotation tools write): a pixel's value
   is its palette index; 0 is background and every other index is an object. Exception: a palette of greys
      only is a grey picture, and the next rules apply.
2. **Alpha**, if there is one: soft. Exception: where the alpha is 1 everywhere and the colours are plain
   grey, the colours are the mask (a black and white picture saved with an opaque alpha).
3. **Label image**: one channel of integers (or R, G and B alike) in a lossless file, no value above 63: a
   value is an object, 0 is background. No useful soft mask stays below a quarter of its
      range everywhere. In an EXR integers are always labels.
4. **Luminance** of R, G and B, or the one channel: soft. Integers: 255 (65535) is 1.

Objects of labels are named `object1`, `object2` ... by label value, so that they are the same on every key.
Soft values are kept; values below 0 and above 1 are clamped. Nothing is resized and no colour is converted.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio
from PIL import Image

from stm_plugin.errors import MaskError, memory_errors
from stm_plugin.images.movie import is_movie
from stm_plugin.images.picture_file import (
    CONFIDENCE_LAYER,
    LAB_HINT,
    has_lab_colours,
    is_exr,
    open_image,
    read_channels,
    reason_of,
    specs_of,
    window_pair,
)
from stm_plugin.settings import MaskMode as MaskMode
from stm_plugin.windows import FloatArray, Window
from stm_plugin.windows import place as place_on

_FILE_HINT = "Give the picture of one frame: EXR, PNG, TIFF or another kind that Nuke writes."


MAX_LABEL = 63
"""The largest value of a grey label image: see rule 3."""
MAX_OBJECTS = 64
"""A picture with more labels than this is a photograph, not a mask."""

_OVERSHOOT = 0.5
"""How far values of sharpening filters and keyers may lie outside [0, 1]."""
_LEAST_VISIBLE = 1.5 / 255
_LONGEST_NAME = 200
_RANGE_HINT = "Divide it by its white (255, perhaps), or name the channel that holds the mask."

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_ALPHA_NAMES = ("a", "alpha")
_LOSSY = frozenset({".jpg", ".jpeg", ".webp", ".jp2", ".j2c"})
_LABEL_TYPES = {"uint8": 1, "uint16": 2, "uint": 4}
"""By OpenImageIO's name: bytes of a value."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # its size is that of the plate
_EXACT_LABELS = 1 << 24
"""Float32, in which pictures are read, tells all smaller whole numbers apart."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_START = 26  # bytes up to the colour type
_PNG_GREY, _PNG_PALETTE = 0, 3
_TIFF_PALETTE = 3

Labels = npt.NDArray[np.int64]
_ByLabel = dict[int, FloatArray]
_SOFT = 0
"""In `_ByLabel`: the one soft mask of a file without labels (0 is the background and no object's label)."""


@dataclass(frozen=True)
class MaskReading:
    """How a mask file is understood; by the rules above where a field is None or "auto".

    Attributes:
        objects: the name of the one object of a soft mask; the names of labels 1, 2, ... in this order (an
            object whose label is not in the picture is empty); or the names of the layers to read.
        mode: "auto" applies the rules above; "soft" never splits into labels; "labels" always does; "layers"
            makes an object of every layer of the file (`person.A`, `chair.A`).
        channel: the one channel to read as a soft mask, such as "R" or "mask.a".
    """

    objects: Sequence[str] | None = None
    mode: MaskMode = "auto"
    channel: str | None = None


AS_FOUND = MaskReading()
UNNAMED = "object1"
"""The name of the one object of a mask that names none."""


@dataclass(frozen=True)
class MaskPlace:
    """The windows that a mask is placed by.

    Attributes:
        canvas: of the plate: the union of its display window and every data window.
        display_window: of the plate.
        data_window: of the plate's frame; None if a mask of that size is not to be understood.
    """

    canvas: Window
    display_window: Window
    data_window: Window | None = None


@dataclass(frozen=True, eq=False)
class MaskImage:
    """The objects of one key.

    Attributes:
        objects: name -> float32 (H, W) in [0, 1] over the canvas, in a stable order.
        path: the file.
        source: how the file was understood, in words ("palette index", "alpha", "luminance" ...).
    """

    objects: Mapping[str, FloatArray]
    path: Path
    source: str


def read_mask(
    path: str | Path,
    place: MaskPlace,
    reading: MaskReading = AS_FOUND,
    *,
    allow_empty: bool = False,
    frame: int | None = None,
) -> MaskImage:
    """Read a key's mask.

    Args:
        path: any image that OpenImageIO reads. An EXR with a data window of its own is placed by it; any
            other image must have the size of the display window, of the canvas, or of the frame's data
            window.
        place: the windows of the plate, on which the mask is placed.
        reading: how the file is understood.
        allow_empty: whether an empty mask is accepted (the object has left the picture).
        frame: the key's frame number, for error texts.

    Raises:
        MaskError: the file is missing, damaged, of another size than the plate, empty, holds NaN or Inf, or
            does not have the channel, the layers or the labels asked for.
        DeviceError: the machine has too little memory.
    """
    check_object_names(reading.objects or (), frame=frame, path=Path(path))
    with memory_errors(path, frame):
        reader = _Reader(Path(path), frame)
        if len(reader.specs) == 1:
            reader.target(place)  # before a picture of another size fills the memory
        named, source = _read_named(reader, reading)
        target = reader.target(place)
        placed = {name: place_on(mask, target, place.canvas) for name, mask in named.items()}
    if not allow_empty and not any(mask.any() for mask in placed.values()):
        raise MaskError(
            f"The mask is empty (read from {source}).",
            frame=frame,
            path=path,
            hint="Draw the object, or name the channel that holds it. If the object is not in this frame: an "
            "empty mask is allowed beside other keys (`stm shot key add SHOT FRAME MASK --allow-empty`).",
        )
    for mask in placed.values():
        _check_visible(mask, source, frame, Path(path))
    return MaskImage(objects=placed, path=Path(path), source=source)


def _check_visible(mask: FloatArray, source: str, frame: int | None, path: Path) -> None:
    """MaskError where a mask is not empty, but nowhere more than one step of 8 bits: it has another scale."""
    most = float(mask.max(initial=0.0))
    if 0 < most < _LEAST_VISIBLE:
        raise MaskError(
            f"The mask is almost empty: no value is above {most:.2g} (read from {source}).",
            frame=frame,
            path=path,
            hint="Multiply it by its white (255, perhaps), or name the channel that holds the mask.",
        )


def out_of_range(mask: FloatArray) -> str | None:
    """The fault in the range of a soft mask, in words; None where it can be clamped to [0, 1].

    Filters and keyers exceed the range a little. Values far outside mean another scale, or no mask.
    """
    least, most = float(mask.min(initial=0.0)), float(mask.max(initial=0.0))
    if most <= 1 + _OVERSHOOT and least >= -_OVERSHOOT:
        return None
    return f"The mask's values go from {least:g} to {most:g}, but a mask goes from 0 to 1."


def check_object_names(names: Iterable[str], *, frame: int | None = None, path: Path | None = None) -> None:
    """Check the names of objects.

    Raises:
        MaskError: one is empty, too long, or holds characters that cannot be shown.
    """
    for name in names:
        what = None
        if not name.strip():
            what = "The name of an object is empty."
        elif len(name) > _LONGEST_NAME:
            what = f"The name of an object has {len(name)} letters; {_LONGEST_NAME} are possible."
        elif not name.isprintable():
            what = f"The name of the object {name!r} holds characters that cannot be shown."
        if what is not None:
            hint = "Give it a short name, such as chair."
            raise MaskError(what, frame=frame, path=path, hint=hint)


def mask_hash(mask: FloatArray) -> str:
    """sha256 (hex) of one object's mask (H, W): its size and values."""
    digest = hashlib.sha256(struct.pack("<2q", *mask.shape))
    digest.update(np.ascontiguousarray(mask, dtype=np.float32).data)
    return digest.hexdigest()


def _read_named(reader: _Reader, reading: MaskReading) -> tuple[dict[str, FloatArray], str]:
    """The masks of a file over its data window by object name, and in words how they were read."""
    if reading.mode == "layers":
        return reader.layers(reading.objects), "layers"
    if reading.channel is not None:
        soft = {_SOFT: reader.channel(reading.channel)}
        return _named(soft, reading.objects, reader), f"channel {reading.channel}"
    found, source = reader.understand(reading.mode)
    return _named(found, reading.objects, reader), source


def _named(found: _ByLabel, names: Sequence[str] | None, reader: _Reader) -> dict[str, FloatArray]:
    """Objects by name, of one soft mask or of labels."""
    if names is not None and len(set(names)) != len(names):
        raise reader.error(f"Two objects have the same name: {', '.join(names)}.")
    if _SOFT in found:
        if names is not None and len(names) != 1:
            raise reader.error(
                f"The mask holds one soft object, but {len(names)} names are given: {', '.join(names)}.",
                hint="Give one name, or a label image.",
            )
        return {names[0] if names else UNNAMED: found[_SOFT]}
    if names is None:
        return {f"object{label}": found[label] for label in sorted(found)}
    if any(label > len(names) for label in found):
        raise reader.error(
            f"The mask has the labels {', '.join(map(str, sorted(found)))}, but only {len(names)} names are "
            f"given: {', '.join(names)}.",
            hint="Name every label, in order of their values.",
        )
    empty = np.zeros((reader.windows[0].height, reader.windows[0].width), np.float32)
    return {name: found.get(label, empty) for label, name in enumerate(names, start=1)}


class _Reader:
    """One mask file: its header, and its channels as they are asked for."""

    def __init__(self, path: Path, frame: int | None) -> None:
        self.path, self.frame = path, frame
        self.subimage = 0
        if path.is_dir():
            raise self.error("The mask is a folder.", hint=_FILE_HINT)
        if not path.is_file():
            raise self.error("The mask does not exist.", hint="Correct the path.")
        if is_movie(path):
            raise self.error("A movie cannot be a mask.", hint="Save the key's frame as an image.")
        image = open_image(path)
        if image is None:
            raise self.error(f"The mask cannot be opened: {reason_of(oiio.geterror())}.", hint=_FILE_HINT)
        try:
            self.specs = specs_of(image)
        finally:
            image.close()
        if any(spec.deep or spec.depth > 1 for spec in self.specs):
            raise self.error("Deep and volume images are not masks.", hint="Flatten it first.")
        if has_lab_colours(self.specs[0]):
            raise self.error("The mask holds L*a*b* colours.", hint=LAB_HINT)

    def error(self, what: str, *, hint: str | None = None) -> MaskError:
        return MaskError(what, frame=self.frame, path=self.path, hint=hint)

    @property
    def spec(self) -> oiio.ImageSpec:
        return self.specs[self.subimage]

    @property
    def windows(self) -> tuple[Window, Window]:
        """Data window and display window of the mask's picture."""
        return window_pair(self.spec)

    # ------------------------------------------------------------------------------------- placing

    def target(self, place: MaskPlace) -> Window:
        """The window on the canvas that the mask's pixels cover."""
        data, display = self.windows
        canvas, plate_display, plate_data = place.canvas, place.display_window, place.data_window
        if display == plate_display:
            return data
        plain = data == display  # the file states no windows: only its size can tell
        if (display.width, display.height) == (plate_display.width, plate_display.height):
            return Window(
                data.x - display.x + plate_display.x,
                data.y - display.y + plate_display.y,
                data.width,
                data.height,
            )
        for window in (canvas, plate_data):
            if plain and window is not None and (data.width, data.height) == (window.width, window.height):
                return window
        sizes = f"the plate's display window is {plate_display.width}x{plate_display.height}"
        if canvas != plate_display:
            sizes += f", its canvas with overscan {canvas.width}x{canvas.height}"
        if plate_data is not None and plate_data not in (canvas, plate_display):
            sizes += f", this frame's data window {plate_data.width}x{plate_data.height}"
        own = f"{data.width}x{data.height}"
        if not plain:
            own += f" in a display window of {display.width}x{display.height}"
        raise self.error(
            f"The mask is {own}, but {sizes}.",
            hint="Masks are never resized: render it in the plate's format.",
        )

    # --------------------------------------------------------------------------------- understanding

    def understand(self, mode: MaskMode) -> tuple[_ByLabel, str]:
        """The masks over the data window by label, and how they were read, in words."""
        palette = self._palette_indices() if mode in ("auto", "labels") else None
        if palette is not None:
            return self._split(palette), "palette index"
        self.subimage = self._first_picture()
        names = self._channel_indices(self.subimage)
        integers = self._integers() if mode in ("auto", "labels") else None
        if mode == "labels":
            if integers is None:
                raise self.error(
                    "Labels need a palette image or one channel of integers.", hint="Read it as a soft mask."
                )
            return self._split(integers), "label value"
        alpha = next((names[name] for name in _ALPHA_NAMES if name in names), None)
        if alpha is not None and len(names) > 1:
            mask = self._soft((alpha,))
            if not (mask == 1.0).all():
                return {_SOFT: mask}, "alpha"
            colours = self._stored(self._colour_indices(names))
            if np.ptp(colours, axis=2).max(initial=0.0) > 0:
                return {_SOFT: mask}, "alpha"
            return {_SOFT: self._clamped(colours[..., 0])}, "luminance (the alpha is 1 everywhere)"
        if integers is not None and self._are_labels(integers):
            return self._split(integers), "label value"
        colour = self._colour_indices(names)
        return {_SOFT: self._soft(colour)}, "its luminance" if len(colour) == 3 else "its one channel"

    def channel(self, wanted: str) -> FloatArray:
        """One channel as a soft mask, by its full name or the last part of it."""
        for subimage, spec in enumerate(self.specs):
            names = [name.lower() for name in spec.channelnames]
            for index, name in enumerate(names):
                if name == wanted.lower() or f"rgba.{name}" == wanted.lower():
                    self.subimage = subimage
                    return self._soft((index,))
        known = ", ".join(dict.fromkeys(name for spec in self.specs for name in spec.channelnames))
        raise self.error(f"The mask has no channel {wanted!r}; it has {known}.")

    def layers(self, wanted: Sequence[str] | None) -> dict[str, FloatArray]:
        """Every layer with an alpha, or with one channel, as a soft mask over the first one's data window."""
        found: dict[str, FloatArray] = {}
        first: Window | None = None
        for subimage, spec in enumerate(self.specs):
            groups: dict[str, dict[str, int]] = {}
            for index, name in enumerate(spec.channelnames):
                layer, _, last = name.rpartition(".")
                if layer and layer != CONFIDENCE_LAYER:
                    groups.setdefault(layer, {})[last.lower()] = index
            for layer, channels in groups.items():
                if wanted is not None and layer not in wanted:
                    continue
                indices = [channels[name] for name in _ALPHA_NAMES if name in channels]
                if len(channels) == 1:
                    indices = list(channels.values())
                if not indices or layer in found:
                    continue
                self.subimage = subimage
                window = self.windows[0]
                first = first or window
                found[layer] = place_on(self._soft((indices[0],)), window, first)
        names = list(found)
        missing = [name for name in wanted or () if name not in found]
        if missing or not found:
            raise self.error(
                f"The mask has no layer {', '.join(missing)}." if missing else "The mask has no layers.",
                hint=f"Its layers are {', '.join(names)}." if names else "Read it as a soft mask.",
            )
        self.subimage = next(i for i, spec in enumerate(self.specs) if window_pair(spec)[0] == first)
        return {name: found[name] for name in (wanted or names)}

    def _first_picture(self) -> int:
        """The part to read: the first with an alpha or colours, else the first."""
        for subimage in range(len(self.specs)):
            names = self._channel_indices(subimage)
            if any(name in names for name in (*_ALPHA_NAMES, "r", "y")):
                return subimage
        return 0

    def _channel_indices(self, subimage: int) -> dict[str, int]:
        """Channels of the main layer, or of the only one, by lower-case name."""
        names = [name.lower() for name in self.specs[subimage].channelnames]
        main = {name: index for index, name in enumerate(names) if "." not in name}
        if main:
            return main
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in self.specs[subimage].channelnames))
        if len(layers) > 1:
            raise self.error(
                f"The mask has the layers {', '.join(layers)}: which one is it?",
                hint="Name the channel, or ask for one object per layer.",
            )
        return {name.rpartition(".")[2]: index for index, name in enumerate(names)}

    def _colour_indices(self, names: dict[str, int]) -> tuple[int, ...]:
        if all(name in names for name in "rgb"):
            return tuple(names[name] for name in "rgb")
        others = [index for name, index in names.items() if name not in _ALPHA_NAMES]
        if len(names) == 1:
            return tuple(names.values())
        if len(others) == 1 or "y" in names:
            return (names.get("y", others[0]),)
        raise self.error(
            f"The mask has the channels {', '.join(self.spec.channelnames)}: which one is it?",
            hint="Name the channel.",
        )

    # ----------------------------------------------------------------------------------------- pixels

    def _stored(self, channels: tuple[int, ...]) -> FloatArray:
        """float32 (h, w, C) as stored."""
        image = open_image(self.path)
        if image is None:
            raise self.error(f"The mask cannot be opened: {reason_of(oiio.geterror())}.", hint=_FILE_HINT)
        try:
            return read_channels(image, self.subimage, channels)
        except ValueError as error:
            raise self.error(f"The mask is truncated or damaged: {error}.", hint="Save it again.") from error
        finally:
            image.close()

    def _soft(self, channels: tuple[int, ...]) -> FloatArray:
        """One soft mask (h, w) in [0, 1]: a channel, or the luminance of three."""
        stored = self._stored(channels)
        if len(channels) == 1:
            return self._clamped(stored[..., 0])
        grey = np.ptp(stored, axis=2) == 0  # a grey keeps its exact value
        return self._clamped(np.where(grey, stored[..., 0], stored @ _LUMINANCE))

    def _clamped(self, mask: FloatArray) -> FloatArray:
        if not np.isfinite(mask).all():
            raise self.error(
                "The mask holds values that are not numbers (NaN or Inf).", hint="Clean or render it again."
            )
        problem = out_of_range(mask)
        if problem is not None:
            raise self.error(problem, hint=_RANGE_HINT)
        return np.ascontiguousarray(np.clip(mask, 0.0, 1.0), dtype=np.float32)

    def _palette_indices(self) -> Labels | None:
        """Indices (h, w) of an image with a palette of colours, which OpenImageIO would expand; else None."""
        if not _has_palette(self.path, self.specs[0]):
            return None
        try:
            with Image.open(self.path) as picture:
                if picture.mode != "P":
                    return None
                colours = np.asarray(picture.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
                indices: Labels = np.asarray(picture, dtype=np.int64)
        except Image.DecompressionBombError as error:
            raise self.error(
                "A mask with a palette must not be so large.", hint="Save it as a grey picture of labels."
            ) from error
        except (OSError, SyntaxError, ValueError) as error:
            raise self.error(f"The mask is truncated or damaged: {error}.", hint="Save it again.") from error
        only_greys = bool((np.ptp(colours, axis=1) == 0).all())
        return None if only_greys else indices

    def _integers(self) -> Labels | None:
        """Values (h, w) of a lossless file with one channel of integers, as they were before any scaling."""
        spec = self.spec
        kind = str(spec.format)
        if kind not in _LABEL_TYPES or self.path.suffix.lower() in _LOSSY:
            return None
        names = self._channel_indices(self.subimage)
        if any(name in names for name in _ALPHA_NAMES) and len(names) > 1:
            return None
        channels = self._colour_indices(names)
        stored = self._stored(channels)
        if np.ptp(stored, axis=2).max(initial=0.0) > 0:
            return None
        levels = (1 << (_png_bits(self.path) or 8 * _LABEL_TYPES[kind])) - 1
        return np.rint(stored[..., 0] * levels).astype(np.int64)

    def _are_labels(self, values: Labels) -> bool:
        if is_exr(self.path):  # an EXR's whole numbers are identifiers; soft masks are floats there
            return int(values.max(initial=0)) > 0
        levels = 1 << (_png_bits(self.path) or 8)
        return 0 < int(values.max(initial=0)) <= min(MAX_LABEL, max(1, levels - 2))

    def _split(self, labels: Labels) -> _ByLabel:
        """Label -> hard mask (h, w), for every label but 0."""
        values = [int(value) for value in np.unique(labels) if value != 0]
        if values and values[-1] >= _EXACT_LABELS:
            raise self.error(
                f"The mask has the label {values[-1]}, but labels go up to {_EXACT_LABELS - 1}.",
                hint="Give each object a small number, or one file.",
            )
        if len(values) > MAX_OBJECTS:
            raise self.error(
                f"The mask has {len(values)} labels; more than {MAX_OBJECTS} are a photograph, not objects.",
                hint="Read it as a soft mask.",
            )
        if not values:
            return {_SOFT: np.zeros(labels.shape, np.float32)}
        return {value: (labels == value).astype(np.float32) for value in values}


def _has_palette(path: Path, spec: oiio.ImageSpec) -> bool:
    """Whether the file stores indices and a palette."""
    if spec.get_int_attribute("tiff:PhotometricInterpretation", -1) == _TIFF_PALETTE:
        return True
    header = _png_header(path)
    return path.suffix.lower() == ".gif" or (header is not None and header[1] == _PNG_PALETTE)


def _png_bits(path: Path) -> int | None:
    """Bits of a grey PNG of less than 8 (libraries scale those up to 8), else None."""
    header = _png_header(path)
    return header[0] if header is not None and header[0] < 8 and header[1] == _PNG_GREY else None


def _png_header(path: Path) -> tuple[int, int] | None:
    """(bits a channel, colour type) of a PNG, else None."""
    with path.open("rb") as file:
        start = file.read(_PNG_START)
    if len(start) < _PNG_START or not start.startswith(_PNG_SIGNATURE):
        return None
    return start[24], start[25]
