"""A stand-in for Foundry's `nuke` module: a small node graph that renders through OpenImageIO.

It offers nothing that the published stubs do not have, with the same signatures; a test compares the two.
What is private here (`_host`) is for tests.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _script
from ._graph import (
    EXPRESSIONS,
    HIDDEN_INPUTS,
    INPUTS,
    LINKINPUTS,
    Format,
    FrameRange,
    Group,
    Info,
    Node,
    Root,
    delete_node,
    every_node,
    new_node,
)
from ._host import Host
from ._host import host as _host
from ._knobs import (
    DISABLED,
    INVISIBLE,
    NO_ANIMATION,
    NO_UNDO,
    STARTLINE,
    AColor_Knob,
    Array_Knob,
    BBox_Knob,
    Boolean_Knob,
    Channel_Knob,
    Double_Knob,
    Enumeration_Knob,
    EvalString_Knob,
    File_Knob,
    Format_Knob,
    Int_Knob,
    Knob,
    Link_Knob,
    Multiline_Eval_String_Knob,
    PyScript_Knob,
    Script_Knob,
    String_Knob,
    Tab_Knob,
    Text_Knob,
    Unsigned_Knob,
)
from ._pixels import write as _write
from ._text import without_tcl

__all__ = [
    "DISABLED",
    "EXE_PATH",
    "EXPRESSIONS",
    "GUI",
    "HIDDEN_INPUTS",
    "INPUTS",
    "INVISIBLE",
    "LINKINPUTS",
    "NO_ANIMATION",
    "NO_UNDO",
    "NUKE_VERSION_STRING",
    "STARTLINE",
    "AColor_Knob",
    "Array_Knob",
    "BBox_Knob",
    "Boolean_Knob",
    "CancelledError",
    "Channel_Knob",
    "Double_Knob",
    "Enumeration_Knob",
    "EvalString_Knob",
    "File_Knob",
    "Format",
    "Format_Knob",
    "FrameRange",
    "Group",
    "Info",
    "Int_Knob",
    "Knob",
    "Layer",
    "Link_Knob",
    "Menu",
    "MenuItem",
    "Multiline_Eval_String_Knob",
    "Node",
    "NodeConstructor",
    "Nodes",
    "ProgressTask",
    "PyScript_Knob",
    "Root",
    "Script_Knob",
    "String_Knob",
    "Tab_Knob",
    "Text_Knob",
    "Undo",
    "Unsigned_Knob",
    "ViewerWindow",
    "activeViewer",
    "addBeforeRender",
    "addFilenameFilter",
    "addKnobChanged",
    "addOnCreate",
    "addOnScriptClose",
    "addOnScriptLoad",
    "addOnScriptSave",
    "addView",
    "allNodes",
    "ask",
    "clone",
    "createNode",
    "delete",
    "env",
    "execute",
    "executeInMainThread",
    "executeInMainThreadWithResult",
    "executing",
    "filename",
    "filenameFilter",
    "frame",
    "knobDefault",
    "menu",
    "message",
    "nodeCopy",
    "nodePaste",
    "nodes",
    "pluginAddPath",
    "rawArgs",
    "redo",
    "removeBeforeRender",
    "removeKnobChanged",
    "removeOnCreate",
    "removeOnScriptClose",
    "removeOnScriptLoad",
    "removeOnScriptSave",
    "root",
    "scriptClear",
    "scriptOpen",
    "scriptSave",
    "scriptSaveAs",
    "selectedNodes",
    "thisGroup",
    "thisKnob",
    "thisNode",
    "toNode",
    "tprint",
    "undo",
    "untitled",
    "views",
]  # fmt: skip

env: dict[str, Any] = {"gui": False, "nc": False, "indie": False, "studio": False}
EXE_PATH = "/opt/nuke/Nuke15.1"
GUI = False
NUKE_VERSION_STRING = "15.1v1"
rawArgs = list(sys.argv)
untitled = "Untitled"


class CancelledError(Exception):
    """The user pressed Cancel."""


# ---- nodes


class NodeConstructor:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._class = args[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        node = new_node(self._class, _group(), dict(kwargs))
        _host.tell("onCreate", node)
        return node


class Nodes:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, item: Any) -> NodeConstructor:
        return NodeConstructor(item)


nodes = Nodes()


def _group() -> Group:
    return _host.groups[-1] if _host.groups else root()


def createNode(typ: str, knobs: str = "", inpanel: bool = True) -> Node:
    selected = selectedNodes()
    node = new_node(typ, _group(), {})
    for one in selected:
        one.setSelected(False)
    if selected and node.maxInputs():
        node.setInput(0, selected[0])
    node.setSelected(True)
    _host.tell("onCreate", node)
    return node


def delete(n: Node | None) -> None:
    if n is not None:
        delete_node(n)


def clone(n: Any, args: Any, inpanel: Any) -> Node:
    """It shares knobs, name and inner nodes with its original."""
    copy = new_node(n.Class(), _group(), {})
    copy._knobs, copy._clones = n._knobs, n._clones
    if isinstance(copy, Group):
        copy._nodes = n._nodes
    n._clones[0] += 1
    _host.tell("onCreate", copy)
    return copy


def allNodes(*args: Any, **kwargs: Any) -> list[Node]:
    group = kwargs.get("group") or _group()
    found = list(every_node(group)) if kwargs.get("recurseGroups") else group.nodes()
    wanted = next((one for one in args if isinstance(one, str)), kwargs.get("filter"))
    return [one for one in found if wanted is None or one.Class() == wanted]


def selectedNodes(filter: str | None = None) -> list[Node]:
    return [one for one in reversed(_group().nodes()) if one.isSelected() and filter in (None, one.Class())]


def toNode(s: str) -> Node | None:
    return _group().node(s) or root().node(s)


def thisNode() -> Node:
    return _host.this_node[-1] if _host.this_node else root()


def thisKnob() -> Knob:
    return _host.this_knob[-1]


def thisGroup() -> Group:
    return _group()


def root() -> Root:
    if _host.root is None:
        _host.root = Root()
    return _host.root


def nodeCopy(s: str) -> None:
    text = _script.to_text([one for one in _group().nodes() if one.isSelected()], None)
    if s == "%clipboard%":
        _host.clipboard = text
    else:
        Path(s).write_text(text, "utf-8")


def nodePaste(s: str) -> Node | None:
    text = _host.clipboard if s == "%clipboard%" else Path(s).read_text("utf-8")
    made = _script.from_text(text, _group())
    for one in _group().nodes():
        one.setSelected(one in made)
    return made[-1] if made else None


class Layer:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._name = str(args[0])
        _host.layers[self._name] = [str(one) for one in args[1]]

    def name(self) -> str:
        return self._name

    def channels(self, *args: Any, **kwargs: Any) -> Any:
        return _host.layers[self._name]


# ---- scripts


def scriptSave(filename: str | None = None) -> bool:
    if filename is not None:
        root()["name"]._value = str(filename)
    path = root().name()
    if not path:
        raise RuntimeError("the script has no name")
    for one in list(_host.listeners.get("onScriptSave", [])):
        with _host.about(root()):
            one.call(*one.args, **one.kwargs)
    Path(path).write_text(_script.to_text(root().nodes(), root()), "utf-8")
    root().setModified(False)
    return True


def scriptSaveAs(filename: str | None = None, overwrite: int | bool = -1) -> None:
    if Path(str(filename)).exists() and not (overwrite and overwrite != -1):
        raise RuntimeError(f"{filename} exists already")
    scriptSave(filename)


def scriptClear(*args: Any, **kwargs: Any) -> Any:
    for one in list(_host.listeners.get("onScriptClose", [])):
        with _host.about(root()):
            one.call(*one.args, **one.kwargs)
    _host.root = Root()
    _host.groups.clear()
    _host.undo_steps.clear()
    _host.redo_steps.clear()
    _host.layers.clear()


def scriptOpen(filename: str | None = None) -> None:
    path = Path(str(filename))
    if not path.is_file():
        raise RuntimeError(f"{filename}: No such file or directory")
    scriptClear()
    root()["name"]._value = str(filename)
    _script.from_text(path.read_text("utf-8"), root())
    _host.undo_steps.clear()
    root().setModified(False)
    for one in list(_host.listeners.get("onScriptLoad", [])):
        with _host.about(root()):
            one.call(*one.args, **one.kwargs)


def execute(
    nameOrNode: Node | str,
    start: int,
    end: int,
    incr: int = 1,
    views: list[str] | None = None,
    continueOnError: bool = False,
) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("execute was called outside the main thread")
    if _host.executing:
        raise RuntimeError("I'm already executing something else")
    node = toNode(nameOrNode) if isinstance(nameOrNode, str) else nameOrNode
    if node is None or node.Class() != "Write":
        raise RuntimeError(f"{nameOrNode} is not a Write")
    _host.executing = True
    try:
        exec(str(node["beforeRender"].value()), {"nuke": sys.modules[__name__]})
        _host.tell("beforeRender", node)
        for number in range(start, end + 1, incr):
            for view in views or _host.views:
                if _host.cancel_execute:
                    raise CancelledError("Cancelled")
                if node["use_limit"].value() and not node["first"].value() <= number <= node["last"].value():
                    continue
                _write(node, number, view)
                _host.executed.append((node.fullName(), number, view))
    finally:
        _host.executing = False


def executing(f: float | None = None) -> bool:
    return _host.executing


def knobDefault(classknob: str, value: str) -> None:
    _host.knob_defaults[classknob] = value


def filename(node: Node, i: int = 0) -> str | None:
    knob = node.knob("file")
    return None if knob is None or not knob.value() else without_tcl(str(knob.value()))


def filenameFilter(filename: Any) -> Any:
    for one in _host.listeners.get("filenameFilter", []):
        filename = one.call(filename) or filename
    return filename


def frame(f: int | None = None) -> int:
    if f is not None:
        _host.frame = int(f)
    return int(_host.frame)


def views() -> list[str]:
    return list(_host.views)


def addView(s: str) -> None:
    _host.views.append(s)


class ViewerWindow:
    def view(self, *args: Any, **kwargs: Any) -> Any:
        return _host.viewer_view


def activeViewer() -> ViewerWindow:
    return ViewerWindow()


# ---- undo


class Undo:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def begin(cls, *args: Any, **kwargs: Any) -> Any:
        _host.open_undo.append((str(args[0]) if args else "", []))

    @classmethod
    def end(cls, *args: Any, **kwargs: Any) -> Any:
        name, changes = _host.open_undo.pop()
        if changes:
            _host.undo_steps.append((name, changes))

    @classmethod
    def disable(cls, *args: Any, **kwargs: Any) -> Any:
        _host.undo_disabled += 1

    @classmethod
    def enable(cls, *args: Any, **kwargs: Any) -> Any:
        _host.undo_disabled -= 1


def undo() -> None:
    _swap(_host.undo_steps, _host.redo_steps)


def redo() -> None:
    _swap(_host.redo_steps, _host.undo_steps)


def _swap(source: list[Any], target: list[Any]) -> None:
    if not source:
        return
    name, changes = source.pop()
    back = []
    for knob, value in reversed(changes):
        back.append((knob, knob._value))
        knob._value = value
    target.append((name, back))


# ---- the main thread, dialogs, menus


def executeInMainThreadWithResult(call: Any, args: Any = (), kwargs: Any = None) -> Any:
    _check_not_main()
    return _host.in_main(lambda: call(*_as_tuple(args), **(kwargs or {})), wait=True)


def executeInMainThread(call: Any, args: Any = (), kwargs: Any = None) -> None:
    _check_not_main()
    _host.in_main(lambda: call(*_as_tuple(args), **(kwargs or {})), wait=False)


def _check_not_main() -> None:
    if threading.current_thread() is threading.main_thread():
        raise RuntimeError("executeInMainThread was called in the main thread")


def _as_tuple(args: Any) -> tuple[Any, ...]:
    return args if isinstance(args, tuple) else (args,)


class ProgressTask:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _host.progress.append(str(args[0]))

    def setMessage(self, *args: Any, **kwargs: Any) -> Any:
        _host.progress.append(str(args[0]))

    def setProgress(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(args[0], int):
            raise TypeError("an integer is required")

    def isCancelled(self, *args: Any, **kwargs: Any) -> Any:
        return _host.cancel_progress


def message(prompt: str) -> None:
    _host.messages.append(prompt)


def ask(prompt: str) -> bool:
    _host.messages.append(prompt)
    return _host.says_yes


def tprint(*args: Any, sep: str = " ", end: str = "\n", file: Any = None) -> None:
    print(*args, sep=sep, end=end, file=file)


class MenuItem:
    def __init__(self, name: str, call: Callable[[], Any] | None) -> None:
        self._name, self._call = name, call

    def name(self) -> str:
        return self._name

    def invoke(self) -> None:
        assert self._call is not None
        self._call()


class Menu(MenuItem):
    def __init__(self, name: str) -> None:
        super().__init__(name, None)
        self._items: dict[str, MenuItem] = {}

    def addMenu(self, *args: Any, **kwargs: Any) -> Any:
        return self._items.setdefault(args[0], Menu(args[0]))

    def addCommand(self, *args: Any, **kwargs: Any) -> Any:
        return self._items.setdefault(args[0], MenuItem(args[0], args[1]))

    def findItem(self, name: Any) -> Any:
        return self._items.get(name)


_menus: dict[str, Menu] = {}


def menu(name: str) -> Menu:
    return _menus.setdefault(name, Menu(name))


def pluginAddPath(args: Any, addToSysPath: bool = True) -> None:
    if addToSysPath and str(args) not in sys.path:
        sys.path.insert(0, str(args))


# ---- callbacks


def addOnCreate(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "*") -> None:
    _host.listen("onCreate", call, args, kwargs, nodeClass)


def removeOnCreate(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "*") -> None:
    _host.forget("onCreate", call)


def addKnobChanged(
    call: Any,
    args: Any = (),
    kwargs: Any = None,
    nodeClass: str = "*",
    node: Any | None = None,
) -> None:
    _host.listen("knobChanged", call, args, kwargs, nodeClass)


def removeKnobChanged(
    call: Any,
    args: Any = (),
    kwargs: Any = None,
    nodeClass: str = "*",
    node: Any | None = None,
) -> None:
    _host.forget("knobChanged", call)


def addOnScriptLoad(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Root") -> None:
    _host.listen("onScriptLoad", call, args, kwargs, nodeClass)


def removeOnScriptLoad(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Root") -> None:
    _host.forget("onScriptLoad", call)


def addOnScriptSave(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Root") -> None:
    _host.listen("onScriptSave", call, args, kwargs, nodeClass)


def removeOnScriptSave(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Root") -> None:
    _host.forget("onScriptSave", call)


def addOnScriptClose(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Root") -> None:
    _host.listen("onScriptClose", call, args, kwargs, nodeClass)


def removeOnScriptClose(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Root") -> None:
    _host.forget("onScriptClose", call)


def addFilenameFilter(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "*") -> None:
    _host.listen("filenameFilter", call, args, kwargs, nodeClass)


def addBeforeRender(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Write") -> None:
    _host.listen("beforeRender", call, args, kwargs, nodeClass)


def removeBeforeRender(call: Any, args: Any = (), kwargs: Any = None, nodeClass: str = "Write") -> None:
    _host.forget("beforeRender", call)


def _new_process() -> Host:
    """Forget everything, as a new process would; for tests."""
    listeners = _host.listeners
    _host.__dict__.update(Host().__dict__)
    _host.listeners = listeners
    _menus.clear()
    root()
    return _host
