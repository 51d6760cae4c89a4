"""Every setting of a shot: its default, the reason for the default, and which results depend on it.

A setting belongs to one *part*. Content addresses are made of parts: a change of a setting makes stale only
what depends on its part.

| part          | what depends on it                                                              |
| ------------- | ------------------------------------------------------------------------------- |
| `picture`     | the working picture: features, every probability, and so all results            |
| `memory`      | every probability, but not the features of a frame                               |
| `finish`      | the mattes, not the probabilities: finishing again is quick                      |
| `export`      | the files that are written, not the mattes                                      |
| `identity`    | the same as `picture`, by content: weights by sha256, colour by the transform    |
| `machine`     | nothing: memory budgets and the device                                          |
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from stm_plugin.address import Ingredient, address_of
from stm_plugin.errors import SettingsError
from stm_plugin.windows import Window

Part = Literal["picture", "memory", "finish", "export", "identity", "machine"]
Precision = Literal["float32", "bfloat16", "float16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]
Edges = Literal["learned", "guided", "off"]
Device = Literal["auto", "cuda", "mps", "cpu"]
MaskMode = Literal["auto", "soft", "labels", "layers"]
"""How a mask file is understood (`stm_plugin.images.mask`)."""

DEFAULT_ADAPT_SECONDS = 900.0
"""Adapting ends after this time at the latest; the steps done by then count."""

MAX_OBJECTS = 16
"""Objects of one shot; soft aggregation and the memory are sized for it."""

MAX_CHANNEL_BYTES = 255
"""Of a channel's name in an EXR."""

_GONE = frozenset({"keys_in_memory"})
"""Settings of earlier versions that older shots and scripts still name; they are ignored."""
_MEMORY_RULE = re.compile(r"first|previous|first\+previous|every:[1-9][0-9]{0,3}")
_GIBIBYTE = 1 << 30
_REGION_HINT = "Give X,Y,WIDTH,HEIGHT in plate pixels, or none."


def _about(part: Part, reason: str) -> dict[str, str]:
    """The metadata of a setting's field."""
    return {"part": part, "reason": reason}


@dataclass(frozen=True)
class FinishSettings:
    """How a probability at working size becomes a soft matte at plate resolution."""

    edges: Edges = field(
        default="learned",
        metadata=_about(
            "finish",
            "by a network: soft where the plate is, hard where it is not; guided: by a filter; off: enlarged",
        ),
    )
    edge_weights: str = field(
        default="edges-lite", metadata=_about("finish", "of learned edges: ships with the plug-in")
    )
    width: float = field(
        default=1.0,
        metadata=_about("finish", "of learned edges: unchanged at 1; narrower below 1, wider above"),
    )
    radius: int = field(
        default=32,
        metadata=_about(
            "finish", "of guided edges, in working pixels; with `sure`, the best on generated clips"
        ),
    )
    epsilon: float = field(
        default=1e-4,
        metadata=_about("finish", "squared display contrast that counts as an edge: 1 % of the range"),
    )
    sharpness: float = field(
        default=1.0,
        metadata=_about("finish", "of guided edges: more than 1 hardens what is soft"),
    )
    sure: float = field(
        default=0.03,
        metadata=_about(
            "finish",
            "of guided edges: values this near 0 or 1 become 0 or 1, else the plate shows as a haze",
        ),
    )

    def __post_init__(self) -> None:
        _one_of("finish.edges", self.edges, get_args(Edges))
        _within("finish.width", self.width, 0.25, 4.0)
        _within("finish.radius", self.radius, 1, 64)
        _within("finish.epsilon", self.epsilon, 1e-8, 1.0)
        _within("finish.sharpness", self.sharpness, 1.0, 16.0)
        _within("finish.sure", self.sure, 0.0, 0.25)


@dataclass(frozen=True)
class Settings:
    """The settings of a shot. Immutable; `dataclasses.replace` makes a changed copy.

    Raises:
        SettingsError: on construction, where a value cannot be used.
    """

    memory_rule: str = field(
        default="every:5",
        metadata=_about("memory", "the paper's best rule (table 5): first, previous and every fifth frame"),
    )
    memory_cap: int = field(
        default=20,
        metadata=_about(
            "memory",
            "stored frames beside keys: a hundred frames of every:5; bounds a frame's time and memory",
        ),
    )
    working_size: int = field(
        default=480,
        metadata=_about(
            "picture", "short side in square pixels: the network was trained and measured near it"
        ),
    )
    region: Window | None = field(
        default=None,
        metadata=_about(
            "picture", "the whole canvas; a smaller window puts all working pixels on the object"
        ),
    )
    precision: PrecisionChoice = field(
        default="auto",
        metadata=_about(
            "picture",
            "the fastest of this machine whose scores are those of float32; chosen when the shot is made, "
            "and kept in it",
        ),
    )
    weights: str = field(
        default="stm-lite", metadata=_about("identity", "ships with the plug-in and runs on a CPU")
    )
    adapt: bool = field(
        default=False,
        metadata=_about("identity", "the unchanged weights; true uses the adaptation of `stm adapt`"),
    )
    colour_space: str | None = field(
        default=None, metadata=_about("identity", "found from the file and the config")
    )
    ocio_config: str | None = field(
        default=None, metadata=_about("identity", "$OCIO, else the built-in ACES config")
    )
    finish: FinishSettings = field(
        default_factory=FinishSettings, metadata=_about("finish", "see FinishSettings")
    )
    channel: str = field(
        default="A", metadata=_about("export", "where compositing programs look for a matte")
    )
    cryptomatte: bool = field(
        default=False,
        metadata=_about("export", "ids cost four 32-bit channels for two objects; few ask for them"),
    )
    confidence: bool = field(
        default=False,
        metadata=_about("export", "the network's confidence in each pixel: one more channel; few ask for it"),
    )
    foreground: bool = field(
        default=False,
        metadata=_about(
            "export", "the plate's colours without the background, as layer fg: a second or more a 2K frame"
        ),
    )
    device: Device = field(default="auto", metadata=_about("machine", "cuda, else mps, else cpu"))
    ram_budget: int = field(
        default=_GIBIBYTE // 2,
        metadata=_about(
            "machine",
            "bytes of features kept in RAM: 50 frames of `stm-lite`; more are read from memory/ on disk, so "
            "that a machine of 4 GB has room for the run",
        ),
    )
    disk_budget: int = field(
        default=8 * _GIBIBYTE,
        metadata=_about("machine", "bytes of features kept in the shot's memory/ folder; may be deleted"),
    )
    plate_budget: int = field(
        default=64 * _GIBIBYTE,
        metadata=_about("machine", "bytes of plate pixels that a host pushed, in the shot's plate/ folder"),
    )

    def __post_init__(self) -> None:
        if not _MEMORY_RULE.fullmatch(self.memory_rule):
            raise SettingsError(
                f"The memory rule {self.memory_rule!r} is not known.",
                hint="Use first, previous, first+previous or every:N (every:5 is the default).",
            )
        _within("memory_cap", self.memory_cap, 1, 1000)
        _within("working_size", self.working_size, 16, 4320)
        _one_of("precision", self.precision, get_args(PrecisionChoice))
        _one_of("device", self.device.split(":")[0], get_args(Device))
        if self.region is not None and (self.region.width < 1 or self.region.height < 1):
            raise SettingsError("The region is empty.", hint="Give a width and a height of at least 1 pixel.")
        for name in ("ram_budget", "disk_budget", "plate_budget"):
            _within(name, getattr(self, name), 0, 1 << 50)
        if not self.channel or not self.channel.isprintable() or " " in self.channel:
            raise SettingsError(
                f"The channel name {self.channel!r} cannot be used.", hint="Use A or layer.channel."
            )
        if len(self.channel.encode()) > MAX_CHANNEL_BYTES:
            raise SettingsError(
                f"The channel name has {len(self.channel)} letters; an EXR takes {MAX_CHANNEL_BYTES}.",
                hint="Use A or layer.channel.",
            )

    def id(self, part: Part) -> str:
        """The address of all settings of one part; equal settings have equal addresses."""
        return address_of("settings", part, cast(Ingredient, _values_of(self, part)))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` makes an equal object of them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Make settings from the values of `to_json`. A missing setting gets its default.

        Raises:
            SettingsError: a setting is unknown, of the wrong type or out of its range.
        """
        plain = {name: value for name, value in values.items() if name not in _GONE}
        finish = plain.pop("finish", {})
        region = plain.pop("region", None)
        if not isinstance(finish, Mapping):
            raise SettingsError(f"The setting finish cannot be {finish!r}.", hint="It holds values by name.")
        finish = dict(finish)
        if "enabled" in finish and "edges" not in finish:  # a shot of version 0.1
            finish["edges"] = "guided" if finish.pop("enabled") else "off"
        try:
            return cls(
                **_checked(cls, plain),
                finish=FinishSettings(**_checked(FinishSettings, finish)),
                region=_region_of(region),
            )
        except TypeError as error:
            raise SettingsError(f"The settings cannot be read: {error}.") from error


@dataclass(frozen=True)
class SettingHelp:
    """One setting with its explanation for people."""

    name: str
    default: Any
    part: Part
    reason: str


def describe_settings() -> tuple[SettingHelp, ...]:
    """Every setting with its default, its part and the reason for the default."""
    described: list[SettingHelp] = []
    for owner, prefix in ((Settings, ""), (FinishSettings, "finish.")):
        for one in dataclasses.fields(owner):
            if one.name != "finish":
                described.append(
                    SettingHelp(prefix + one.name, one.default, one.metadata["part"], one.metadata["reason"])
                )
    return tuple(described)


def settings_hint() -> str:
    """The names of all settings, in a sentence."""
    return f"Settings are: {', '.join(sorted(one.name for one in describe_settings()))}."


_IN_ADDRESSES: tuple[Part, ...] = ("picture", "memory", "identity")


def shown_settings(settings: Settings) -> dict[str, str]:
    """The settings that probabilities depend on, as people write them: `{"memory_cap": "20", ...}`."""
    return {
        one.name: shown_value(getattr(settings, one.name))
        for one in dataclasses.fields(settings)
        if one.metadata["part"] in _IN_ADDRESSES
    }


def shown_value(value: object) -> str:
    """A setting's value as people write it.

    >>> shown_value(None), shown_value(True), shown_value(Window(8, 0, 64, 32))
    ('none', 'true', '8,0,64,32')
    """
    if isinstance(value, Window):
        return f"{value.x},{value.y},{value.width},{value.height}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def flat_settings(settings: Settings) -> dict[str, Any]:
    """All settings as plain values, by the names of `describe_settings`."""
    values = settings.to_json()
    finish = values.pop("finish")
    region = settings.region
    values["region"] = None if region is None else [region.x, region.y, region.width, region.height]
    return {**values, **{f"finish.{name}": value for name, value in finish.items()}}


def changed_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """`settings` with some values changed. SettingsError where one is bad."""
    values = settings.to_json()
    for name, value in changes.items():
        part, dot, inner = name.partition(".")
        if dot and part == "finish":
            values["finish"][inner] = value
        elif name == "region" and value is not None:
            if not isinstance(value, list) or len(value) != 4 or not all(type(one) is int for one in value):
                raise SettingsError("The region must be [x, y, width, height] in whole pixels.")
            values[name] = dataclasses.asdict(Window(*value))
        elif name == "finish":
            raise SettingsError(
                "Set the settings of finishing one by one.", hint="For example finish.radius."
            )
        else:
            values[name] = value
    return Settings.from_json(values)


def as_kept(wanted: Settings, before: Settings) -> Settings:
    """Settings that a shot is given later: a precision of `auto` leaves it the one that was chosen for it.

    Args:
        before: the shot's own.
    """
    return replace(wanted, precision=before.precision) if wanted.precision == "auto" else wanted


def _values_of(settings: Settings, part: Part) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for one in dataclasses.fields(settings):
        if one.metadata["part"] == part:
            value = getattr(settings, one.name)
            is_group = isinstance(value, (FinishSettings, Window))
            values[one.name] = dataclasses.asdict(value) if is_group else value
    return values


def _region_of(value: object) -> Window | None:
    if value is None:
        return None
    sides = [one.name for one in dataclasses.fields(Window)]
    if not isinstance(value, Mapping) or set(value) != set(sides):
        raise SettingsError(f"The setting region cannot be {value!r}.", hint=_REGION_HINT)
    if any(type(value[side]) is not int for side in sides):
        raise SettingsError("The setting region does not hold whole numbers.", hint=_REGION_HINT)
    return Window(**{str(side): value[side] for side in sides})


def _checked(owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` if each names a setting of `owner` and has the type of its default."""
    fields = {one.name: one for one in dataclasses.fields(owner)}
    for name, value in values.items():
        if name not in fields:
            prefix = "finish." if owner is FinishSettings else ""
            raise SettingsError(f"There is no setting {prefix + name!r}.", hint=settings_hint())
        default = fields[name].default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        allowed: tuple[type, ...] = (str, type(None)) if default is None else (type(default),)
        if type(value) not in allowed:
            raise SettingsError(f"The setting {name} cannot be {value!r}.")
    return dict(values)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise SettingsError(f"The setting {name} is {value}.", hint=f"Give a value from {low} to {high}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"The setting {name} is {value!r}.", hint=f"Use one of {', '.join(allowed)}.")
