"""The cache folder of a node: keyframes, shot stores and mattes. A copied node gets a separate folder.

    STM_<id>/
      keys/<digest>.exr               masks of keyframes, by content
      mattes/matte.<view>.####.exr    the files of the Read inside the node; an existing file is fresh
      mattes/keys.<view>.txt          the keys that these mattes were made from
      mattes/finish.<view>.txt        their edges and layers
      fixes/matte.<view>.####.exr     copies of mattes that are being corrected
      previous/matte.<view>.####.exr  the matte of a frame before the last change
      mattes/stale.json               frames whose file was kept although it is out of date (an option)
      farm.<view>/                    a job bundle for a render farm
      shot.<view>.stmshot/            the engine's shot store

A copy of a node gets all files as hard links, which takes no time. Every file is replaced as a whole, so one
node never sees what the other writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from stm_nuke import site
from stm_nuke.errors import CacheError

ID_LETTERS = 12
TEMPLATE_VARIABLE = "STM_CACHE_TEMPLATE"
"""Environment variable: a site's folder for caches of saved scripts, with {script_folder}, {script}, {id}."""
CACHE_VARIABLE = "STM_CACHE"
"""Environment variable: the folder for caches of scripts that have not been saved yet."""

_SMALL_OR_GROWING = (".jsonl", ".json", ".txt")
"""Copied, not linked: journals are appended to in place."""
_NOT_COPIED = ("LOCK",)
_STALE_LIST = "stale.json"
HELD, PREVIOUS = "fixes", "previous"
_COPY_OF = "copy_of.txt"
"""In a copy without shot stores yet: the path of the cache that it was copied from."""
_EXR_MAGIC = b"\x76\x2f\x31\x01"
_MADE_BY_STM = b"stm:address\0"
"""An attribute in the header of every matte that the engine writes."""
_HEADER_BYTES = 1 << 18


def new_id() -> str:
    """A new, unique id."""
    return uuid.uuid4().hex[:ID_LETTERS]


def place_for(node_id: str, script: str, chosen: str) -> Path:
    """The cache folder of a node: chosen, by the site's template, in the configuration's `cache_folder`, or
    next to the script.

    Args:
        script: path of the script, or empty where it has not been saved.
        chosen: the folder that the artist chose, or empty for "next to the script".
    """
    template = os.environ.get(TEMPLATE_VARIABLE)
    if chosen:
        parent = Path(chosen)
    elif template and script:
        return _from_template(template, node_id, Path(script))
    else:
        given = "" if script else os.environ.get(CACHE_VARIABLE, "")
        beside = Path(script).parent / "stm" if script else Path.home() / ".stm-for-nuke" / "unsaved"
        parent = Path(given or site.cache_folder() or beside)
    return parent / f"STM_{node_id}"


def _from_template(template: str, node_id: str, script: Path) -> Path:
    """The folder by a site's template. CacheError where the template is invalid."""
    names = {"script_folder": script.parent.as_posix(), "script": script.stem, "id": f"STM_{node_id}"}
    try:
        place = Path(template.format(**names))
    except (KeyError, IndexError, ValueError) as error:
        raise CacheError(
            f"{TEMPLATE_VARIABLE} cannot be understood: {template}.",
            hint="Write it with {script_folder}, {script} and {id}.",
        ) from error
    return place if "{id}" in template else place / names["id"]


def make(cache: Path) -> None:
    """Make the folder.

    Raises:
        CacheError: it cannot be written.
    """
    try:
        for name in ("keys", "mattes"):
            (cache / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(cache, error) from error


def fork(source: Path, target: Path, is_whole: bool = False) -> None:
    """Copy `source` to `target`; later changes of one do not change the other.

    Keyframes and mattes are copied at once; `complete` copies the shot stores, which are large.

    Args:
        is_whole: copy the shot stores at once, too.

    Raises:
        CacheError: it cannot be written.
    """
    make(target)
    try:
        for part in ("keys", "mattes", HELD):
            if (source / part).is_dir():
                _copy_tree(source / part, target / part)
        if source.is_dir():
            _replace_text(target / _COPY_OF, source.as_posix())
    except OSError as error:
        raise _refused(target, error) from error
    if is_whole:
        complete(target)


def complete(target: Path) -> None:
    """Copy the shot stores of the cache that this one was copied from, if that was not done.

    If they were deleted meanwhile, they are only computed again. Thread-safe.

    Raises:
        CacheError: it cannot be written.
    """
    sources = _copied_from(target)
    if not sources:
        return
    if len(sources) > 1:
        with contextlib.suppress(CacheError):  # it may be read-only
            complete(sources[0])
    try:
        for source in sources:
            for store in source.glob("*.stmshot"):
                _copy_tree(store, target / store.name)
        (target / _COPY_OF).unlink(missing_ok=True)
    except OSError as error:
        raise _refused(target, error) from error


def _copied_from(target: Path) -> list[Path]:
    """The cache that this one was copied from if its shot stores were not, and that one's, and so on."""
    found = [target]
    with contextlib.suppress(OSError):
        while (source := Path((found[-1] / _COPY_OF).read_text("utf-8"))) not in found:
            found.append(source)
    return found[1:]


def _copy_tree(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        into = target / Path(folder).relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name not in _NOT_COPIED and not name.startswith("."):
                _link_or_copy(Path(folder) / name, into / name)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
        if source.suffix not in _SMALL_OR_GROWING:
            try:
                os.link(source, target)
                return
            except OSError:  # another disk, or a file system without links
                pass
        shutil.copy2(source, target)


def matte_path(cache: Path, view: str, frame: int) -> Path:
    """The matte file of a frame, as Nuke writes `%04d`."""
    return cache / "mattes" / f"matte.{view}.{frame:04d}.exr"


def matte_pattern(cache: Path, view: str) -> str:
    """The matte files of a view, with `%04d` and forward slashes."""
    return (cache / "mattes" / f"matte.{view}.%04d.exr").as_posix()


def store_folder(cache: Path, view: str) -> Path:
    """The engine's shot store for a view."""
    return cache / f"shot.{view}.stmshot"


def fresh_mattes(cache: Path, view: str, frames: Iterable[int]) -> set[int]:
    """The frames that have a matte file which is not marked as out of date."""
    return set(frames) & (matte_frames(cache, view) - stale_mattes(cache, view))


def matte_frames(cache: Path, view: str, folder: str = "mattes") -> set[int]:
    """The frames that have a matte file, fresh or not; or a copy in another folder of the cache."""
    pattern = re.compile(rf"matte\.{re.escape(view)}\.(-?\d+)\.exr")
    try:
        matches = [pattern.fullmatch(name) for name in os.listdir(cache / folder)]
    except OSError:
        return set()
    return {int(match[1]) for match in matches if match is not None}


def stale_mattes(cache: Path, view: str) -> set[int]:
    """The frames whose file was kept although it is out of date."""
    try:
        listed = json.loads((cache / "mattes" / _STALE_LIST).read_text("utf-8"))
        return {int(frame) for frame in listed.get(view, [])}
    except (OSError, ValueError, TypeError, AttributeError):
        return set()


def retire_mattes(cache: Path, view: str, frames: Iterable[int], keep: bool) -> list[int]:
    """Retire mattes that are out of date: move the files away, or only record the frames.

    Returns:
        The frames that had a fresh file before.

    Raises:
        CacheError: a file cannot be removed, so that a stale matte would be rendered.
    """
    fresh = sorted(fresh_mattes(cache, view, frames))
    if keep:
        if fresh:
            _record_stale(cache, view, stale_mattes(cache, view) | set(fresh))
        return fresh
    try:
        (cache / PREVIOUS).mkdir(exist_ok=True)
        for frame in matte_frames(cache, view) & set(frames):
            path = matte_path(cache, view, frame)
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, cache / PREVIOUS / path.name)  # to be compared with the next one
    except OSError as error:
        raise _refused(cache, error) from error
    stale = stale_mattes(cache, view)
    if stale & set(frames):
        _record_stale(cache, view, stale - set(frames))
    return fresh


def take_mattes(source: Path, target: Path, view: str) -> None:
    """Make the mattes of a view those of another cache; frames without one there are retired.

    Raises:
        CacheError: they cannot be linked or copied.
    """
    make(target)
    found = matte_frames(source, view)
    retire_mattes(target, view, matte_frames(target, view) - found, keep=False)
    try:
        for frame in found:
            _replace_with_link(matte_path(source, view, frame), matte_path(target, view, frame))
        _record_stale(target, view, stale_mattes(source, view) & found)
        for name in (f"keys.{view}.txt", f"finish.{view}.txt"):
            if (source / "mattes" / name).is_file():
                copy_whole(source / "mattes" / name, target / "mattes" / name)
    except OSError as error:
        raise _refused(target, error) from error


def take_results(source: Path, target: Path) -> None:
    """Bring the shot stores of a copied cache up to those that they were copied from.

    Raises:
        CacheError: they cannot be linked or copied.
    """
    try:
        for store in source.glob("*.stmshot"):
            _copy_tree(store, target / store.name)
            for path in store.rglob("*"):
                if path.suffix in _SMALL_OR_GROWING and not path.name.startswith("."):
                    copy_whole(path, target / path.relative_to(source))
    except OSError as error:
        raise _refused(target, error) from error


def _replace_with_link(source: Path, target: Path) -> None:
    if target.exists() and os.path.samefile(source, target):
        return
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    _link_or_copy(source, temporary)
    with contextlib.suppress(FileNotFoundError):  # the source was deleted meanwhile
        os.replace(temporary, target)


def held_pattern(cache: Path) -> str:
    """The pattern of copies of mattes that are being corrected, for a Read."""
    return (cache / HELD / "matte.%V.%04d.exr").as_posix()


def hold_mattes(cache: Path, view: str, frame: int) -> tuple[int, int]:
    """Copy the matte of a frame, to be painted on; other frames are copied if they have no copy yet.

    A frame without a matte keeps its copy.

    Returns:
        The first and last frame that have one.

    Raises:
        CacheError: they cannot be copied.
    """
    folder = cache / HELD
    found = matte_frames(cache, view)
    try:
        folder.mkdir(exist_ok=True)
        for one in found:
            path = matte_path(cache, view, one)
            if one != frame:
                _link_or_copy(path, folder / path.name)
    except OSError as error:
        raise _refused(cache, error) from error
    if frame in found:
        path = matte_path(cache, view, frame)
        copy_whole(path, folder / path.name)
    held = matte_frames(cache, view, HELD)
    return min(held), max(held)


def renew_mattes(cache: Path, view: str, frames: Iterable[int]) -> None:
    """Record that these frames have a new file."""
    stale = stale_mattes(cache, view)
    if stale & set(frames):
        _record_stale(cache, view, stale - set(frames))


def check_replaceable(target: Path, frame: int) -> None:
    """Check whether a matte may be written here: only mattes of STM may be replaced.

    Raises:
        CacheError: another file exists there.
    """
    try:
        if not os.path.lexists(target):
            return
        with target.open("rb") as stream:
            start = stream.read(_HEADER_BYTES)
    except OSError:  # a folder, a link to nothing, a file that may not be read
        start = b""
    if not start.startswith(_EXR_MAGIC) or _MADE_BY_STM not in start:
        raise CacheError(
            f"{target} is not a matte that STM made, so it is not replaced.",
            frame=frame,
            hint="Choose another folder.",
        )


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file atomically. CacheError where it cannot be written."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _refused(target.parent, error) from error


def record_keys(cache: Path, view: str, keys: str) -> None:
    """Record which keys the existing mattes were made from. CacheError where it cannot be written."""
    _replace_text(cache / "mattes" / f"keys.{view}.txt", keys)


def recorded_keys(cache: Path, view: str) -> str | None:
    """The keys that `record_keys` recorded last; None before."""
    try:
        return (cache / "mattes" / f"keys.{view}.txt").read_text("utf-8")
    except OSError:
        return None


def record_finish(cache: Path, view: str, text: str) -> None:
    """Record how the existing mattes are finished. CacheError where it cannot be written."""
    _replace_text(cache / "mattes" / f"finish.{view}.txt", text)


def recorded_finish(cache: Path, view: str) -> str | None:
    """What `record_finish` recorded last; None before."""
    try:
        return (cache / "mattes" / f"finish.{view}.txt").read_text("utf-8")
    except OSError:
        return None


def _record_stale(cache: Path, view: str, frames: set[int]) -> None:
    path = cache / "mattes" / _STALE_LIST
    try:
        listed = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        listed = {}
    listed[view] = sorted(frames)
    _replace_text(path, json.dumps(listed))


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise _refused(path.parent, error) from error


def _refused(cache: Path, error: OSError) -> CacheError:
    return CacheError(
        f"The cache folder {cache} cannot be written: {error.strerror or error}.",
        hint="Choose another folder in the Settings tab.",
    )
