"""Has anything above a node changed? Answered without rendering, from knobs and files.

The same print means: the same pixels. Another print means only that it is worth looking: whether pixels have
changed is then found by rendering and comparing their content.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import cast

import nuke

PRINT_LETTERS = 32
_INPUTS_OF_ALL_KINDS = nuke.INPUTS | nuke.HIDDEN_INPUTS | nuke.EXPRESSIONS

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
        "lifetimeStart",
        "lifetimeEnd",
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
    "OCIO_config",
    "customOCIOConfigPath",
    "workingSpaceLUT",
    "views",
    "fps",
)
_FRAME_IN_NAME = re.compile(r"#+|%0?\d*d|%[vV]")


def print_of(node: nuke.Node | None) -> str:
    """A print of everything that the picture of `node` is made from; of nothing, for None."""
    found = hashlib.sha256()
    root = nuke.root()
    for name in _ROOT_KNOBS:
        knob = root.knob(name)
        if knob is not None:
            found.update(f"root {name} {knob.toScript()}\n".encode())
    if node is not None:
        for line in _lines(node):
            found.update(line.encode())
    return found.hexdigest()[:PRINT_LETTERS]


def _lines(node: nuke.Node) -> Iterator[str]:
    """What there is to say of `node` and of all that it depends on. Nodes go by number, not by name."""
    numbers = {node.fullName(): 0}
    waiting = [node]

    def number_of(other: nuke.Node) -> int:
        name = other.fullName()
        if name not in numbers:
            numbers[name] = len(numbers)
            waiting.append(other)
        return numbers[name]

    for one in waiting:  # grows while it is walked
        yield f"node {one.Class()}\n"
        for knob_name, knob in sorted(one.knobs().items()):
            if knob_name not in _NOT_PICTURE and knob.Class() not in _NOT_PICTURE_CLASSES:
                yield f"{knob_name} {_value_of(knob)}\n"
                if knob.Class() == "File_Knob":
                    yield from _files(str(knob.value() or ""))
        if isinstance(one, nuke.Group):
            for inside in sorted(one.nodes(), key=lambda found: found.name()):
                yield f"holds {number_of(inside)}\n"
        for number in range(one.inputs()):
            above = one.input(number)
            yield f"input {number} {None if above is None else number_of(above)}\n"
        for above in sorted(one.dependencies(_INPUTS_OF_ALL_KINDS), key=lambda found: found.fullName()):
            yield f"needs {number_of(above)}\n"


def _value_of(knob: nuke.Knob) -> str:
    """A knob as a script has it. Some kinds have no such text: they are told by their value."""
    try:
        return str(knob.toScript())
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return repr(knob.value())


def _files(text: str) -> Iterator[str]:
    """Sizes and times of the files of a sequence, however many there are."""
    folder, name = os.path.split(text)
    if not folder or _FRAME_IN_NAME.search(folder) or "[" in text:
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
    """Every node above `node`, each once, and all that is in the groups among them."""
    found: dict[str, nuke.Node] = {}
    waiting = [node]
    while waiting:
        last = waiting.pop()
        inside = last.nodes() if isinstance(last, nuke.Group) else []
        for one in (*last.dependencies(_INPUTS_OF_ALL_KINDS), *inside):
            if one.fullName() not in found:
                found[one.fullName()] = one
                waiting.append(one)
    return cast("list[nuke.Node]", list(found.values()))
