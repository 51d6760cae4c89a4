"""The key frames of a Roto, on which an artist drew or corrected the mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nuke
from stm_nuke import fingerprint
from stm_nuke.errors import KeyframeError

ROTO_CLASSES = ("Roto", "RotoPaint")
_POINTS = (
    *("center", "leftTangent", "rightTangent"),
    *("featherCenter", "featherLeftTangent", "featherRightTangent"),
)
_TRANSFORMS = ("getTranslationKeyTimes", "getRotationKeyTimes", "getScaleKeyTimes", "getTransformKeyTimes")


def roto_above(source: nuke.Node) -> nuke.Node:
    """The nearest Roto or RotoPaint above a mask. KeyframeError where there is none."""
    for node in (source, *fingerprint.depends_on(source)):
        if node.Class() in ROTO_CLASSES:
            return node
    raise KeyframeError(
        f"There is no Roto above {source.fullName()}.", hint="Connect a Roto or RotoPaint to the mask input."
    )


def keyed_frames(roto: nuke.Node, view: str) -> list[int]:
    """The whole frames on which a shape, a stroke or a layer of a Roto, its transform, or an attribute of it
    (opacity, lifetime) has a key."""
    curves: Any = roto["curves"]
    return sorted({int(time) for time in _times_of(curves.rootLayer, view) if time == int(time)})


def _times_of(element: Any, view: str) -> Iterator[float]:
    transform = element.getTransform()
    for name in _TRANSFORMS:
        yield from getattr(transform, name)(view)
    attributes = element.getAttributes()
    for index in range(len(attributes)):
        for key in range(attributes.getNumberOfKeys(attributes.getName(index), view)):
            yield attributes.getKeyTime(index, key, view)
    for part in element:
        if hasattr(part, "getTransform"):  # a layer, a shape or a stroke
            yield from _times_of(part, view)
        elif hasattr(part, "center"):  # a point of a shape
            for name in _POINTS:
                yield from getattr(part, name).getControlPointKeyTimes(view)
        else:  # a point of a stroke
            yield from part.getControlPointKeyTimes(view)
