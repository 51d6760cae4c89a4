"""The content of `shot.json`: plate, objects, keys, settings and adaptation of a shot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from stm_plugin.planning.values import KeyMask
from stm_plugin.settings import Settings
from stm_plugin.windows import Window

SCHEMA = 2
"""Version of the folder's layout. Raise it with every field and setting that is added, so that an older
plug-in refuses the folder in words. Those of all older versions are read."""


@dataclass(frozen=True)
class ShotObject:
    """An object of a shot. The id never changes; the name is shown to people."""

    id: str
    name: str


@dataclass(frozen=True)
class StoredKey:
    """A key in the store: masks by object id, and the artist's files under keys/."""

    frame: int
    masks: Mapping[str, KeyMask]
    originals: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdaptationRecord:
    """Weights adapted to this shot (`stm_plugin.propagation.adaptation`).

    Attributes:
        id: sha256 of the file under adapted/.
        base, base_name: sha256 and name of the weights that it began from.
        licence: of the base weights; it applies to the adapted ones too.
        keys: what it was adapted to: hash of the masks by frame.
        steps: taken.
        plate: what it was adapted to: content hash of the plate on each of these frames; empty in older
            records.
    """

    id: str
    base: str
    base_name: str
    licence: str
    keys: Mapping[int, str]
    steps: int
    plate: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlateDescription:
    """Where the plate comes from: files (`text` and how to read them), or pixels that a host pushes."""

    kind: Literal["files", "pushed"]
    text: str = ""
    frame_range: tuple[int, int] | None = None
    layer: str | None = None
    view: str | None = None
    movie_first_frame: int = 1
    frames: tuple[int, int] | None = None
    display_window: Window | None = None
    canvas: Window | None = None
    pixel_aspect: float = 1.0
    fps: float | None = None


@dataclass(frozen=True)
class ShotDescription:
    """Everything in shot.json.

    Attributes:
        configured: settings, by name, that the configuration gave when the shot was made.
        chosen: settings of the machine that were chosen for this shot and are not left to the configuration;
            None in shots of before this was kept.
    """

    plate: PlateDescription
    settings: Settings = field(default_factory=Settings)
    objects: tuple[ShotObject, ...] = ()
    keys: tuple[StoredKey, ...] = ()
    next_object: int = 1
    adaptation: AdaptationRecord | None = None
    configured: Mapping[str, Any] = field(default_factory=dict)
    chosen: tuple[str, ...] | None = None

    @property
    def names(self) -> dict[str, str]:
        """Names of the objects by id."""
        return {one.id: one.name for one in self.objects}

    def to_json(self) -> dict[str, Any]:
        keys = [
            {
                "frame": key.frame,
                "masks": {name: asdict(mask) for name, mask in key.masks.items()},
                "originals": list(key.originals),
            }
            for key in self.keys
        ]
        return {
            "schema": SCHEMA,
            "plate": asdict(self.plate),
            "settings": self.settings.to_json(),
            "objects": [asdict(one) for one in self.objects],
            "keys": keys,
            "next_object": self.next_object,
            "adaptation": None if self.adaptation is None else asdict(self.adaptation),
            "configured": dict(self.configured),
            "chosen": None if self.chosen is None else list(self.chosen),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShotDescription:
        """The description from the values of `to_json`.

        Raises:
            ValueError: a field is missing or of another type.
            SettingsError: a setting cannot be used.
        """
        stored = _STORED.validate_json(json.dumps(dict(values)), strict=True)
        return cls(
            plate=stored.plate,
            settings=Settings.from_json(stored.settings),
            objects=stored.objects,
            keys=stored.keys,
            next_object=stored.next_object,
            adaptation=stored.adaptation,
            configured=stored.configured,
            chosen=stored.chosen,
        )


@dataclass(frozen=True)
class _StoredDescription:
    """shot.json on disk, with the types of its fields."""

    plate: PlateDescription
    settings: dict[str, Any]
    objects: tuple[ShotObject, ...]
    keys: tuple[StoredKey, ...]
    next_object: int
    adaptation: AdaptationRecord | None = None
    configured: dict[str, Any] = field(default_factory=dict)
    chosen: tuple[str, ...] | None = None


_STORED = TypeAdapter(_StoredDescription)
