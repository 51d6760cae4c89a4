"""Changes of a shot's keys and objects. Pure: they take a description and return another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from stm_plugin.errors import KeyframeError, MaskError, SettingsError
from stm_plugin.planning.values import KeyMask
from stm_plugin.settings import MAX_OBJECTS
from stm_plugin.store.description import ShotDescription, ShotObject, StoredKey


def with_objects(description: ShotDescription, names: Iterable[str], frame: int) -> ShotDescription:
    """Add objects that do not exist yet, in the order of `names`.

    Raises:
        MaskError: there would be too many.
    """
    added, following = list(description.objects), description.next_object
    known = {one.name for one in added}
    for name in names:
        if name not in known:
            known.add(name)
            added.append(ShotObject(f"o{following}", name))
            following += 1
    if len(added) > MAX_OBJECTS:
        raise MaskError(f"A shot has at most {MAX_OBJECTS} objects.", frame=frame)
    return replace(description, objects=tuple(added), next_object=following)


def with_key(
    description: ShotDescription,
    frame: int,
    masks: Mapping[str, KeyMask],
    originals: Sequence[str],
    *,
    replace_all: bool,
) -> ShotDescription:
    """Add a key, or replace it.

    Args:
        masks: by object id.
        originals: the artist's files under keys/.
        replace_all: forget objects and files that the key had before.
    """
    before = next((one for one in description.keys if one.frame == frame), None)
    if before is None or replace_all:
        key = StoredKey(frame, dict(masks), tuple(originals))
    else:
        key = StoredKey(frame, {**before.masks, **masks}, (*before.originals, *originals))
    return _with_keys(description, [*(one for one in description.keys if one.frame != frame), key])


def without_key(
    description: ShotDescription, frame: int, objects: Sequence[str] | None = None
) -> ShotDescription:
    """Remove a key, or some of its objects by name or id.

    Raises:
        KeyframeError: there is none.
    """
    found = next((one for one in description.keys if one.frame == frame), None)
    if found is None:
        frames = ", ".join(str(one.frame) for one in description.keys)
        raise KeyframeError(
            "There is no key on this frame.",
            frame=frame,
            hint=f"Keys are on {frames}." if frames else "The shot has no key.",
        )
    ids = {one.name: one.id for one in description.objects}
    gone = set(found.masks) if objects is None else {ids.get(name, name) for name in objects}
    others = [one for one in description.keys if one.frame != frame]
    return _with_keys(description, [*others, *_left(found, gone)])


def with_renamed_object(description: ShotDescription, old: str, new: str) -> ShotDescription:
    """Rename an object.

    Raises:
        SettingsError: there is no such object, or the name is taken.
    """
    id_of(description, old)
    if new != old and any(one.name == new for one in description.objects):
        raise SettingsError(f"There is an object {new!r} already.")
    renamed = (replace(one, name=new) if one.name == old else one for one in description.objects)
    return replace(description, objects=tuple(renamed))


def without_object(description: ShotDescription, name: str) -> ShotDescription:
    """Remove an object and all its masks.

    Raises:
        SettingsError: there is no such object.
    """
    gone = id_of(description, name)
    objects = tuple(one for one in description.objects if one.id != gone)
    keys = [left for key in description.keys for left in _left(key, {gone})]
    return _with_keys(replace(description, objects=objects), keys)


def id_of(description: ShotDescription, name: str) -> str:
    """The id of an object.

    Raises:
        SettingsError: there is no such object.
    """
    for one in description.objects:
        if one.name == name:
            return one.id
    there = ", ".join(one.name for one in description.objects)
    raise SettingsError(f"There is no object {name!r}.", hint=f"Objects are: {there or 'none'}.")


def _left(key: StoredKey, gone: set[str]) -> list[StoredKey]:
    """A key without some objects: a list with it, or empty if no mask is left."""
    masks = {one: mask for one, mask in key.masks.items() if one not in gone}
    return [replace(key, masks=masks)] if masks else []


def _with_keys(description: ShotDescription, keys: Iterable[StoredKey]) -> ShotDescription:
    return replace(description, keys=tuple(sorted(keys, key=lambda one: one.frame)))
