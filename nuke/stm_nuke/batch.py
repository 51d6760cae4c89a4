"""Functions for scripts: the panel's buttons as functions that return at the end and raise errors.

Every function takes a node or its name, and works in the first view unless another is given. Not for scripts
inside Nuke's window, which would not respond meanwhile; use `stm_nuke.verbs` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Callable, Union

import nuke
from stm_nuke import cache, fingerprint, knobs, node, untouched, verbs
from stm_nuke.errors import CacheError, UsageError
from stm_nuke.frames import Range, in_words, whole
from stm_nuke.node import StmNode
from stm_nuke.tasks import Task

NodeOrName = Union[StmNode, nuke.Node, str]


def find(name: str) -> StmNode:
    """The STM node of this name. Raises NoNodeError."""
    return node.find(name)


def find_all() -> list[StmNode]:
    """Every STM node of the script, by name."""
    return node.find_all()


def create(plate: nuke.Node | None = None, mask: nuke.Node | None = None) -> StmNode:
    """A new STM node."""
    return node.create(plate, mask)


def keys_from_roto(which: NodeOrName, view: str | None = None) -> list[int]:
    """Set a key on every frame on which the Roto above the mask input has one; returns the frames."""
    found = _node(which)
    shown = view or found.view()
    frames = verbs.roto_frames(found, shown)
    _waited(lambda ended: verbs.keys_from_roto(found, shown, frames, ended))
    return frames


def list_keys(which: NodeOrName, view: str | None = None) -> list[int]:
    """The frames of its keys."""
    found = _node(which)
    return [key.frame for key in found.keys_of(view or found.view())]


def set_key(
    which: NodeOrName, frame: int, mask_file: str | Path | None = None, view: str | None = None
) -> None:
    """Set a key from the mask input, or from an image file.

    Raises:
        StmNodeError: a subclass for the kind of error, with its `exit_code`.
    """
    found, at = _node(which), whole(frame)
    file = None if mask_file is None else Path(mask_file)
    _waited(lambda ended: verbs.set_key(found, at, view or found.view(), file, ended))


def set_keys_from_files(which: NodeOrName, masks: Mapping[int, str | Path], view: str | None = None) -> None:
    """Set several keys: frame -> mask file."""
    for frame, path in sorted(masks.items()):
        set_key(which, frame, path, view)


def delete_key(which: NodeOrName, frame: int, view: str | None = None) -> None:
    """Delete a key. Raises KeyframeError where there is none."""
    found, at = _node(which), whole(frame)
    _waited(lambda ended: verbs.delete_key(found, at, view or found.view(), ended))


def update_keys(which: NodeOrName, view: str | None = None) -> None:
    """Update the masks of keys whose mask input has changed."""
    found = _node(which)
    _waited(lambda ended: verbs.update_keys(found, view or found.view(), ended))


def check_plate(which: NodeOrName, view: str | None = None) -> None:
    """Render the plate again; frames whose content differs become stale."""
    found = _node(which)
    _waited(lambda ended: verbs.check_plate(found, view or found.view(), ended))


def propagate(
    which: NodeOrName,
    frames: Range | None = None,
    direction: verbs.Direction = "both",
    view: str | None = None,
) -> list[int]:
    """Make the mattes of `frames` (default: all); returns the frames whose matte is ready.

    Raises:
        StmNodeError: a subclass for the kind of error; finished frames are kept.
    """
    found, wanted = _node(which), _whole_range(frames)
    task = _waited(lambda ended: verbs.propagate(found, view or found.view(), wanted, direction, ended))
    first, last = wanted or found.frames
    if found.is_live:
        return sorted(task.done & set(range(first, last + 1)))
    return sorted(cache.fresh_mattes(found.cache, view or found.view(), range(first, last + 1)))


def status(which: NodeOrName, view: str | None = None) -> str:
    """The status line, after asking the engine."""
    found = _node(which)
    _waited(lambda ended: verbs.refresh(found, view or found.view(), ended))
    return str(found[knobs.STATUS])


def bake(which: NodeOrName, folder: str | Path, frames: Range | None = None, view: str | None = None) -> Path:
    """Copy the mattes from the cache to another folder; returns the path with `%04d`.

    Raises:
        CacheError: a frame has no fresh matte, the folder cannot be written, or a file in it was not
            made by STM or is read by a node above; then nothing is written.
    """
    found = _node(which)
    shown = view or found.view()
    first, last = _whole_range(frames) or found.frames
    if found.is_live:
        _waited(lambda ended: verbs.write_mattes(found, shown, (first, last), ended))
    fresh = cache.fresh_mattes(found.cache, shown, range(first, last + 1))
    lacking = [frame for frame in range(first, last + 1) if frame not in fresh]
    if lacking:
        raise CacheError(f"{found.name} has no fresh matte at {in_words(lacking)}.", hint="Propagate first.")
    sources = {frame: cache.matte_path(found.cache, shown, frame) for frame in range(first, last + 1)}
    inputs = _reads_above(found)
    for frame, source in sources.items():
        target = Path(folder) / source.name
        for read in inputs:
            if untouched.may_read(read, target, shown):
                raise CacheError(
                    f"{target} would replace a file of {read.fullName()}, which the node reads.",
                    frame=frame,
                    hint="Choose another folder.",
                )
        cache.check_replaceable(target, frame)
    for source in sources.values():
        cache.copy_whole(source, Path(folder) / source.name)
    return Path(folder) / f"matte.{shown}.%04d.exr"


def farm_bundle(
    which: NodeOrName,
    out: str | Path | None = None,
    frames: Range | None = None,
    stm: str = verbs.FARM_STM,
    view: str | None = None,
) -> Path:
    """Write a job bundle for a render farm, which writes the node's own matte files; returns its folder.

    Args:
        out: the folder; in the node's cache if None.
        stm: the command `stm` on the farm's machines.
    """
    found, wanted = _node(which), _whole_range(frames)
    shown = view or found.view()
    folder = None if out is None else Path(out)
    _waited(lambda ended: verbs.farm_bundle(found, shown, folder, wanted, stm, ended))
    return folder or found.cache / f"farm.{shown}"


def _reads_above(found: StmNode) -> list[nuke.Node]:
    """The Reads that the node's inputs are made from."""
    inputs = [found.group.input(number) for number in range(found.group.inputs())]
    above = [one for top in inputs if top is not None for one in (top, *fingerprint.depends_on(top))]
    return [one for one in above if one.Class() == "Read"]


def _node(which: NodeOrName) -> StmNode:
    if isinstance(which, StmNode):
        return which
    return node.find(which) if isinstance(which, str) else StmNode(which)


def _whole_range(frames: Range | None) -> Range | None:
    return None if frames is None else (whole(frames[0]), whole(frames[1]))


def _waited(act: Callable[[Callable[[Task], None]], object]) -> Task:
    """Run a verb, which in a terminal ends before it returns, and raise its error."""
    if nuke.GUI:
        raise UsageError(
            "stm_nuke waits for its work and would block Nuke's window.", hint="Use stm_nuke.verbs."
        )
    ended: list[Task] = []
    act(ended.append)
    if ended[0].error is not None:
        raise ended[0].error
    return ended[0]
