"""Shapes as JSON. `docs/shapes.schema.json` describes it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from stm_plugin.errors import MatteError
from stm_plugin.shapes.values import Points, PointTrack, Shape, ShapeSet
from stm_plugin.windows import Window

VERSION = 1
_DIGITS = 5


def shapes_to_json(shapes: ShapeSet) -> dict[str, Any]:
    """A value for `json.dumps`. Positions are plate pixels, y down, as in the engine."""
    display = shapes.display_window
    return {
        "format": "stm-shapes",
        "version": VERSION,
        "origin": "upper left corner of pixel (0, 0), y down",
        "interpolation": "linear",
        "display_window": [display.x, display.y, display.width, display.height],
        "pixel_aspect": shapes.pixel_aspect,
        "frames": list(shapes.frames),
        "left_out": shapes.left_out,
        "shapes": [
            {
                "name": shape.name,
                "object": shape.object,
                "hole": shape.hole,
                "first": shape.first,
                "last": shape.last,
                "area": round(shape.area, 2),
                "points": [_point(point) for point in shape.points],
            }
            for shape in shapes.shapes
        ],
    }


def shapes_from_json(value: Any) -> ShapeSet:
    """The shapes of a value from `json.loads`. MatteError where it is invalid, or of a newer version."""
    if not isinstance(value, dict) or value.get("format") != "stm-shapes":
        raise MatteError(
            "The file holds no shapes.", hint="Give a file that `stm shot shapes --format json` wrote."
        )
    if value.get("version") != VERSION:
        raise MatteError(
            f"The shapes are of version {value.get('version')}; this program reads {VERSION}.",
            hint="Use a newer version of the program.",
        )
    try:
        return ShapeSet(
            tuple(
                Shape(
                    str(one["name"]),
                    str(one["object"]),
                    bool(one["hole"]),
                    int(one["first"]),
                    int(one["last"]),
                    tuple(_read_point(point) for point in one["points"]),
                    float(one["area"]),
                )
                for one in value["shapes"]
            ),
            tuple(int(frame) for frame in value["frames"]),
            Window(*(int(number) for number in value["display_window"])),
            float(value["pixel_aspect"]),
            int(value["left_out"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MatteError("The shapes in the file are damaged.", hint="Write them again.") from error


def shapes_json_text(shapes: ShapeSet) -> str:
    return json.dumps(shapes_to_json(shapes), separators=(",", ":"))


def _point(point: PointTrack) -> dict[str, Any]:
    values = np.stack([point.centre, point.incoming, point.outgoing, point.feather], axis=1)
    return {
        "corner": point.corner,
        "keys": [
            {"frame": frame, "centre": row[0], "in": row[1], "out": row[2], "feather": row[3]}
            for frame, row in zip(point.frames, np.round(values, _DIGITS).tolist(), strict=True)
        ],
    }


def _read_point(value: dict[str, Any]) -> PointTrack:
    keys = value["keys"]

    def column(name: str) -> Points:
        return np.array([key[name] for key in keys], dtype=np.float64).reshape(len(keys), 2)

    frames = tuple(int(key["frame"]) for key in keys)
    return PointTrack(
        frames, column("centre"), column("in"), column("out"), column("feather"), bool(value["corner"])
    )
