"""The replies of the server: the engine's values as the protocol's JSON, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stm_plugin.configuration import OPTIONS, Configuration, configuration
from stm_plugin.errors import ConfigurationError
from stm_plugin.protocol import PlanRequest, RequestError, ranges_of
from stm_plugin.server.backend import Information, KeyState, NoMatte, Reason, ShotBackend


def information_json(found: Information) -> dict[str, Any]:
    """The reply to `info`."""
    return {
        "python": found.python,
        "torch": found.torch,
        "devices": [dict(one) for one in found.devices],
        "weights": [dict(one) for one in found.weights],
        "settings": {name: dict(one) for name, one in found.settings.items()},
    }


def configured_json() -> dict[str, Any]:
    """What hello says of the configuration: locked settings, those of new shots, and where caches belong.

    A configuration that cannot be used locks nothing here; opening a shot names the error.
    """
    try:
        layers = configuration()
    except ConfigurationError:
        layers = Configuration()
    return {
        "locked": locked_json(layers),
        "configured": layers.taken_over(),
        "cache_folder": layers["cache_folder"],
    }


def locked_json(layers: Configuration) -> dict[str, Any]:
    """The locked settings of a shot: the value, and who locked it."""
    return {
        name: {"value": one.value, "text": one.why_locked}
        for name, one in layers.locked.items()
        if name not in OPTIONS
    }


def no_matte(frame: int, found: NoMatte) -> RequestError:
    """The error for a missing matte: why, and what to do."""
    hints = {
        "stale": "Propagate again.",
        "missing": "Propagate first.",
        "plate_missing": "Send the plate frame to the engine.",
        "outside": "Stay inside the range of the shot.",
    }
    return RequestError(
        "matte_missing",
        f"There is no matte: {found.reason}.",
        frame=frame,
        hint=hints[found.state],
        details={"state": found.state, "reason": found.reason},
    )


def keys_json(keys: Sequence[KeyState]) -> list[dict[str, Any]]:
    """Keys as they stand in replies."""
    return [
        {
            "frame": key.frame,
            "objects": [{"name": name, "content": content} for name, content in key.objects.items()],
            "digest": key.digest,
        }
        for key in keys
    ]


def reasons_json(reasons: Sequence[Reason]) -> list[dict[str, Any]]:
    """Frames and the reasons why they are not done."""
    return [{"frames": ranges_of(one.frames), "text": one.text} for one in reasons]


def plan_json(backend: ShotBackend, request: PlanRequest) -> dict[str, Any]:
    """The reply to `plan`."""
    forecast = backend.forecast(request.frames, request.direction)
    return {
        "compute": forecast.compute,
        "frames": ranges_of(forecast.frames),
        "reasons": reasons_json(forecast.reasons),
        "plate_needed": ranges_of(forecast.plate_needed),
        "memory": forecast.memory,
        "text": forecast.text,
    }


def range_words(frames: Sequence[int]) -> str:
    """Frames for people: 1001-1010, 1012 and more."""
    most = 6
    ranges = [str(a) if a == b else f"{a}-{b}" for a, b in ranges_of(frames)]
    return ", ".join(ranges[:most]) + (" and more" if len(ranges) > most else "")


def state_words(done: Sequence[int], stale: Sequence[int], missing: Sequence[int]) -> str:
    """The state of a shot in one line."""
    parts = [f"{len(done)} frames done" if len(done) != 1 else "1 frame done"]
    if stale:
        parts.append(f"{len(stale)} stale: {range_words(stale)}")
    if missing:
        parts.append(f"{len(missing)} missing: {range_words(missing)}")
    return "; ".join(parts)
