"""Opening what people give to a shot: its plate, and the masks of its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stm_plugin.configuration import Configuration
from stm_plugin.errors import KeyframeError, MaskError, PlateError
from stm_plugin.images.colour import ColourTransform, find_input_space, load_config
from stm_plugin.images.host_plate import HostPlate
from stm_plugin.images.mask import (
    UNNAMED,
    MaskPlace,
    MaskReading,
    check_object_names,
    out_of_range,
    read_mask,
)
from stm_plugin.images.movie_notes import keep_index, recall_index
from stm_plugin.images.plate import Plate, PlateSource
from stm_plugin.propagation.networks import refiner_manifest, weights_manifest
from stm_plugin.settings import Settings
from stm_plugin.store.description import PlateDescription
from stm_plugin.store.store import ShotStore
from stm_plugin.windows import FloatArray, Window, on_window


def check_licences(layers: Configuration, settings: Settings, *, own_network: bool = False) -> None:
    """Ask a configuration whether the weights that settings name may be used.

    Args:
        own_network: whether the caller gave a network, instead of the settings' weights.

    Raises:
        LicenceError: a licence is not allowed.
        WeightsError: a weights file cannot be read, and not every licence is allowed.
    """
    if layers["allowed_licences"] == ("*",):
        return
    if not own_network:
        manifest = weights_manifest(settings.weights)
        layers.check_licence(manifest.name, manifest.licence)
    if settings.finish.edges == "learned":
        edges = refiner_manifest(settings.finish.edge_weights)
        layers.check_licence(edges.name, edges.licence)


def check_settings(plate: PlateSource, settings: Settings, *, own_network: bool = False) -> None:
    """Check that the colours of a plate can be converted, and that the weights exist.

    Args:
        own_network: whether the caller gave a network, instead of the settings' weights.

    Raises:
        ColourError: the config or the colour space cannot be used.
        WeightsError: the weights cannot be used.
    """
    if not own_network:
        weights_manifest(settings.weights)
    missing = set(plate.missing)
    first = next((frame for frame in plate.frames if frame not in missing), None)
    if first is not None:
        config = load_config(settings.ocio_config)
        space = find_input_space(plate.header(first), config, settings.colour_space)
        ColourTransform(config, space.name)


def open_plate(store: ShotStore, plate: PlateDescription, settings: Settings) -> PlateSource:
    """Open the plate of a description.

    The frames of a movie are found by decoding it once; the store keeps them (`keep_movie`).

    Args:
        store: of the shot; it need not exist yet where the plate is in files.

    Raises:
        PlateError: it cannot be opened.
    """
    folder = store.plate_folder
    if plate.kind == "files":
        recall_index(store.movie_notes)
        opened = Plate.open(
            plate.text,
            frame_range=plate.frame_range,
            layer=plate.layer,
            view=plate.view,
            colour_space=settings.colour_space,
            movie_first_frame=plate.movie_first_frame,
        )
        keep_movie(store, opened)
        return opened
    if plate.frames is None or plate.display_window is None:
        raise PlateError("A host's plate needs a frame range and a display window.", path=folder)
    return HostPlate(
        folder,
        *plate.frames,
        display_window=plate.display_window,
        canvas=plate.canvas,
        pixel_aspect=plate.pixel_aspect,
        fps=plate.fps,
        budget=settings.plate_budget,
    )


def keep_movie(store: ShotStore, plate: PlateSource) -> None:
    """Keep the frames of the plate's movie in the store, if the store exists."""
    if isinstance(plate, Plate) and plate.sequence.movie is not None and store.exists:
        keep_index(store.movie_notes, plate.sequence.movie)


def check_frames(plate: PlateSource, frame_range: tuple[int | None, int | None] | None) -> None:
    """Check that the plate has the requested frames. None stands for its first or last one.

    Raises:
        PlateError: some are missing; the text names them.
    """
    (first, last), (start, end) = frame_range or (None, None), (plate.frames[0], plate.frames[-1])
    first, last = start if first is None else first, end if last is None else last
    outside = [(first, min(last, start - 1)), (max(first, end + 1), last)]
    named = [str(low) if low == high else f"{low}-{high}" for low, high in outside if low <= high]
    if named:
        count = "frame" if len(named) == 1 and "-" not in named[0] else "frames"
        raise PlateError(f"The plate does not have the {count} {', '.join(named)}.", hint=frames_hint(plate))


def check_key_frame(plate: PlateSource, frame: int) -> None:
    """KeyframeError where the plate has no such frame for a key."""
    if frame not in plate.frames:
        raise KeyframeError("The plate has no such frame.", frame=frame, hint=frames_hint(plate))


def frames_hint(plate: PlateSource) -> str:
    """A hint that names the frames of a plate."""
    first, last = plate.frames[0], plate.frames[-1]
    text = f"It has frame {first} only." if first == last else f"It has frames {first} to {last}."
    if isinstance(plate, Plate) and plate.sequence.movie is not None:
        text += " Give --start-frame 1001 if that is the number of the movie's first frame."
    return text


def masks_of_key(
    mask: str | Path | Mapping[str, FloatArray],
    plate: PlateSource,
    frame: int,
    window: Window | None,
    reading: MaskReading,
    allow_empty: bool,
) -> tuple[dict[str, FloatArray], Path | None]:
    """The masks for a frame, by object name, and the file that they were read from, if any.

    Raises:
        KeyframeError: the plate has no such frame.
        MaskError: the mask cannot be used.
        PlateError: the plate frame cannot be read.
    """
    check_key_frame(plate, frame)
    canvas = plate.canvas
    if isinstance(mask, Mapping):
        return masks_of_arrays(mask, window or canvas, canvas, frame=frame, allow_empty=allow_empty), None
    path = Path(mask)
    return masks_of_file(path, plate, reading, frame=frame, allow_empty=allow_empty), path


def with_the_shots_name(
    masks: dict[str, FloatArray], objects: Sequence[str], reading: MaskReading, frame: int, path: Path
) -> dict[str, FloatArray]:
    """The masks of a file; one object without a name is the one object of the shot.

    Args:
        objects: those of the shot.

    Raises:
        MaskError: the shot has several objects, and neither the file nor `reading` says which it is.
    """
    if list(masks) != [UNNAMED] or reading.objects or not objects or UNNAMED in objects:
        return masks
    if len(objects) > 1:
        raise MaskError(
            f"The mask does not say which object it is. The shot has {', '.join(objects)}.",
            frame=frame,
            path=path,
            hint="Name it: --object NAME. A new name makes a new object.",
        )
    return {objects[0]: masks[UNNAMED]}


def masks_of_arrays(
    masks: Mapping[str, FloatArray], window: Window, canvas: Window, *, frame: int, allow_empty: bool
) -> dict[str, FloatArray]:
    """Masks from arrays over `window`, by object name: float32 over the canvas, in [0, 1].

    Raises:
        MaskError: one has another size or holds NaN or Inf, or all are empty.
    """
    check_object_names(masks, frame=frame)
    for name, values in masks.items():
        if values.shape != (window.height, window.width):
            size = f"{values.shape[1]}x{values.shape[0]}"
            raise MaskError(f"The mask of {name} is {size} and does not fill {window}.", frame=frame)
        if not np.isfinite(values).all():
            raise MaskError(f"The mask of {name} holds NaN or Inf.", frame=frame)
        problem = out_of_range(values)
        if problem is not None:
            raise MaskError(f"{name}: {problem}", frame=frame, hint="Divide it by its white.")
    if not allow_empty and not any(values.any() for values in masks.values()):
        raise MaskError(
            "The mask is empty.",
            frame=frame,
            hint="If the object is not in this frame, set allow_empty.",
        )
    return {
        name: on_window(np.clip(values, 0, 1).astype(np.float32), window, canvas)
        for name, values in masks.items()
    }


def masks_of_file(
    path: Path,
    plate: PlateSource,
    reading: MaskReading,
    *,
    frame: int,
    allow_empty: bool,
) -> dict[str, FloatArray]:
    """Masks from an image file (`read_mask`), by object name: float32 over the plate's canvas, in [0, 1].

    Raises:
        MaskError: the file cannot be used.
        PlateError: the plate frame cannot be read.
    """
    place = MaskPlace(plate.canvas, plate.display_window, plate.header(frame).data_window)
    return dict(read_mask(path, place, reading, allow_empty=allow_empty, frame=frame).objects)
