"""Tables for people: confidence by span, and the settings of a shot."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from stm_plugin.settings import Settings, describe_settings, shown_value

if TYPE_CHECKING:
    from stm_plugin.planning.quality import Quality

_WORST = 3

MEANINGS: Mapping[str, str] = {
    "memory_rule": "which past frames are kept in memory: first, previous, first+previous, every:N",
    "memory_cap": "stored frames besides the keys, at most",
    "working_size": "short side in pixels that the network sees",
    "region": "part of the plate that is propagated: X,Y,WIDTH,HEIGHT in plate pixels (y down), or none",
    "precision": "of the convolutions: float32, bfloat16, float16; auto: chosen for a new shot, then kept",
    "weights": "a shipped name or a file",
    "adapt": "use the adaptation to the keys (stm adapt)",
    "colour_space": "of the plate; none finds it from the file",
    "ocio_config": "an OCIO config file; none takes $OCIO or the built-in one",
    "channel": "of the matte in its file: A or layer.channel",
    "cryptomatte": "write a Cryptomatte layer of the objects too",
    "device": "auto, cpu, cuda, cuda:N, mps",
    "ram_budget": "bytes of features kept in memory",
    "disk_budget": "bytes of features kept in the shot's memory/ folder",
    "plate_budget": "bytes of plate pixels that a host pushed",
    "confidence": "write the network's confidence in each pixel too: stm.confidence",
    "foreground": "write the plate's colours without the background too: layer fg",
    "finish.edges": "learned: by a network; guided: by a filter; off: enlarged",
    "finish.edge_weights": "of learned edges: a shipped name or a file",
    "finish.width": "of learned edges: below 1 narrower, above 1 wider",
    "finish.radius": "of the edge filter, in working pixels",
    "finish.epsilon": "contrast that counts as an edge, squared",
    "finish.sharpness": "how steep an edge becomes",
    "finish.sure": "probabilities this near 0 or 1 become 0 or 1",
}
"""The meaning of settings. A setting without one is shown with the reason for its default."""


def settings_table(settings: Settings) -> Table:
    """Every setting with its value, its default and its meaning."""
    table = Table("setting", "value", "default", "meaning", box=None, pad_edge=False)
    for one in describe_settings():
        value: object = settings
        for part in one.name.split("."):
            value = getattr(value, part)
        changed = "" if value == one.default else shown_value(one.default)
        table.add_row(one.name, shown_value(value), changed, MEANINGS.get(one.name, one.reason))
    return table


def settings_help() -> str:
    """The settings with their defaults and meanings, for a command's help."""
    lines = [
        f"{one.name} ({shown_value(one.default)}): {MEANINGS.get(one.name, one.reason)}"
        for one in describe_settings()
    ]
    return "Settings, with their defaults:\n\n" + "\n\n".join(lines)


def confidence_lines(qualities: Mapping[int, Quality], keys: Iterable[int]) -> list[str]:
    """Confidence of each span between keys, and the worst frames, a line each."""
    marks = sorted(keys)
    spans: dict[int, list[Quality]] = {}
    for frame in sorted(qualities):
        if frame not in marks:
            spans.setdefault(bisect_left(marks, frame), []).append(qualities[frame])
    lines = []
    for span in spans.values():
        mean = sum(one.confidence for one in span) / len(span)
        worst = min(span, key=_trust)
        first, last = span[0].frame, span[-1].frame
        frames = f"frame {first}" if first == last else f"frames {first}-{last}"
        lines.append(f"{frames}: confidence {mean:.2f}, least on {worst.frame} ({_said(worst)})")
    ordered = sorted((one for span in spans.values() for one in span), key=_trust)
    if len(ordered) > 1:
        shown = ", ".join(f"{one.frame} ({_said(one)})" for one in ordered[:_WORST])
        lines.append(f"worst frames: {shown}")
    return lines


def _trust(quality: Quality) -> float:
    """The trust in a frame: the lesser of confidence and agreement."""
    return quality.confidence if quality.agreement is None else min(quality.confidence, quality.agreement)


def _said(quality: Quality) -> str:
    if quality.agreement is None:
        return f"{quality.confidence:.2f}"
    return f"{quality.confidence:.2f}, passes agree {quality.agreement:.2f}"
