"""Natron's Roto as a Python script: it makes the node through Natron's documented interface.

Run it in Natron's script editor, or by `NatronRenderer -l hero.py project.ntp`. Natron keys whole shapes, so
a shape has a key on every frame on which one of its points has one. Handles are absolute, in pixels from the
lower left corner of the format, y up, as in Nuke. A hole has colour 0. A later shape is drawn over an earlier
one.
"""

from __future__ import annotations

import ast
import json
from typing import Any

import numpy as np

from stm_plugin.errors import MatteError
from stm_plugin.shapes.nuke import host_points
from stm_plugin.shapes.values import PointTrack, Shape, ShapeSet
from stm_plugin.windows import Window

_PROGRAM = '''

def createInstance(app, group=None):
    """Make the Roto node; called by Natron when the file is loaded as a project script."""
    node = app.createNode("fr.inria.built-in.Roto")
    node.setLabel(NAME)
    roto = node.getRotoContext()
    layers = {}
    for shape in SHAPES:
        if shape["object"] not in layers:
            layers[shape["object"]] = roto.createLayer()
            layers[shape["object"]].setLabel(shape["object"])
        first_key = shape["keys"][0]
        x, y = first_key["points"][0][:2]
        curve = roto.createBezier(x, y, first_key["frame"])
        for point in first_key["points"][1:]:
            curve.addControlPoint(point[0], point[1])
        curve.setCurveFinished(True)
        curve.setScriptName(shape["name"])
        curve.setLabel(shape["name"])
        for key in shape["keys"]:
            for index, point in enumerate(key["points"]):
                curve.setPointAtIndex(index, key["frame"], *point)
            for index, point in enumerate(key["feather"]):
                curve.setFeatherPointAtIndex(index, key["frame"], *point)
        value = 0.0 if shape["hole"] else 1.0
        curve.getColorParam().set(value, value, value)
        active = curve.getActivatedParam()
        active.setValueAtTime(False, shape["first"] - 1)
        active.setValueAtTime(True, shape["first"])
        active.setValueAtTime(True, shape["last"])
        active.setValueAtTime(False, shape["last"] + 1)
        layers[shape["object"]].addItem(curve)
    return node
'''


def natron_script(shapes: ShapeSet, name: str) -> str:
    """The text of the script."""
    data = [_data(shape, shapes.display_window) for shape in shapes.shapes]
    head = '"""Shapes for Natron."""\n\n'
    facts = (
        f"NAME = {json.dumps(name)}\nFRAMES = {list(shapes.frames)}\nPIXEL_ASPECT = {shapes.pixel_aspect!r}\n"
    )
    # JSON differs from Python only in true and false here
    rows = ",\n".join("    " + repr(one) for one in data)
    return f"{head}{facts}SHAPES = [\n{rows},\n]\n{_PROGRAM}"


def _data(shape: Shape, display: Window) -> dict[str, Any]:
    frames = sorted({frame for point in shape.points for frame in point.frames})
    keys = []
    for frame in frames:
        outline = shape.at(frame)
        centre = host_points(outline.centre, display)
        incoming, outgoing = outline.incoming * (1, -1), outline.outgoing * (1, -1)
        feather = centre + outline.feather * (1, -1)
        keys.append(
            {
                "frame": frame,
                "points": np.round(np.hstack([centre, centre + incoming, centre + outgoing]), 5).tolist(),
                "feather": np.round(np.hstack([feather, feather + incoming, feather + outgoing]), 5).tolist(),
            }
        )
    return {
        "name": shape.name,
        "object": shape.object,
        "hole": shape.hole,
        "first": shape.first,
        "last": shape.last,
        "keys": keys,
    }


def read_natron_script(text: str, display: Window) -> ShapeSet:
    """The shapes of a script by `natron_script`; it is parsed, not run. MatteError where it is none."""
    try:
        tree = ast.parse(text)
        values = {
            statement.targets[0].id: ast.literal_eval(statement.value)
            for statement in tree.body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
        shapes = tuple(_shape(one, display) for one in values["SHAPES"])
        return ShapeSet(shapes, tuple(values["FRAMES"]), display, float(values["PIXEL_ASPECT"]))
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError) as error:
        raise MatteError(
            "The text is no script of shapes for Natron.", hint="Write the shapes again."
        ) from error


def _shape(data: dict[str, Any], display: Window) -> Shape:
    frames = tuple(int(key["frame"]) for key in data["keys"])
    outline = np.array([key["points"] for key in data["keys"]])  # (K, n, 6)
    feather = np.array([key["feather"] for key in data["keys"]])
    points = []
    for index in range(outline.shape[1]):
        centre = outline[:, index, 0:2]
        points.append(
            PointTrack(
                frames,
                np.stack([centre[:, 0] + display.x, display.bottom - centre[:, 1]], axis=1),
                (outline[:, index, 2:4] - centre) * (1, -1),
                (outline[:, index, 4:6] - centre) * (1, -1),
                (feather[:, index, 0:2] - centre) * (1, -1),
                False,
            )
        )
    return Shape(data["name"], data["object"], data["hole"], data["first"], data["last"], tuple(points), 0.0)
