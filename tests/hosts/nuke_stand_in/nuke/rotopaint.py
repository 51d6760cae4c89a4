"""The stand-in's `nuke.rotopaint`: only what Foundry documents of shapes, layers and their points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from . import _roto
from ._roto import CurveKnob, Times


class CVec2:
    def __init__(self, x: float = 0.0, y: float = 0.0) -> None:
        self.x, self.y = float(x), float(y)


class AnimControlPoint:
    """A position over time."""

    def __init__(self) -> None:
        self.keys: dict[float, tuple[float, float]] = {}

    def addPositionKey(self, time: float, positionOrDim: CVec2, view: str) -> None:
        assert view == "main"
        self.keys[time] = (positionOrDim.x, positionOrDim.y)

    def getControlPointKeyTimes(self, view: str = "main") -> list[float]:
        return sorted(self.keys)


class ShapeControlPoint:
    def __init__(self) -> None:
        self.center, self.featherCenter = AnimControlPoint(), AnimControlPoint()
        self.leftTangent, self.rightTangent = AnimControlPoint(), AnimControlPoint()
        self.featherLeftTangent, self.featherRightTangent = AnimControlPoint(), AnimControlPoint()


class AnimAttributes:
    """Named values. The names are Nuke's."""

    kRedAttribute: ClassVar[str] = "r"
    kGreenAttribute: ClassVar[str] = "g"
    kBlueAttribute: ClassVar[str] = "b"
    kAlphaAttribute: ClassVar[str] = "a"
    kLifeTimeTypeAttribute: ClassVar[str] = "ltt"
    kLifeTimeNAttribute: ClassVar[str] = "ltn"
    kLifeTimeMAttribute: ClassVar[str] = "ltm"

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def set(self, time: float, attributeIndexOrName: str, value: float, view: str) -> None:
        assert view == "main"
        self._values[attributeIndexOrName] = float(value)

    def __len__(self) -> int:
        return len(self._values)

    def getName(self, index: int) -> str:
        return list(self._values)[index]

    def getNumberOfKeys(self, attr: str, view: str) -> int:
        return 0

    def getValue(self, time: float, indexOrName: str, view: str = "main") -> float:
        return self._values[indexOrName]


class Shape:
    """A shape of Beziers. The stand-in stores it and does not draw it."""

    def __init__(self, curves: CurveKnob) -> None:
        assert isinstance(curves, CurveKnob)
        self.name = ""
        self._points: list[ShapeControlPoint] = []
        self._attributes = AnimAttributes()

    def getAttributes(self) -> AnimAttributes:
        return self._attributes

    def getTransform(self) -> Times:
        return Times()

    def append(self, shapeControlPoint: ShapeControlPoint) -> None:
        self._points.append(shapeControlPoint)

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[ShapeControlPoint]:
        return iter(self._points)

    def __getitem__(self, index: int) -> ShapeControlPoint:
        return self._points[index]


class Layer(_roto.Layer):
    """A layer of shapes."""

    def __init__(self, curves: CurveKnob) -> None:
        super().__init__()
        assert isinstance(curves, CurveKnob)
        self.name = ""
