"""Pictures for people: the matte over the plate, contact sheets, overlay sequences and movies."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio

from stm_plugin.errors import MatteError
from stm_plugin.files.outputs import WrittenList
from stm_plugin.images.provenance import MAKER, MAKER_ATTRIBUTE
from stm_plugin.images.sequence import output_sequence
from stm_plugin.images.writer import image_error, probe_disk, remove_quietly, write_image
from stm_plugin.windows import FloatArray

ByteArray = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

OBJECT_COLOURS: tuple[Colour, ...] = (
    (255, 64, 64),
    (64, 160, 255),
    (255, 208, 0),
    (64, 224, 96),
    (224, 96, 255),
    (255, 144, 32),
    (0, 224, 224),
    (255, 128, 192),
)
"""R, G, B of the objects in their order; distinguishable on skin, sky and leaves."""
PICTURE_KINDS = frozenset({".png", ".jpg", ".jpeg"})
MOVIE_CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".m4v": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
DEFAULT_NAME = "overlay.####.jpg"
DEFAULT_FPS = 24.0

_TINT = 0.45
_EDGE = 0.5  # matte value at the outline
_AROUND = 8  # of the picture's height: the surroundings of an object
_STANDS_OUT = 25.0  # difference of a tinted object from what it was, and from what is around it
_LIGHTNESS = 0.5  # weight of a difference in lightness: shading has it too
_COLOURFUL = 40.0  # chroma of an object on which a tint of the same hue does not stand out
_LINE_PER_HEIGHT = 1 / 540  # of the picture's height for each pixel of the outline: two pixels in HD
_JPEG_QUALITY = "jpeg:92"
_GAP = 6
_LABEL_HEIGHT = 26
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.55
_SHEET_COLOUR = 24
_LABEL_COLOUR = (208, 208, 208)
_KEY_COLOUR = (255, 208, 0)
_MAX_COLUMNS = 4


def object_colours(picture: FloatArray, mattes: Mapping[str, FloatArray]) -> tuple[Colour, ...]:
    """A colour for each object that stands out from it and from what is around it.

    Call it once for a shot, so that the colours are the same on all frames.

    Args:
        picture: float32 (H, W, 3) in [0, 1], sRGB.
        mattes: object name -> float32 (H, W) in [0, 1].

    Returns:
        R, G, B of each object in its order. An object without a pixel gets the next free colour.
    """
    chosen: list[int] = []
    for matte in mattes.values():
        left = [one for one in range(len(OBJECT_COLOURS)) if one not in chosen] or list(
            range(len(OBJECT_COLOURS))
        )
        inside = (matte >= _EDGE).astype(np.uint8)
        if inside.any():
            reach = max(3, picture.shape[0] // _AROUND)
            around = cv2.dilate(inside, np.ones((reach, reach), np.uint8)) > inside
            pixels, beside = (np.clip(picture[place], 0, 1) for place in (inside > 0, around))
            far = {one: _standing_out(OBJECT_COLOURS[one], pixels, beside) for one in left}
            clear = [one for one in left if far[one] >= _STANDS_OUT]
            chosen.append(clear[0] if clear else max(left, key=lambda one: far[one]))
        else:
            chosen.append(left[0])
    return tuple(OBJECT_COLOURS[one] for one in chosen)


def _standing_out(colour: Colour, pixels: FloatArray, around: FloatArray) -> float:
    """How much an object stands out when it is tinted: from what it was, and from what is around it.

    Args:
        pixels: sRGB of the object (N, 3) in [0, 1].
        around: those around it (M, 3).
    """
    before, after = _lab(pixels[None])[0], _lab(_tinted(pixels, colour, _TINT)[None])[0]  # (N, 3)
    chroma = np.linalg.norm(before[:, 1:], axis=1)
    own = _lab(np.asarray([[colour]], np.float32) / np.float32(255))[0, 0, 1:]
    alike = (before[:, 1:] @ own) / (np.maximum(chroma, 1) * np.linalg.norm(own))  # cosine of the hues
    kept = 1 - 0.5 * np.clip(alike, 0, 1) * np.minimum(1, chroma / _COLOURFUL)
    least = float(np.percentile(kept * np.linalg.norm(after - before, axis=1), 25))
    if not around.size:
        return least
    beside = _lab(np.asarray(around.mean(0), np.float32)[None, None])[0, 0]
    return min(least, float(np.linalg.norm(after.mean(0) - beside)))


def _tinted(pixels: FloatArray, colour: Colour, share: FloatArray | float) -> FloatArray:
    """Pixels (..., 3) with a share of a colour."""
    return np.asarray(pixels + share * (np.asarray(colour, np.float32) / 255 - pixels), np.float32)


def _lab(colours: FloatArray) -> FloatArray:
    """CIE L*a*b* of sRGB colours, (1, N, 3), with less weight on lightness."""
    found = cv2.cvtColor(np.asarray(colours, np.float32), cv2.COLOR_RGB2LAB)
    return np.asarray(found * np.array([_LIGHTNESS, 1, 1], np.float32), np.float32)


def overlay_picture(
    picture: FloatArray, mattes: Mapping[str, FloatArray], colours: Sequence[Colour] | None = None
) -> ByteArray:
    """Draw each object over the picture, tinted and outlined in its colour.

    Args:
        picture: float32 (H, W, 3) in [0, 1], display-referred.
        mattes: object name -> float32 (H, W) in [0, 1].
        colours: R, G, B of each object (`object_colours`); those of OBJECT_COLOURS in turn if None.

    Returns:
        uint8 (H, W, 3).
    """
    drawn = _colours(len(mattes)) if colours is None else list(colours)
    tinted = np.clip(picture, 0.0, 1.0).astype(np.float32)
    for colour, matte in zip(drawn, mattes.values(), strict=True):
        if matte.shape != picture.shape[:2]:
            raise ValueError(f"a matte {matte.shape} does not fit the picture {picture.shape}")
        tinted = _tinted(tinted, colour, (_TINT * np.clip(matte, 0.0, 1.0))[..., None])
    result = np.ascontiguousarray(np.rint(tinted * 255), dtype=np.uint8)
    width = max(1, round(picture.shape[0] * _LINE_PER_HEIGHT))
    for colour, matte in zip(drawn, mattes.values(), strict=True):
        inside = (matte >= _EDGE).astype(np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, outlines, -1, colour, width, cv2.LINE_AA)
    return result


def pick_frames(frames: Sequence[int], keys: Collection[int], count: int = 12) -> tuple[int, ...]:
    """Frames for a contact sheet: the first, the last, the keys, and the rest spread evenly.

    At most `count` frames, or all keys if there are more keys: keys are always picked.
    """
    available = sorted(set(frames))
    chosen = {frame for frame in available if frame in keys}
    if available and len(chosen) < count:
        chosen |= {available[0]}
    if available and len(chosen) < count:
        chosen |= {available[-1]}
    while len(chosen) < min(count, len(available)):
        rest = [frame for frame in available if frame not in chosen]
        chosen.add(max(rest, key=lambda frame: (min(abs(frame - other) for other in chosen), -frame)))
    return tuple(sorted(chosen))


def contact_sheet(
    pictures: Mapping[int, ByteArray],
    keys: Collection[int] = (),
    *,
    columns: int | None = None,
    cell_width: int = 480,
    pixel_aspect: float = 1.0,
    note: str = "",
) -> ByteArray:
    """One picture of many frames, each with its number; key frames are framed and marked.

    Args:
        pictures: frame number -> uint8 (H, W, 3); sizes may differ.
        keys: frames that are keys.
        columns: how many side by side; at most 4 if None.
        cell_width: pixels of one picture on the sheet.
        pixel_aspect: of the pictures; the sheet has square pixels.
        note: a line below the pictures.

    Returns:
        uint8 (h, w, 3).
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = columns or min(_MAX_COLUMNS, math.ceil(math.sqrt(len(pictures))))
    rows = math.ceil(len(pictures) / columns)
    heights = {
        frame: max(1, round(cell_width * picture.shape[0] / (picture.shape[1] * pixel_aspect)))
        for frame, picture in pictures.items()
    }
    cell_height = max(heights.values())
    step_x, step_y = cell_width + _GAP, cell_height + _LABEL_HEIGHT + _GAP
    below = _LABEL_HEIGHT if note else 0
    sheet = np.full((rows * step_y + _GAP + below, columns * step_x + _GAP, 3), _SHEET_COLOUR, np.uint8)
    if note:
        corner = (_GAP + 2, rows * step_y + _LABEL_HEIGHT - 4)
        cv2.putText(sheet, note, corner, _FONT, _FONT_SCALE, _LABEL_COLOUR, 1, cv2.LINE_AA)
    for index, frame in enumerate(sorted(pictures)):
        x, y = _GAP + index % columns * step_x, _GAP + index // columns * step_y
        size = (cell_width, heights[frame])
        enlarged = size[0] > pictures[frame].shape[1]
        method = cv2.INTER_LINEAR if enlarged else cv2.INTER_AREA
        sheet[y : y + size[1], x : x + size[0]] = cv2.resize(pictures[frame], size, interpolation=method)
        is_key = frame in keys
        if is_key:
            corner = (x + size[0], y + size[1])
            cv2.rectangle(sheet, (x - 2, y - 2), (corner[0] + 1, corner[1] + 1), _KEY_COLOUR, 2)
        label = f"{frame}  KEY" if is_key else str(frame)
        place = (x + 2, y + cell_height + _LABEL_HEIGHT - 8)
        colour = _KEY_COLOUR if is_key else _LABEL_COLOUR
        cv2.putText(sheet, label, place, _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)
    return sheet


def write_picture(
    path: str | Path, picture: ByteArray, *, frame: int | None = None, listed: WrittenList | None = None
) -> None:
    """Write a uint8 (H, W, 3) picture as PNG or JPEG, atomically; folders are made.

    Args:
        listed: the list of its folder; by it the picture is known as ours as long as nobody changes it.

    Raises:
        MatteError: the name is neither, the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURE_KINDS:
        raise MatteError(
            "Overlay pictures are PNG or JPEG.", frame=frame, path=path, hint="Name it .png or .jpg."
        )
    spec = oiio.ImageSpec(picture.shape[1], picture.shape[0], 3, oiio.UINT8)
    spec.attribute("oiio:ColorSpace", "srgb_rec709_scene")
    spec.attribute(MAKER_ATTRIBUTE, MAKER)
    if path.suffix.lower() != ".png":
        spec.attribute("compression", _JPEG_QUALITY)
    write_image(
        path,
        spec,
        np.ascontiguousarray(picture, dtype=np.uint8),
        frame=frame,
        durable=False,
        on_whole=None if listed is None else partial(listed.finish_as, path),
    )


class OverlayWriter:
    """Writes overlay pictures frame by frame, as a sequence (`overlay.####.jpg`) or a movie (`overlay.mp4`).

    A movie appears under its name when the writer is closed without an error. Its sides are made even (as
    video needs) by leaving out the last row or column.
    """

    def __init__(self, target: str | Path, *, fps: float | None = None, pixel_aspect: float = 1.0) -> None:
        """Prepare the target.

        Args:
            target: a sequence, a movie file, or a folder (for `overlay.####.jpg` in it).
            fps: frames per second of a movie; 24 if None.
            pixel_aspect: of the pictures; what is written has square pixels.

        Raises:
            MatteError: the name is not that of a sequence or movie that can be written.
        """
        self.target = output_sequence(target, default_name=DEFAULT_NAME)
        self._fps = fps or DEFAULT_FPS
        self._pixel_aspect = pixel_aspect
        self._list = WrittenList(self.target.folder)
        self._video: cv2.VideoWriter | None = None
        self._part: Path | None = None
        self._size: tuple[int, int] | None = None
        self._count = 0
        movie = self.target.movie
        if movie is not None and movie.suffix.lower() not in MOVIE_CODECS:
            kinds = ", ".join(sorted(MOVIE_CODECS))
            raise MatteError("This kind of movie cannot be written.", path=movie, hint=f"Use one of {kinds}.")
        if movie is None and self.target.path(0).suffix.lower() not in PICTURE_KINDS:
            raise MatteError(
                "Overlay pictures are PNG or JPEG.",
                path=str(target),
                hint="Name them .####.png or .####.jpg.",
            )

    def write(self, frame: int, picture: ByteArray) -> None:
        """Add one frame: uint8 (H, W, 3). Frames of a movie must come in order and in one size.

        Raises:
            MatteError: the file cannot be written, or a movie frame has another size than the first.
        """
        if self._pixel_aspect != 1.0:
            size = (round(picture.shape[1] * self._pixel_aspect), picture.shape[0])
            picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        if self.target.movie is None:
            write_picture(self.target.path(frame), picture, frame=frame, listed=self._list)
            return
        height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
        if self._video is None:
            self._open(self.target.movie, (width, height), frame)
        if self._video is None or self._size != (width, height):
            raise MatteError(
                f"The frame is {width}x{height}, but the movie has another size.",
                frame=frame,
                path=self.target.movie,
                hint="Write a sequence instead.",
            )
        self._video.write(np.ascontiguousarray(picture[:height, :width, ::-1]))  # OpenCV's order is B, G, R
        self._count += 1

    def close(self, *, keep: bool = True) -> None:
        """Finish. A movie gets its final name, or is deleted where `keep` is False."""
        if self._video is None or self._part is None or self.target.movie is None:
            return
        self._video.release()
        self._video = None
        try:
            if keep:
                if frames_of(self._part) != self._count:
                    probe_disk(self._part)
                    raise OSError("it was not written as a whole")
                self._list.finish_as(self.target.movie, self._part)
                os.replace(self._part, self.target.movie)
        except OSError as error:
            raise image_error(error, None, self.target.movie) from error
        finally:
            remove_quietly(self._part)

    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=kind is None)

    def _open(self, movie: Path, size: tuple[int, int], frame: int) -> None:
        try:
            movie.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MatteError(
                f"The folder cannot be made: {error.strerror}.", frame=frame, path=movie.parent
            ) from error
        self._part = movie.with_name(f".{uuid.uuid4().hex[:12]}.part{movie.suffix}")
        self._size = size
        codec = cv2.VideoWriter.fourcc(*MOVIE_CODECS[movie.suffix.lower()])
        video = cv2.VideoWriter(str(self._part), codec, self._fps, size)
        if not video.isOpened():
            video.release()
            try:
                probe_disk(self._part)
            except OSError as error:
                raise image_error(error, frame, movie) from error
            finally:
                remove_quietly(self._part)
            raise MatteError(
                "The movie cannot be written: OpenCV has no encoder for it.",
                frame=frame,
                path=movie,
                hint="Write a sequence instead, such as overlay.####.jpg.",
            )
        self._video = video


def frames_of(movie: Path) -> int:
    """The number of frames that a movie file states; 0 where it is no movie."""
    video = cv2.VideoCapture(str(movie))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
    video.release()
    return count


def _colours(count: int) -> list[Colour]:
    return [OBJECT_COLOURS[index % len(OBJECT_COLOURS)] for index in range(count)]
