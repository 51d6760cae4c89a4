"""Unchanged pixels of the node's inputs: full range, linear float, full size, with overscan.

A temporary Write renders the input to scratch files. The engine reads those of the plate; masks are read
here, as keys are stored by the name of each object. Nuke has no other exact way from Python: `sample`
filters, and a Viewer's capture has the Viewer's colours.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import nuke
from stm_nuke import exr, group
from stm_nuke.errors import BusyError, KeyframeError, PlateError, StmNodeError, Stopped
from stm_nuke.exr import Picture
from stm_nuke.frames import Range
from stm_nuke.node import MaskObject, StmNode, full_size

MASK_CHANNELS = ("R", "G", "B", "A")
_RGBA = ("rgba.red", "rgba.green", "rgba.blue", "rgba.alpha")

_LARGEST_OVERSCAN = 8.0
"""The largest bounding box, in areas of the format. A larger one is an error upstream and would fill the
disk."""
_WRITE_KNOBS = {
    "file_type": "exr",
    "disable": False,
    "use_limit": False,
    "frame_mode": "expression",
    "frame": "",
    "beforeRender": "",
    "beforeFrameRender": "",
    "afterFrameRender": "",
    "afterRender": "",
    "render_order": 1,
    "on_error": "error",
    "reading": False,
    "raw": True,
    "write_ACES_compliant_EXR": False,
    "truncateChannelNames": False,
    "datatype": "32 bit float",
    "compression": "none",
    "autocrop": False,
    "metadata": "all metadata",
    "interleave": "channels, layers and views",
    "create_directories": False,
}
"""Set in this order: knobs of a file type exist after it is chosen. All are set, as a studio may have other
defaults. Knobs that a release lacks are skipped; the written file is checked when it is read."""

_is_capturing = False


def is_capturing() -> bool:
    """Whether the current render is one of this module."""
    return _is_capturing


class PlateFrames:
    """Rendered frames of a plate input, R, G and B, in files of their own folder. Thread-safe."""

    def __init__(self, scratch: Path) -> None:
        """Make a folder for the files below `scratch`."""
        self._folder = tempfile.TemporaryDirectory(prefix="plate-", dir=scratch)
        self.pattern = Path(self._folder.name) / "frame.%04d.exr"

    def path(self, frame: int) -> Path:
        """The file of one frame."""
        return Path(str(self.pattern) % frame)

    def close(self) -> None:
        """Remove what is left."""
        self._folder.cleanup()


def render_plate(node: StmNode, frames: Range, view: str, scratch: Path) -> PlateFrames:
    """Render several frames of the plate input at once, into a new folder below `scratch`.

    Raises:
        PlateError: one cannot be rendered. Stopped, BusyError.
    """
    with full_size():
        _check_size(node.connected_plate(), node.name)
    found = PlateFrames(scratch)
    try:
        with _inside(node.group) as inputs, _write_of(inputs[group.PLATE], "rgb", found.pattern) as write:
            _execute(write, frames, view)
    except _RenderError as error:
        bad = frames[0]
        while bad < frames[1] and found.path(bad).is_file():
            bad += 1
        found.close()
        raise PlateError(f"The plate of {node.name} cannot be rendered: {error}.", frame=bad) from error
    except BaseException:
        found.close()
        raise
    return found


def masks(node: StmNode, frame: int, view: str, source: int = group.MASK) -> Picture:
    """One frame of the mask input, or of the fix input: a channel for each object, by the object's name.

    Raises:
        KeyframeError: it cannot be rendered, lacks a channel or has another format than the plate. Stopped,
        BusyError.
    """
    above = node.connected_mask() if source == group.MASK else node.connected_fix()
    with full_size():
        has_channels = bool(above.channels())
        if has_channels:  # without channels it has an error; rendering it shows which
            _check_mask(above, node.connected_plate(), node.objects, node.name)
    try:
        with _inside(node.group) as inputs:
            found = _masks_of(inputs[source], node.objects, frame, view)
    except _RenderError as error:
        raise KeyframeError(f"The mask of {node.name} cannot be rendered: {error}.", frame=frame) from error
    if not has_channels:
        raise KeyframeError(f"The mask of {node.name} has no channels.", frame=frame)
    return found


def masks_from_file(
    node: StmNode, path: Path, objects: Sequence[MaskObject], frame: int, view: str
) -> Picture:
    """The masks in an image file, read by Nuke, raw.

    Raises:
        KeyframeError: it cannot be read, lacks a channel or has another format than the plate.
    """
    try:
        with _inside(node.group):
            read = nuke.nodes.Read(file=path.as_posix(), raw=True, on_error="error")
            try:
                has = read.channels()
                if len(objects) == 1 and objects[0].channel not in has and "rgba.red" in has:
                    objects = [MaskObject(objects[0].name, "rgba.red")]  # a grey picture
                _check_mask(read, node.connected_plate(), objects, path.name)
                return _masks_of(read, objects, frame, view)
            finally:
                nuke.delete(read)
    except _RenderError as error:
        raise KeyframeError(f"The mask file {path} cannot be read: {error}.", frame=frame) from error


def _masks_of(source: nuke.Node, objects: Sequence[MaskObject], frame: int, view: str) -> Picture:
    planes: dict[str, exr.Bytes] = {}
    found: Picture | None = None
    for start in range(0, len(objects), len(_RGBA)):
        some = objects[start : start + len(_RGBA)]
        copy = nuke.nodes.Copy()
        try:
            for number in range(len(_RGBA)):
                copy[f"from{number}"].setValue(some[number].channel if number < len(some) else "none")
                copy[f"to{number}"].setValue(_RGBA[number] if number < len(some) else "none")
            copy.setInput(0, source)
            copy.setInput(1, source)
            found = _render(copy, "rgba", frame, view, MASK_CHANNELS)
        finally:
            nuke.delete(copy)
        for one, channel in zip(some, MASK_CHANNELS):
            planes[one.name] = found.planes[channel]
    assert found is not None, "a node has at least one object"
    return Picture(found.format, planes, found.data_window, found.display_window, found.pixel_aspect)


def _check_size(source: nuke.Node, name: str) -> None:
    box, whole = source.bbox(), source.format()
    if box.w() * box.h() > _LARGEST_OVERSCAN * whole.width() * whole.height():
        raise PlateError(
            f"The plate of {name} has a bounding box of {box.w():.0f} x {box.h():.0f} pixels around "
            f"a format of {whole.width()} x {whole.height()}.",
            hint="Put a Crop above the STM node.",
        )


def _check_mask(source: nuke.Node, plate_source: nuke.Node, objects: Sequence[MaskObject], name: str) -> None:
    has = set(source.channels())
    for one in objects:
        if one.channel not in has:
            raise KeyframeError(
                f"The mask of {name} has no channel {one.channel} for the object {one.name}.",
                hint=f"It has {', '.join(sorted(has)) or 'no channels'}. Change the objects knob.",
            )
    mask_format, plate_format = source.format(), plate_source.format()
    if (mask_format.width(), mask_format.height()) != (plate_format.width(), plate_format.height()):
        raise KeyframeError(
            f"The mask of {name} is {mask_format.width()} x {mask_format.height()}, the plate is "
            f"{plate_format.width()} x {plate_format.height()}.",
            hint="Put a Reformat on the mask, or connect the plate to the Roto's background.",
        )


class _RenderError(Exception):
    """Nuke could not render a frame, or wrote another kind of file."""


def _render(source: nuke.Node, channels: str, frame: int, view: str, expected: Sequence[str]) -> Picture:
    """Render one frame of a node of the current group through a Write, and read it."""
    with tempfile.TemporaryDirectory(prefix="stm-") as scratch:
        path = Path(scratch) / "frame.exr"
        with _write_of(source, channels, path) as write:
            _execute(write, (frame, frame), view)
        return _read(path, expected)


@contextlib.contextmanager
def _write_of(source: nuke.Node, channels: str, path: Path) -> Iterator[nuke.Node]:
    """A Write after a node of the current group, with all knobs set, for any defaults."""
    if nuke.executing():
        raise BusyError
    write = nuke.nodes.Write(file=path.as_posix(), channels=channels)
    try:
        write.setInput(0, source)
        for name, value in _WRITE_KNOBS.items():
            knob = write.knob(name)
            with contextlib.suppress(TypeError, ValueError):  # another kind of knob in this release
                if knob is not None:
                    knob.setValue(value)
        write["channels"].setValue(channels)
        write["file"].setValue(path.as_posix())
        yield write
    finally:
        nuke.delete(write)


def _read(path: Path, expected: Sequence[str]) -> Picture:
    """The picture that a Write wrote. A missing alpha is 0."""
    try:
        found = exr.read(path)
    except (exr.ExrError, OSError) as error:
        raise _RenderError(f"the rendered file cannot be used: {error}") from error
    missing = [name for name in expected if name not in found.planes]
    if missing and set(missing) != {"A"}:
        raise _RenderError(f"it has no channel {missing[0]}")
    if missing:
        blank: Mapping[str, exr.Bytes] = {"A": bytes(len(found.planes[expected[0]]))}
        return replace(found, planes={**found.planes, **blank})
    return found


def _execute(write: nuke.Node, frames: Range, view: str) -> None:
    global _is_capturing
    views = write.knob("views")
    if views is not None:
        views.setValue(view)
    _is_capturing = True
    try:
        with full_size():
            nuke.execute(write, frames[0], frames[1], 1, [view])
    except nuke.CancelledError as error:
        raise Stopped() from error
    except RuntimeError as error:
        if str(error).startswith("Cancel"):
            raise Stopped() from error
        if nuke.executing():
            raise BusyError from error
        raise _RenderError(str(error).strip().rstrip(".") or "Nuke gives no reason") from error
    finally:
        _is_capturing = False


@contextlib.contextmanager
def _inside(parent: nuke.Group) -> Iterator[list[nuke.Node]]:
    """Work in the group without undo and without modifying the script; yields its Input nodes by number."""
    with group.unnoticed(parent):
        found = [node for node in parent.nodes() if node.Class() == "Input"]
        if len(found) != group.INPUTS:
            raise StmNodeError(f"{parent.fullName()} has lost its inputs.", hint="Make a new STM node.")
        yield sorted(found, key=lambda node: cast(int, node["number"].value()))
