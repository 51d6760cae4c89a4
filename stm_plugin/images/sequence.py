"""Image sequences in the ways people write them, with the host's own frame numbers.

A sequence is written as

| text                                        | meaning                                                      |
| ------------------------------------------- | ------------------------------------------------------------ |
| `plate.####.exr`, `plate.%04d.exr`          | every frame on disk (also `@@@@`, `%d`, `$F4`)               |
| `plate.1001-1100#.exr`, `plate.1-9x2@@.exr` | the stated frames                                            |
| `plates/sh010`                              | a folder that holds one sequence or one movie                |
| `plate.1001.exr`                            | an existing frame: the sequence that it belongs to           |
| `plate.mov`                                 | a movie; its frames count from a stated number, 1 by default |
| `plate.%V.####.exr`                         | a movie; its first frame has a stated number, 1 by default   |

A range without a stated step has no gaps: a frame between the first and the last that has no file
is *missing*, and errors name it. A single `#` is four digits, several are as many digits, `@` one each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import fileseq
from fileseq.constants import PAD_STYLE_HASH1
from fileseq.exceptions import FileSeqException
from fileseq.frameset import FrameSet

from stm_plugin.errors import MatteError, PlateError, StmError
from stm_plugin.files.names import check_text
from stm_plugin.images.movie import index_movie, is_movie

FrameRange = str | tuple[int, int]
"""`"1001-1100"`, `"1001-1100x2"`, or (first, last)."""

_PICTURES = "exr sxr dpx cin tif tiff png jpg jpeg jp2 j2c tga bmp hdr iff psd rla sgi rgb webp"
PICTURE_EXTENSIONS = frozenset(f".{kind}" for kind in _PICTURES.split())
DEFAULT_OUTPUT_NAME = "matte.####.exr"
DEFAULT_FIRST_FRAME = 1
"""The number of the first frame of a movie, and of a still that has no number."""

_SINGLE_HASH_DIGITS = 4
_MOST_DIGITS = 20
"""Of a frame number; more digits are a typing error."""
_LONGEST_NUMBER = 4
_MAX_LISTED = 8
_MAX_FRAMES = 1_000_000
_TOKEN = re.compile(r"(?P<pad>#+|@+|%0?(?P<printf>\d*)d|\$F(?P<houdini>\d*))")
_RANGE_BEFORE = re.compile(r"-?\d+(?:-\d+(?:[x:y]\d+)?)?(?:,-?\d+(?:-\d+(?:[x:y]\d+)?)?)*$")
_LAST_NUMBER = re.compile(r"(?P<head>.*?)(?P<number>\d+)$", re.DOTALL)
_RANGE = re.compile(r"\d+(-\d+(x\d+)?)?(,\d+(-\d+(x\d+)?)?)*")
_FOLDER_HINT = "Correct the path, or ask for the right to read there."
_NEGATIVE = "Negative frame numbers cannot be used."
_NEGATIVE_HINT = "Renumber the frames so that they start at 0 or later."


@dataclass(frozen=True)
class FrameSequence:
    """A sequence of frames: image files, or the frames of one movie file.

    Attributes:
        text: the sequence as the artist wrote it.
        frames: every frame number of the range, ascending, the missing ones included.
        missing: the frames of the range that have no file (empty for a movie and for an output).
        movie: the movie file, or None when every frame is a file of its own.
        files: the existing file of each frame of the range.
        folder, head, padding, tail: a frame's file is head, the number padded to `padding` digits
            and tail, in the folder.
    """

    text: str
    frames: tuple[int, ...]
    missing: tuple[int, ...] = ()
    movie: Path | None = None
    files: Mapping[int, Path] = field(default_factory=dict, repr=False)
    folder: Path = Path()
    head: str = ""
    padding: int | None = None
    tail: str = ""

    def __str__(self) -> str:
        return self.text

    def path(self, frame: int) -> Path:
        """The file of one frame, whether it exists or not (for a movie always the movie).

        Raises:
            PlateError: the frame number is negative.
        """
        if frame < 0:
            raise PlateError(_NEGATIVE, frame=frame, hint=_NEGATIVE_HINT)
        if self.movie is not None:
            return self.movie
        if frame in self.files:
            return self.files[frame]
        if self.padding is None:  # one still without a number
            return self.folder / (self.head + self.tail)
        return self.folder / f"{self.head}{frame:0{self.padding}d}{self.tail}"


def parse_frame_range(text: FrameRange) -> tuple[int, ...]:
    """Frame numbers, ascending, from `1001-1100`, `1001-1100x2`, `1001,1005-1010` or (first, last).

    >>> parse_frame_range("1001-1005x2,1010")
    (1001, 1003, 1005, 1010)

    Raises:
        PlateError: the text is not a range, the range runs backwards, or a frame is negative.
    """
    if isinstance(text, tuple):
        first, last = text
        if min(first, last) < 0:
            raise PlateError(_NEGATIVE, frame=min(first, last), hint=_NEGATIVE_HINT)
        if first > last:
            raise PlateError(f"The frame range {first}-{last} runs backwards.", hint=f"Write {last}-{first}.")
        return tuple(range(first, last + 1))
    plain = text.strip().replace(" ", "").replace(":", "x")
    if re.search(r"(^|[,-])-\d", plain):
        raise PlateError(f"{_NEGATIVE[:-1]} (in {text!r}).", hint=_NEGATIVE_HINT)
    if not _RANGE.fullmatch(plain):
        raise PlateError(f"{text!r} is not a frame range.", hint="Write it like 1001-1100 or 1001-1100x2.")
    for part in plain.split(","):
        first_text, _, rest = part.partition("-")
        last_text, _, step = rest.partition("x")
        if last_text and int(last_text) < int(first_text):
            raise PlateError(
                f"The frame range {text!r} runs backwards.", hint=f"Write {last_text}-{first_text}."
            )
        if step and int(step) == 0:
            raise PlateError(f"The frame range {text!r} has a step of 0.", hint="Use a step of 1 or more.")
    return tuple(sorted({int(frame) for frame in FrameSet(plain)}))


def describe_frames(frames: Iterable[int]) -> str:
    """Frames in the short form that people write.

    >>> describe_frames([1001, 1002, 1003, 1007])
    '1001-1003, 1007'
    """
    numbers = sorted(set(frames))
    return fileseq.framesToFrameRange(numbers, compress=False).replace(",", ", ") if numbers else "none"


def parse_sequence(
    text: str | Path,
    *,
    frame_range: FrameRange | None = None,
    view: str | None = None,
    movie_first_frame: int = DEFAULT_FIRST_FRAME,
) -> FrameSequence:
    """A sequence that exists on disk.

    Args:
        text: the sequence in any form of the table above.
        frame_range: the frames wanted; all that the text states, or that are on disk, if None.
        view: replaces `%V` and `%v`.
        movie_first_frame: the number of the first frame of a movie, or of a still without a number.

    Raises:
        PlateError: nothing on disk fits, a folder holds several sequences, frame numbers are negative, or the
            name is not UTF-8.
    """
    written = str(text)
    if not written.strip():
        raise PlateError("The plate is empty.", hint="Give a sequence such as plate.####.exr.")
    check_text(written, "plate", error=PlateError)
    if movie_first_frame < 0:
        raise PlateError(_NEGATIVE, frame=movie_first_frame, hint=_NEGATIVE_HINT)
    path = Path(_with_view(written, view, PlateError)).expanduser()
    if path.is_dir():
        path = _only_sequence_of(path)
    if path.is_file():
        if is_movie(path):
            return _movie_sequence(written, path, frame_range, movie_first_frame)
        numbered = _LAST_NUMBER.fullmatch(path.stem)
        if numbered is None:
            return _still_sequence(written, path, frame_range, movie_first_frame)
        head, padding, stated = numbered["head"], len(numbered["number"]), None
        tail = path.suffix
        # 0999 is padded; 1001 fits both %d and %04d, so the files on disk decide
    else:
        token = _split_token(path.name)
        if token is None:
            raise PlateError(
                "There is no such file or folder, and the name has no frame token.",
                path=path,
                hint="Write a sequence as plate.####.exr or plate.%04d.exr.",
            )
        head, stated, padding, tail = token
    return _files_sequence(written, path.parent, head, padding, tail, stated, frame_range)


def output_sequence(
    text: str | Path, *, view: str | None = None, default_name: str = DEFAULT_OUTPUT_NAME
) -> FrameSequence:
    """A sequence to be written; `frames` is empty unless the text states a range.

    Args:
        text: a pattern, a movie file, or a folder (which means `default_name` in that folder).
        view: replaces `%V` and `%v`.
        default_name: the file name pattern used when the text is a folder.

    Raises:
        MatteError: the name has no frame token, so that every frame would overwrite the one before.
    """
    written = str(text)
    if not written.strip():
        raise MatteError("The output is empty.", hint="Give a sequence such as matte.####.exr.")
    check_text(written, "output", "Give the output another name or folder.", MatteError)
    path = Path(_with_view(written, view, MatteError)).expanduser()
    if is_movie(path):
        return FrameSequence(text=written, frames=(), movie=path, folder=path.parent)
    try:
        token = _split_token(path.name)
    except PlateError as error:
        raise MatteError(error.what, path=path, hint=error.hint) from error
    if token is None and (path.is_dir() or written.endswith(("/", "\\")) or not path.suffix):
        path = path / default_name
        token = _split_token(default_name)
    if token is None:
        raise MatteError(
            "The output name has no frame token, so every frame would overwrite the one before.",
            path=path,
            hint=f"Write {path.stem}.####{path.suffix}.",
        )
    head, stated, padding, tail = token
    try:
        frames = () if stated is None else parse_frame_range(stated)
    except PlateError as error:
        raise MatteError(error.what, path=path, hint=error.hint) from error
    return FrameSequence(
        text=written, frames=frames, folder=path.parent, head=head, padding=padding, tail=tail
    )


def _with_view(text: str, view: str | None, error: type[StmError]) -> str:
    if "%V" not in text and "%v" not in text:
        return text
    if not view:
        raise error("The name has a %V or %v token, but no view is given.", path=text, hint="State the view.")
    return text.replace("%V", view).replace("%v", view[0])


def _split_token(name: str) -> tuple[str, str | None, int, str] | None:
    """(head, stated range, padding, tail) of a file name with a frame token, or None without one."""
    tokens = list(_TOKEN.finditer(name))
    if not tokens:
        return None
    token = tokens[-1]
    if _padding_of(token) > _MOST_DIGITS:
        raise PlateError(
            f"The frame token asks for more than {_MOST_DIGITS} digits.",
            path=name,
            hint="Write it as #### or %04d.",
        )
    head, tail = name[: token.start()], name[token.end() :]
    stated = None
    found = _RANGE_BEFORE.search(head)
    if found is not None:
        before, candidate = head[: found.start()], found[0]
        if candidate.startswith("-") and before and before[-1].isalnum():  # plate-1001-1100#: a separator
            before, candidate = before + "-", candidate[1:]
        if not before or not before[-1].isalnum() or "-" in candidate or "," in candidate:
            head, stated = before, candidate
    return head, stated, _padding_of(token), tail


def _padding_of(token: re.Match[str]) -> int:
    pad = token["pad"]
    if pad[0] == "#":
        return _SINGLE_HASH_DIGITS if pad == "#" else len(pad)
    if pad[0] == "@":
        return len(pad)
    digits = token["printf"] if token["printf"] is not None else token["houdini"]
    return min(int(digits[:_LONGEST_NUMBER]), _MOST_DIGITS + 1) if digits else 1


def _files_sequence(
    written: str,
    folder: Path,
    head: str,
    padding: int,
    tail: str,
    stated: str | None,
    frame_range: FrameRange | None,
) -> FrameSequence:
    wanted = None if frame_range is None else parse_frame_range(frame_range)
    if stated is not None:
        frames_in_text = parse_frame_range(stated)
        if wanted is None:
            wanted = frames_in_text
        elif outside := sorted(set(wanted) - set(frames_in_text)):
            raise PlateError(
                f"The frames {describe_frames(outside)} are not in the range {stated} that the plate states.",
                path=written,
            )
    found = _scan(folder, head, padding, tail)
    if wanted is None and any(frame < 0 for frame in found):
        first = min(found)
        raise PlateError(_NEGATIVE, frame=first, path=found[first], hint=_NEGATIVE_HINT)
    if not found:
        shown = folder / _shown(head, padding, tail)
        raise PlateError("No file fits this sequence.", path=shown, hint=_near(folder))
    if wanted is None:
        if max(found) - min(found) >= _MAX_FRAMES:
            raise PlateError(
                f"The numbers run from {min(found)} to {max(found)}: they do not look like frame numbers.",
                path=folder / _shown(head, padding, tail),
                hint="State the frame range.",
            )
        wanted = tuple(range(min(found), max(found) + 1))
    files = {frame: found[frame] for frame in wanted if frame in found}
    if not files:
        raise PlateError(
            f"None of the frames {describe_frames(wanted)} exists.",
            path=folder / _shown(head, padding, tail),
            hint=f"On disk are the frames {describe_frames(frame for frame in found if frame >= 0)}.",
        )
    return FrameSequence(
        text=written,
        frames=wanted,
        missing=tuple(frame for frame in wanted if frame not in files),
        files=MappingProxyType(files),
        folder=folder,
        head=head,
        padding=padding,
        tail=tail,
    )


def _scan(folder: Path, head: str, padding: int, tail: str) -> dict[int, Path]:
    """The files of a pattern by frame. Any padding fits; the stated one is preferred."""
    sign = "" if head and head[-1].isalnum() else "-?"
    name = re.compile(re.escape(head) + f"(?P<number>{sign}[0-9]+)" + re.escape(tail))
    found: dict[int, Path] = {}
    try:
        entries = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise PlateError(
            f"The folder cannot be read ({error.strerror}).", path=folder, hint=_FOLDER_HINT
        ) from error
    for entry in entries:
        match = name.fullmatch(entry)
        if match is None:
            continue
        frame = int(match["number"])
        exact = match["number"] == f"{frame:0{padding}d}"
        if frame not in found or exact:
            found[frame] = folder / entry
    return found


def _movie_sequence(
    written: str, path: Path, frame_range: FrameRange | None, first_frame: int
) -> FrameSequence:
    available = range(first_frame, first_frame + index_movie(path).count)
    frames = tuple(available) if frame_range is None else parse_frame_range(frame_range)
    if outside := [frame for frame in frames if frame not in available]:
        raise PlateError(
            f"The frames {describe_frames(outside)} are not in the movie.",
            path=path,
            hint=f"It holds the frames {available[0]}-{available[-1]} when its first frame is {first_frame}.",
        )
    return FrameSequence(text=written, frames=frames, movie=path, folder=path.parent)


def _still_sequence(
    written: str, path: Path, frame_range: FrameRange | None, first_frame: int
) -> FrameSequence:
    frames = (first_frame,) if frame_range is None else parse_frame_range(frame_range)
    if frames != (first_frame,):
        raise PlateError(
            f"A still without a number is frame {first_frame} only, not {describe_frames(frames)}.", path=path
        )
    return FrameSequence(
        text=written,
        frames=frames,
        files=MappingProxyType({first_frame: path}),
        folder=path.parent,
        head=path.stem,
        tail=path.suffix,
    )


def _only_sequence_of(folder: Path) -> Path:
    """A file of the one sequence in a folder; PlateError when there are several; it lists them."""
    try:
        found = fileseq.findSequencesOnDisk(str(folder), pad_style=PAD_STYLE_HASH1)
    except (OSError, FileSeqException) as error:
        raise PlateError(f"The folder cannot be read ({error}).", path=folder, hint=_FOLDER_HINT) from error
    usable = [item for item in found if item.extension().lower() in PICTURE_EXTENSIONS or is_movie(str(item))]
    choices = [item for item in usable if item.frameSet() and not is_movie(str(item))]
    choices = choices or usable  # no numbered pictures: a movie or one still
    if not choices:
        raise PlateError(
            "The folder holds no pictures and no movie.",
            path=folder,
            hint="Give a sequence such as plate.####.exr.",
        )
    if len(choices) > 1:
        names = sorted(Path(str(item)).name for item in choices)
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        raise PlateError(
            f"The folder holds {len(names)} sequences: {', '.join(names[:_MAX_LISTED])}{more}.",
            path=folder,
            hint="State which one is the plate.",
        )
    return Path(choices[0][0])


def _shown(head: str, padding: int, tail: str) -> str:
    return f"{head}{'#' * padding}{tail}"


def _near(folder: Path) -> str:
    """A hint that lists the sequences of the folder."""
    try:
        names = [Path(str(item)).name for item in fileseq.findSequencesOnDisk(str(folder))]
    except (OSError, FileSeqException):
        names = []
    if not names:
        return "There are no files in the folder."
    more = " ..." if len(names) > _MAX_LISTED else ""
    return f"The folder holds {', '.join(sorted(names)[:_MAX_LISTED])}{more}."
