"""How matte files are finished: their edges and their layers, and the files that were finished otherwise.

The engine's results do not depend on it, so a change of it computes nothing: the files are written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_nuke import cache
from stm_nuke.frames import Range

LAYERS = ("confidence", "foreground")
"""The engine's settings that add a layer to matte files."""
NARROWEST, WIDEST = 0.25, 4.0
"""Of the width of learned edges."""


@dataclass(frozen=True)
class Finish:
    """What a matte file is besides the network's result. The defaults are those of earlier releases.

    Attributes:
        width: of learned edges; 1 for all others.
        layers: of `LAYERS`.
    """

    edges: str = "learned"
    width: float = 1.0
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Finish:
        """Of a shot's settings, by the engine's names."""
        edges = str(settings["finish.edges"])
        width = float(settings["finish.width"]) if edges == "learned" else 1.0
        return cls(edges, width, tuple(name for name in LAYERS if settings[name]))

    @classmethod
    def recorded(cls, folder: Path, view: str) -> Finish:
        """Of the files in a cache."""
        edges, _, rest = (cache.recorded_finish(folder, view) or "").partition(" ")
        width, *layers = rest.split() or [""]
        try:
            return cls(edges, float(width), tuple(layers))
        except ValueError:
            return cls()

    def fits(self, folder: Path, view: str) -> bool:
        """Whether the files in a cache are so, as far as it is recorded."""
        return cache.recorded_finish(folder, view) is None or self.recorded(folder, view) == self

    def record(self, folder: Path, view: str) -> None:
        """Record that files in a cache are so from now on. CacheError where it cannot be written."""
        cache.record_finish(folder, view, " ".join((self.edges, repr(self.width), *self.layers)))


def retire_others(folder: Path, view: str, frames: Range, wanted: Finish, keep: bool) -> None:
    """Retire the files in a cache that are finished otherwise.

    Args:
        keep: keep their picture until there is a new one. A file without a wanted layer is never kept, as the
            layer would be black.

    Raises:
        CacheError: a file cannot be removed.
    """
    found = Finish.recorded(folder, view)
    if found != wanted:
        every = range(frames[0], frames[1] + 1)
        cache.retire_mattes(folder, view, every, keep and set(wanted.layers) <= set(found.layers))
    if found != wanted or cache.recorded_finish(folder, view) is None:
        wanted.record(folder, view)
