"""A Roto node from the shapes that the engine wrote (JSON), by Nuke's public Python interface for Roto.

Positions become pixels of the format: x from its left, y upwards from its bottom. It was never run in Nuke.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nuke
from nuke import rotopaint
from stm_nuke.errors import CacheError

VIEW = "main"
"""The view of shapes: Nuke's default."""
RANGE = 4
"""Lifetime type of a shape: a range of frames."""


def read_shapes(path: Path) -> dict[str, Any]:
    """The shapes of a file. CacheError where it is not a file of shapes."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != "stm-shapes" or value["version"] != 1:
            raise ValueError("not shapes of version 1")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"The shapes in {path} cannot be read: {error}.", hint="Make them again.") from error
    return dict(value)


def make_roto(shapes: dict[str, Any], name: str) -> nuke.Node:
    """A new Roto node: a layer for each object with its shapes, the top one first."""
    node = nuke.nodes.Roto(name=name, output="alpha", cliptype="no clip")
    curves: Any = node["curves"]
    layers: dict[str, Any] = {}
    for shape in reversed(shapes["shapes"]):
        owner = shape["object"]
        if owner not in layers:
            layers[owner] = rotopaint.Layer(curves)
            layers[owner].name = owner
            curves.rootLayer.append(layers[owner])
        layers[owner].append(_shape(curves, shape, shapes["display_window"]))
    curves.changed()
    return node


def _shape(curves: Any, shape: dict[str, Any], display: list[int]) -> Any:
    made = rotopaint.Shape(curves)
    made.name = shape["name"]
    for point in shape["points"]:
        made.append(_point(point["keys"], display))
    attributes = made.getAttributes()
    first = shape["first"]
    colour = 0.0 if shape["hole"] else 1.0
    for attribute in (
        attributes.kRedAttribute,
        attributes.kGreenAttribute,
        attributes.kBlueAttribute,
        attributes.kAlphaAttribute,
    ):
        attributes.set(first, attribute, colour, VIEW)
    attributes.set(first, attributes.kLifeTimeTypeAttribute, RANGE, VIEW)
    attributes.set(first, attributes.kLifeTimeNAttribute, first, VIEW)
    attributes.set(first, attributes.kLifeTimeMAttribute, shape["last"], VIEW)
    return made


def _point(keys: list[dict[str, Any]], display: list[int]) -> Any:
    made = rotopaint.ShapeControlPoint()
    left, bottom = display[0], display[1] + display[3]
    for key in keys:
        x, y = key["centre"]
        incoming, outgoing, feather = (_upwards(key[part]) for part in ("in", "out", "feather"))
        frame = key["frame"]
        made.center.addPositionKey(frame, rotopaint.CVec2(x - left, bottom - y), VIEW)
        made.leftTangent.addPositionKey(frame, incoming, VIEW)
        made.rightTangent.addPositionKey(frame, outgoing, VIEW)
        made.featherCenter.addPositionKey(frame, feather, VIEW)
        made.featherLeftTangent.addPositionKey(frame, incoming, VIEW)
        made.featherRightTangent.addPositionKey(frame, outgoing, VIEW)
    return made


def _upwards(offset: list[float]) -> Any:
    return rotopaint.CVec2(offset[0], -offset[1])
