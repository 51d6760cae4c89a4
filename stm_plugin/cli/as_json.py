"""What commands print with `--json`; docs/schemas has a schema for each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_plugin.planning.values import State

if TYPE_CHECKING:
    from stm_plugin.shot.export import Written
    from stm_plugin.shot.propagate import Summary
    from stm_plugin.shot.shot import PropagationSummary, Shot, ShotStatus

Json = dict[str, Any]


def print_json(found: Mapping[str, Any]) -> None:
    """One object, on one line of standard output."""
    print(json.dumps(found), flush=True)


def status_json(shot: Shot, found: ShotStatus) -> Json:
    """`stm shot status --json`."""
    from stm_plugin.protocol import ranges_of

    states = {state.value: [frame for frame, one in found.states.items() if one is state] for state in State}
    return {
        "shot": str(shot.folder),
        "frames": [min(found.states), max(found.states)],
        "objects": list(found.objects),
        "keys": [
            {"frame": key.frame, "objects": list(key.objects), "empty": list(key.empty)} for key in found.keys
        ],
        "states": {name: ranges_of(frames) for name, frames in states.items()},
        "to_run": [
            {"frames": [one.first, one.last], "state": one.state.value, "why": one.why, "text": str(one)}
            for one in found.dirty
        ],
        "network_frames": found.network_frames,
        "plate_missing": ranges_of(found.plate_missing),
        "bytes": asdict(found.size),
        "held_by": None if found.holder is None else str(found.holder),
        "adapted": None if found.adapted is None else found.adapted.id,
        "qualities": [
            {"frame": one.frame, "confidence": one.confidence, "agreement": one.agreement}
            for one in found.qualities.values()
        ],
        "advice": list(found.advice),
        "next_key": None if found.next_key is None else asdict(found.next_key),
    }


def propagation_json(shot: Path, done: PropagationSummary) -> Json:
    """`stm shot propagate --json`."""
    return {
        "shot": str(shot),
        "frames": done.frames,
        "computed": done.computed,
        "reused": done.reused,
        "seconds": round(done.seconds, 3),
        "device": done.device,
        "memory": done.forecast,
        "notices": list(done.notices),
    }


def mattes_json(files: Iterable[Written]) -> list[Json]:
    """Matte files, and whether each had to be written."""
    return [{"frame": one.frame, "file": str(one.path), "written": one.written} for one in files]


def propagate_json(done: Summary, overlays: Iterable[str], unreached: Iterable[int]) -> Json:
    """`stm propagate --json`."""
    from stm_plugin.protocol import ranges_of

    return {
        **propagation_json(done.shot, done.propagation),
        "mattes": mattes_json(done.files),
        "overlays": list(overlays),
        "unreached": ranges_of([*unreached]),
    }


def export_json(shot: Path, files: Iterable[Written]) -> Json:
    """`stm shot export --json`."""
    return {"shot": str(shot), "mattes": mattes_json(files)}
