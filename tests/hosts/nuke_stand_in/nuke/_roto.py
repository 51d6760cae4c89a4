"""Roto and RotoPaint: shapes and strokes that are boxes, with keys like those of real curves."""

# Names are Nuke's own.

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import _knobs as k
from ._text import quote as quoted

Box = tuple[int, int, int, int]
"""x, y (down), right, bottom."""


@dataclass
class Times:
    """The times of the keys of a point or a transform."""

    times: list[float] = field(default_factory=list)

    def getControlPointKeyTimes(self, view: str = "") -> list[float]:
        return self.times

    def __getattr__(self, name: str) -> Any:
        if name.startswith("get") and name.endswith("KeyTimes"):
            return lambda view="": self.times if name == "getTransformKeyTimes" else []
        raise AttributeError(name)


@dataclass
class Attributes:
    """Named values with the times of their keys, as Foundry documents `AnimAttributes`."""

    times: dict[str, list[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times)

    def getName(self, index: int) -> str:
        return list(self.times)[index]

    def getNumberOfKeys(self, attr: str, view: str) -> int:
        return len(self.times[attr])

    def getKeyTime(self, index: int, keyIndexOrHash: int, view: str) -> float:
        return self.times[self.getName(index)][keyIndexOrHash]


@dataclass
class Point:
    """A point of a shape; all of its parts are keyed together."""

    center: Times

    def __getattr__(self, name: str) -> Any:
        if name.endswith(("Tangent", "Center")):
            return self.center
        raise AttributeError(name)


@dataclass
class Shape:
    """A box that jumps from key to key."""

    boxes: dict[int, Box]
    transform: Times = field(default_factory=Times)
    attributes: Attributes = field(default_factory=lambda: Attributes({"opc": []}))

    def getTransform(self) -> Times:
        return self.transform

    def getAttributes(self) -> Attributes:
        return self.attributes

    def __iter__(self) -> Iterator[Point]:
        return iter([Point(Times([float(one) for one in self.boxes]))])


@dataclass
class Stroke:
    """A box of paint that lives on one frame: 1 paints, 0 erases."""

    frame: int
    box: Box
    value: float

    def getTransform(self) -> Times:
        return Times()

    def getAttributes(self) -> Attributes:
        return Attributes()

    def __iter__(self) -> Iterator[Times]:
        return iter([Times([float(self.frame)])])


@dataclass
class Layer:
    """Shapes, strokes and layers."""

    parts: list[Any] = field(default_factory=list)
    transform: Times = field(default_factory=Times)
    attributes: Attributes = field(default_factory=Attributes)

    def getTransform(self) -> Times:
        return self.transform

    def getAttributes(self) -> Attributes:
        return self.attributes

    def append(self, element: Any) -> None:
        self.parts.append(element)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)


class CurveKnob(k.Knob):
    """The knob with the drawn shapes and strokes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rootLayer = Layer()
        self.change_count = 0

    def changed(self) -> None:
        self.change_count += 1

    def _parts(self, layer: Layer | None = None) -> list[Any]:
        """Shapes and strokes, also those in layers."""
        found = []
        for one in (layer or self.rootLayer).parts:
            found += self._parts(one) if isinstance(one, Layer) else [one]
        return found

    def toScript(self, quote: bool = True, context: Any = None) -> str:
        shapes = [one.boxes for one in self._parts() if isinstance(one, Shape)]
        strokes = [[one.frame, one.box, one.value] for one in self._parts() if isinstance(one, Stroke)]
        return quoted(json.dumps([shapes, strokes]))

    def fromScript(self, script: str) -> None:
        drawn, painted = json.loads(script)
        shapes: list[Any] = [Shape({int(frame): tuple(box) for frame, box in one.items()}) for one in drawn]
        strokes = [Stroke(frame, tuple(box), value) for frame, box, value in painted]
        self.rootLayer.parts = [*shapes, *strokes]

    def _is_default(self) -> bool:
        return not self._parts()

    def boxes_at(self, frame: float) -> Iterator[tuple[Box, float]]:
        """The visible boxes of a frame with their values, in drawing order."""
        for one in self._parts():
            if isinstance(one, Shape):
                before = [key for key in one.boxes if key <= frame]
                yield one.boxes[max(before) if before else min(one.boxes)], 1.0
            elif isinstance(one, Stroke) and one.frame == frame:
                yield one.box, one.value
