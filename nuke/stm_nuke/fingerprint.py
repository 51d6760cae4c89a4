"""A fingerprint of everything above a node, from knobs and files, without rendering.

Equal fingerprints mean equal pixels. Different fingerprints mean that pixels may have changed; rendering them
and comparing the content decides.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from typing import cast

import nuke
from stm_nuke.releases import OCIO_CONFIG_KNOBS

PRINT_LETTERS = 32
_INPUTS_OF_ALL_KINDS = nuke.INPUTS | nuke.HIDDEN_INPUTS | nuke.EXPRESSIONS | nuke.LINKINPUTS

_NOT_PICTURE = frozenset(
    [
        "name",
        "xpos",
        "ypos",
        "selected",
        "label",
        "note_font",
        "note_font_size",
        "note_font_color",
        "tile_color",
        "gl_color",
        "hide_input",
        "postage_stamp",
        "postage_stamp_frame",
        "bookmark",
        "indicators",
        "icon",
        "help",
        "panel",
        "onCreate",
        "onDestroy",
        "knobChanged",
        "updateUI",
        "autolabel",
        "beforeRender",
        "beforeFrameRender",
        "afterFrameRender",
        "afterRender",
        "renderProgress",
        "dope_sheet",
        "window",
        "cached",
        "process_file_contents",
        "reload",
        "localizationPolicy",
        "updateLocalization",
        "auto_reload",
        "version",
    ]
)
"""Knobs that every node has and that do not change its picture."""
_NOT_PICTURE_CLASSES = frozenset(("Text_Knob", "PyScript_Knob", "Tab_Knob"))
_ROOT_KNOBS = (
    "format",
    "colorManagement",
    *OCIO_CONFIG_KNOBS,
    "customOCIOConfigPath",
    "workingSpaceLUT",
    "views",
    "fps",
)
_FRAME_IN_NAME = re.compile(r"#+|%0?\d*d")


class TookTooLong(Exception):
    """The graph and its folders could not be read in the given time."""


def fingerprint_of(node: nuke.Node | None, seconds: float | None = None) -> str:
    """The fingerprint of everything that the picture of `node` is made from; None counts as nothing.

    Args:
        seconds: the most time to spend; None: no limit.

    Raises:
        TookTooLong: the time was not enough.
    """
    found = hashlib.sha256()
    root = nuke.root()
    for name in _ROOT_KNOBS:
        knob = root.knob(name)
        if knob is not None:
            found.update(f"root {name} {knob.toScript()}\n".encode())
    if node is not None:
        end = None if seconds is None else time.monotonic() + seconds
        for line in _lines(node):
            found.update(line.encode())
            if end is not None and time.monotonic() > end:
                raise TookTooLong
    return found.hexdigest()[:PRINT_LETTERS]


def _lines(node: nuke.Node) -> Iterator[str]:
    """The lines of `node` and of all nodes that it depends on. Nodes have numbers instead of names.

    The walk leaves a Group through its Input nodes, as Nuke does not report their connections.
    """
    numbers = {node.fullName(): 0}
    waiting = [node]

    def number_of(other: nuke.Node) -> int:
        name = other.fullName()
        if name not in numbers:
            numbers[name] = len(numbers)
            waiting.append(other)
        return numbers[name]

    for one in waiting:  # grows during the loop
        yield f"node {one.Class()}\n"
        for knob_name, knob in sorted(one.knobs().items()):
            if knob_name not in _NOT_PICTURE and knob.Class() not in _NOT_PICTURE_CLASSES:
                yield f"{knob_name} {_value_of(knob)}\n"
                if knob.Class() == "File_Knob":
                    for path in _paths(one, cast(nuke.File_Knob, knob)):
                        yield from _files(path)
        if isinstance(one, nuke.Group):
            for inside in sorted(one.nodes(), key=lambda found: found.name()):
                yield f"holds {number_of(inside)}\n"
        for number in range(one.inputs()):
            above = one.input(number)
            yield f"input {number} {None if above is None else number_of(above)}\n"
        for above in sorted(_needs(one), key=lambda found: found.fullName()):
            yield f"needs {number_of(above)}\n"


def _needs(node: nuke.Node) -> list[nuke.Node]:
    """The nodes that a node's picture is made from; for an Input node, the node connected to its group."""
    found = list(node.dependencies(_INPUTS_OF_ALL_KINDS))
    if node.Class() == "Input":
        number = node.knob("number")
        above = node.parent().input(0 if number is None else int(number.value()))
        if above is not None:
            found.append(above)
    return found


def _value_of(knob: nuke.Knob) -> str:
    """A knob's text in a script. Some kinds have no such text: then its value."""
    try:
        return str(knob.toScript())
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return repr(knob.value())


def _paths(node: nuke.Node, knob: nuke.File_Knob) -> list[str]:
    """The file names of a knob, with their frame patterns: TCL is evaluated, one name for each view."""
    text = str(knob.value() or "")
    if "[" in text:
        try:
            named = nuke.filename(node) if knob.name() == "file" else None
            text = str(named or knob.getEvaluatedValue() or "")
        except (RuntimeError, ValueError):
            return [text]
    if not text:
        return []
    text = str(nuke.filenameFilter(text) or text)  # type: ignore[no-untyped-call]
    if not os.path.isabs(text):
        project = nuke.root().knob("project_directory")
        base = None if project is None else cast(nuke.File_Knob, project).getEvaluatedValue()
        text = os.path.join(str(base or ""), text)
    if "%V" not in text and "%v" not in text:
        return [text]
    return [text.replace("%V", view).replace("%v", view[:1]) for view in nuke.views()]


def _files(text: str) -> Iterator[str]:
    """Sizes and times of the files of a sequence."""
    folder, name = os.path.split(text)
    if not folder or _FRAME_IN_NAME.search(folder):
        yield f"files {text}\n"
        return
    parts = _FRAME_IN_NAME.split(name)
    pattern = re.compile(".+".join(re.escape(part) for part in parts))
    try:
        with os.scandir(folder) as entries:
            found = [(one.name, one.stat()) for one in entries if pattern.fullmatch(one.name)]
    except OSError:
        yield f"no files {text}\n"
        return
    for file_name, facts in sorted(found, key=lambda one: one[0]):
        yield f"file {file_name} {facts.st_size} {facts.st_mtime_ns}\n"


def depends_on(node: nuke.Node) -> list[nuke.Node]:
    """Every node above `node`, outside its group too, each once, and all that is in the groups among them."""
    found: dict[str, nuke.Node] = {}
    waiting = [node]
    while waiting:
        last = waiting.pop()
        inside = last.nodes() if isinstance(last, nuke.Group) else []
        for one in (*_needs(last), *inside):
            if one.fullName() not in found:
                found[one.fullName()] = one
                waiting.append(one)
    return cast("list[nuke.Node]", list(found.values()))
