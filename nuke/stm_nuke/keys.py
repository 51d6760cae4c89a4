"""The keys of a node in its hidden knob, so that undo, copy-paste and saving include them.

One entry per view and frame: `VIEW/FRAME/DIGEST/FINGERPRINT`, with a blank between entries. DIGEST is the
name of the mask file in the cache's keys folder, by content. FINGERPRINT is that of the mask input when the
mask was rendered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stm_nuke.exr import Picture

DIGEST_LETTERS = 32


@dataclass(frozen=True)
class Key:
    """One key. `digest` names its mask; `fingerprint` is that of the mask input when it was set."""

    view: str
    frame: int
    digest: str
    fingerprint: str


def parse_keys(text: str) -> tuple[Key, ...]:
    """The keys in a knob's text, by view and frame. Invalid entries are ignored."""
    found = {}
    for entry in text.split():
        parts = entry.split("/")
        if len(parts) == 4 and parts[1].lstrip("-").isdigit():
            key = Key(parts[0], int(parts[1]), parts[2], parts[3])
            found[key.view, key.frame] = key
    return tuple(found[place] for place in sorted(found))


def format_keys(keys: Iterable[Key]) -> str:
    """The text that `parse_keys` reads back."""
    ordered = sorted(keys, key=lambda key: (key.view, key.frame))
    return " ".join(f"{key.view}/{key.frame}/{key.digest}/{key.fingerprint}" for key in ordered)


def with_key(keys: Iterable[Key], new: Key) -> tuple[Key, ...]:
    """`keys` with `new` in the place of any key of its view and frame."""
    return (*without_key(keys, new.view, new.frame), new)


def without_key(keys: Iterable[Key], view: str, frame: int) -> tuple[Key, ...]:
    """`keys` less the one of this view and frame."""
    return tuple(key for key in keys if (key.view, key.frame) != (view, frame))


def digest_of(mask: Picture) -> str:
    """The name of a mask by its content: objects, windows and every value."""
    found = hashlib.sha256(repr((mask.format, mask.data_window, mask.display_window)).encode())
    for name in sorted(mask.planes):
        found.update(name.encode() + b"\0")
        found.update(mask.planes[name])
    return found.hexdigest()[:DIGEST_LETTERS]


def mask_path(cache: Path, digest: str) -> Path:
    """The file of the mask with this digest."""
    return cache / "keys" / f"{digest}.exr"


KEYS_TOUCHED = 4
"""Mattes up to the fourth key on either side may depend on a key (the dependency rule of the engine)."""


def neighbours(frames: Iterable[int], frame: float, nth: int = 1) -> tuple[int | None, int | None]:
    """The nearest of `frames` before and after `frame`, or the n-th nearest."""
    ordered = sorted(frames)
    before = [one for one in ordered if one < frame]
    after = [one for one in ordered if one > frame]
    return (before[-nth] if len(before) >= nth else None), (after[nth - 1] if len(after) >= nth else None)
