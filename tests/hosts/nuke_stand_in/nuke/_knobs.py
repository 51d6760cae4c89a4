"""Knobs: values with a name, a label and flags, saved and undone."""

# Methods differ from those they override just as the published stubs say that they do.
# mypy: disable-error-code="override"

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._host import host
from ._text import quote

if TYPE_CHECKING:
    from ._graph import Node

NO_ANIMATION = 0x00000100
INVISIBLE = 0x00000400
DISABLED = 0x00000080
STARTLINE = 0x00001000
NO_UNDO = 0x00080000

_LINK = re.compile(r"(?:([A-Za-z_]\w*)\.)?([A-Za-z_]\w*)")
"""Another knob: of this node, of `parent`, or of a node beside it."""
_IS_EXECUTING = "[python int(nuke.executing())]"
_EXPRESSION = re.compile(
    rf"(?=.*[A-Za-z_])(?:[A-Za-z_][\w.]*|\$gui|{re.escape(_IS_EXECUTING)}|[\s\d.()+*/<>=!&|-])+"
)
"""Arithmetic on the frame and on other knobs, whether there is a window and whether something renders."""
_WORDS = {"frame", "floor", "rint", "abs", "and", "or", "not"}
_CURVE = re.compile(r"curve((?: [A-Z](?= )| x?-?[\d.]+(?:e-?\d+)?)*)")


class Curve:
    """Values at keys: constant from a key marked K to the next, else linear."""

    def __init__(self, keys: dict[float, float], is_constant: bool) -> None:
        self.keys, self.is_constant = dict(sorted(keys.items())), is_constant

    @classmethod
    def read(cls, text: str) -> Curve:
        keys: dict[float, float] = {}
        at: float | None = None
        last = 0.0
        for word in text.split():
            if word.startswith("x"):
                at = float(word[1:])
            elif not word.isalpha():
                last = last + 1 if at is None else at
                keys[last], at = float(word), None
        return cls(keys, "K" in text.split())

    def text(self) -> str:
        return "curve" + " K" * self.is_constant + "".join(f" x{at:g} {to:g}" for at, to in self.keys.items())

    def at(self, frame: float) -> float:
        before = [one for one in self.keys if one <= frame]
        after = [one for one in self.keys if one > frame]
        if not before or not after or self.is_constant:
            return self.keys[before[-1] if before else after[0]]
        share = (frame - before[-1]) / (after[0] - before[-1])
        return self.keys[before[-1]] * (1 - share) + self.keys[after[0]] * share


def _is_expression(text: str) -> bool:
    return bool(_LINK.fullmatch(text) or _EXPRESSION.fullmatch(text))


class Knob:
    _type: int = 0
    _default: Any = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._name = str(args[0])
        self._label = str(args[1]) if len(args) > 1 and args[1] is not None else self._name
        self._value: Any = self._default
        self._original: Any = self._default
        self._flags = 0
        self._cleared = 0
        self._tooltip = ""
        self._expression = ""
        self._curve: Curve | None = None
        self._owner: Node | None = None
        self._is_user = False

    # ---- what it is

    def Class(self) -> str:
        return type(self).__name__

    def name(self) -> str:
        return self._name

    def label(self) -> str:
        return self._label

    def setLabel(self, label: str) -> None:
        self._label = label

    def tooltip(self) -> str:
        return self._tooltip

    def setTooltip(self, tooltip: str) -> None:
        self._tooltip = tooltip

    def node(self) -> Node:
        assert self._owner is not None, "the knob is on no node"
        return self._owner

    def fullyQualifiedName(self, channel: int = -1) -> str:
        return f"{self.node().fullName()}.{self._name}"

    def setFlag(self, flag: int) -> None:
        self._flags |= flag
        self._cleared &= ~flag

    def clearFlag(self, flag: int) -> None:
        self._flags &= ~flag
        self._cleared |= flag

    def getFlag(self, flag: int) -> bool:
        return bool(self._flags & flag)

    def setEnabled(self, enabled: bool) -> None:
        (self.clearFlag if enabled else self.setFlag)(DISABLED)

    def enabled(self) -> bool:
        return not self.getFlag(DISABLED)

    def setVisible(self, visible: bool) -> None:
        (self.clearFlag if visible else self.setFlag)(INVISIBLE)

    def visible(self) -> bool:
        return not self.getFlag(INVISIBLE)

    # ---- its value

    def value(self, index: int = 0) -> Any:
        return self._evaluated()

    def getValue(self, channel: int = 0) -> Any:
        return self._evaluated()

    def setValue(self, val: Any, chan: int = 0) -> bool:
        return self._change(self._accept(val))

    def setExpression(self, expression: str, index: int = -1, view: str | None = None) -> bool:
        if not _is_expression(expression):
            raise RuntimeError(f"the stand-in does not know the expression {expression}")
        self._expression = expression
        return True

    def hasExpression(self, index: int = -1) -> bool:
        return bool(self._expression)

    def toScript(self, quote: bool = True, context: Any = None) -> str:
        if self._curve is not None:
            return "{{" + self._curve.text() + "}}"
        return "{{" + self._expression + "}}" if self._expression else self._saved()

    def fromScript(self, script: str) -> None:
        match = re.fullmatch(r"\{\{?(.*?)\}?\}", script)
        if match and _CURVE.fullmatch(match[1]):
            self._set_curve(Curve.read(match[1][len("curve") :]))
        elif match and _is_expression(match[1]) and not isinstance(self, (String_Knob, _Numbers_Knob)):
            self._expression = match[1]
        else:
            self._change(self._read(script))

    def _set_curve(self, curve: Curve | None) -> None:
        before = self.toScript()
        self._curve = curve if curve is not None and curve.keys else None
        if self._owner is not None and self.toScript() != before:
            self._owner._changed(self)

    def _evaluated(self, frame: float | None = None) -> Any:
        """The value at a frame; at the script's current one if none is given."""
        at = host.frame if frame is None else frame
        if self._curve is not None:
            return self._accept(self._curve.at(at))
        return self._accept(self._worked_out(self._expression, at)) if self._expression else self._value

    def _worked_out(self, expression: str, frame: float) -> Any:
        import nuke

        def name(found: re.Match[str]) -> str:
            return found[0] if found[0] in _WORDS else repr(self._linked(found[0], frame))

        text = expression.replace(_IS_EXECUTING, str(int(host.executing)))
        text = text.replace("$gui", str(int(nuke.GUI)))
        text = text.replace("&&", " and ").replace("||", " or ")
        text = re.sub(r"!(?!=)", " not ", text)
        text = re.sub(r"(?<![\w.])[A-Za-z_][\w.]*", name, text)
        functions = {"__builtins__": {}, "floor": math.floor, "rint": round, "abs": abs, "frame": frame}
        return eval(text.strip(), functions)

    def _linked(self, path: str, frame: float) -> Any:
        node_name, _, knob_name = path.rpartition(".")
        beside = self.node().parent()
        node = beside if node_name == "parent" else beside.node(node_name) if node_name else self.node()
        knob = None if node is None else node.knob(knob_name)
        if knob is None:
            raise RuntimeError(f"{self.fullyQualifiedName()}: Nothing is named {path!r}")
        return knob._number(frame)

    def _number(self, frame: float | None = None) -> Any:
        """The value that an expression linked to this knob has."""
        return self._evaluated(frame)

    def _change(self, value: Any) -> bool:
        if value == self._value:
            return False
        owner = self._owner
        if owner is not None and not self._flags & NO_UNDO:
            host.will_change(self, self._value)
        self._value = value
        if owner is not None:
            owner._changed(self)
        return True

    def _accept(self, value: Any) -> Any:
        return value

    def _saved(self) -> str:
        return quote(str(self._value))

    def _read(self, text: str) -> Any:
        return self._accept(text)

    def _is_default(self) -> bool:
        return not self._expression and self._curve is None and bool(self._value == self._original)

    def _extra(self) -> str:
        """The fields of a user knob's line besides label, tooltip and flags."""
        return ""


class Array_Knob(Knob):
    _type = 7
    _default: Any = 0.0

    def setValue(self, *args: Any, **kwargs: Any) -> Any:
        return self._change(self._accept(args[0]))

    def value(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluated()

    def setExpression(self, expression: Any, channel: Any = -1, view: Any = None) -> bool:
        return Knob.setExpression(self, expression)

    # ---- its curve

    def isAnimated(self, *args: Any, **kwargs: Any) -> Any:
        return self._curve is not None

    def setAnimated(self, *args: Any, **kwargs: Any) -> Any:
        if self._curve is None:
            self._curve = Curve({host.frame: float(self._value)}, False)
        return True

    def clearAnimated(self, *args: Any, **kwargs: Any) -> Any:
        self._set_curve(None)
        return True

    def getKeyList(self) -> list[int]:
        return [] if self._curve is None else [int(one) for one in self._curve.keys]

    def isKeyAt(self, *args: Any, **kwargs: Any) -> Any:
        return self._curve is not None and args[0] in self._curve.keys

    def getValueAt(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluated(args[0])

    def setValueAt(self, *args: Any, **kwargs: Any) -> Any:
        keys = {} if self._curve is None else dict(self._curve.keys)
        self._set_curve(Curve({**keys, float(args[1]): float(args[0])}, False))
        return True

    def _accept(self, value: Any) -> Any:
        return float(value)


class Double_Knob(Array_Knob):
    pass


class Int_Knob(Array_Knob):
    _type = 3
    _default = 0

    def setValue(self, val: Any) -> bool:
        return self._change(self._accept(val))

    def value(self) -> int:
        return int(self._evaluated())

    def _accept(self, value: Any) -> Any:
        return int(value)


class Boolean_Knob(Array_Knob):
    _type = 6
    _default = False

    def setValue(self, b: Any) -> bool:
        return self._change(self._accept(b))

    def value(self) -> bool:
        return bool(self._evaluated())

    def _number(self, frame: float | None = None) -> Any:
        return int(self._evaluated(frame))

    def _accept(self, value: Any) -> Any:
        return value not in ("false", "0") if isinstance(value, str) else bool(value)

    def _saved(self) -> str:
        return "true" if self._value else "false"


class _Numbers_Knob(Array_Knob):
    """Four numbers."""

    _default = (0.0, 0.0, 0.0, 0.0)

    def value(self, *args: Any, **kwargs: Any) -> Any:
        """One number if all four are equal, as for a box that was never drawn."""
        if args:
            return self._value[args[0]]
        return self._value[0] if len(set(self._value)) == 1 else list(self._value)

    def _accept(self, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split()
        return tuple(float(one) for one in value)

    def _saved(self) -> str:
        return "{" + " ".join(f"{one:g}" for one in self._value) + "}"


class BBox_Knob(_Numbers_Knob):
    _type = 15

    def x(self, *args: Any, **kwargs: Any) -> Any:
        return self._value[0]

    def y(self, *args: Any, **kwargs: Any) -> Any:
        return self._value[1]

    def r(self, *args: Any, **kwargs: Any) -> Any:
        return self._value[2]

    def t(self, *args: Any, **kwargs: Any) -> Any:
        return self._value[3]


class AColor_Knob(_Numbers_Knob):
    """In Nuke it is a subclass of Color_Knob."""

    _type = 19


class Unsigned_Knob(Array_Knob):
    _default = 0

    def setValue(self, val: Any) -> bool:
        return self._change(self._accept(val))

    def value(self) -> int:
        return int(self._evaluated())


class Enumeration_Knob(Unsigned_Knob):
    _type = 4

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args[:2])
        self._choices = [str(one) for one in args[2]]
        self._value = self._original = self._choices[0] if self._choices else ""

    def value(self) -> Any:
        return self._value

    def values(self) -> Any:
        return list(self._choices)

    def numValues(self) -> int:
        return len(self._choices)

    def setValue(self, *args: Any, **kwargs: Any) -> Any:
        return self._change(self._accept(args[0]))

    def _accept(self, value: Any) -> Any:
        if isinstance(value, (int, float)):
            return self._choices[int(value)]
        if value not in self._choices:
            raise TypeError(f"{self._name}: there is no choice {value!r} among {self._choices}")
        return value

    def _number(self, frame: float | None = None) -> Any:
        return self._choices.index(self._value)

    def _extra(self) -> str:
        return " M {" + " ".join(quote(one) for one in self._choices) + "}"


class Channel_Knob(Knob):
    _type = 24
    _default = "none"

    def setValue(self, name: Any) -> None:
        self._change(self._accept(name))

    def value(self) -> str:
        return str(self._evaluated())

    def _accept(self, value: Any) -> Any:
        return str(value)


class String_Knob(Knob):
    _type = 1

    def setValue(self, val: Any, view: Any = None) -> None:
        self._change(str(val))

    def value(self, oc: Any = None) -> str:
        return str(self._value)

    def getText(self, oc: Any = None) -> str:
        return str(self._value)


class EvalString_Knob(String_Knob):
    pass


class Multiline_Eval_String_Knob(EvalString_Knob):
    _type = 43


class File_Knob(EvalString_Knob):
    _type = 2

    def setValue(self, *args: Any, **kwargs: Any) -> Any:
        self._change(str(args[0]))

    def value(self, *args: Any, **kwargs: Any) -> Any:
        return self._value or None

    def getEvaluatedValue(self, *args: Any, **kwargs: Any) -> Any:
        from ._pixels import file_of

        return file_of(self._value, host.frame, host.viewer_view) or None


class Text_Knob(Knob):
    _type = 26

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args[:2])
        self._value = self._original = str(args[2]) if len(args) > 2 else ""

    def setValue(self, *args: Any, **kwargs: Any) -> Any:
        return self._change(str(args[0]))

    def value(self, *args: Any, **kwargs: Any) -> Any:
        return self._value

    def _extra(self) -> str:
        return f" T {quote(self._value)}" if self._value else ""


class Tab_Knob(Knob):
    _type = 20

    def setValue(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def value(self, *args: Any, **kwargs: Any) -> Any:
        return None


class Script_Knob(String_Knob):
    _type = 32

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args[:2])
        self._value = self._original = str(args[2]) if len(args) > 2 else ""

    def command(self) -> str:
        return str(self._value)

    def setCommand(self, cmd: Any) -> None:
        self._change(str(cmd))

    def setValue(self, cmd: Any) -> None:
        self._change(str(cmd))

    def value(self) -> str:
        return str(self._value)

    def execute(self) -> None:
        """A native button: `reload`. The stand-in reads the files every time anyway."""

    def _extra(self) -> str:
        return f" T {quote(self._value)}"


class PyScript_Knob(Script_Knob):
    _type = 22

    def execute(self) -> None:
        import nuke

        with host.about(self.node(), self):
            exec(self._value, {"nuke": nuke})


class Link_Knob(Knob):
    _type = 41

    def makeLink(self, s: Any, t: Any) -> None:
        self._value = f"{s}.{t}"

    def setLink(self, s: Any) -> None:
        self._value = str(s)

    def setValue(self) -> None:
        return None

    def getLinkedKnob(self) -> Knob:
        from ._graph import Group

        node_name, knob_name = str(self._value).rsplit(".", 1)
        group = self.node()
        assert isinstance(group, Group)
        found = group.node(node_name)
        assert found is not None
        return found[knob_name]

    def value(self) -> str:
        return str(self.getLinkedKnob().value())

    def _extra(self) -> str:
        return f" T {self._value}"


class Format_Knob(Knob):
    def setValue(self, *args: Any, **kwargs: Any) -> Any:
        return self._change(args[0])

    def value(self, *args: Any, **kwargs: Any) -> Any:
        return self._value

    def _saved(self) -> str:
        one = self._value
        return quote(
            f"{one.width()} {one.height()} 0 0 {one.r()} {one.t()} {one.pixelAspect():g} {one.name()}"
        )

    def _read(self, text: str) -> Any:
        from ._graph import Format

        width, height, _, _, _, _, aspect, *name = text.split()
        return Format(int(width), int(height), 0, 0, int(width), int(height), float(aspect), " ".join(name))


_BY_TYPE: dict[int, type[Knob]] = {
    one._type: one
    for one in (
        Double_Knob, Int_Knob, Boolean_Knob, BBox_Knob, Enumeration_Knob, Channel_Knob, String_Knob,
        File_Knob, Multiline_Eval_String_Knob, Text_Knob, Tab_Knob, PyScript_Knob, Link_Knob,
    )
}  # fmt: skip
_FLAGS = {"STARTLINE": STARTLINE, "INVISIBLE": INVISIBLE, "DISABLED": DISABLED}


def user_knob_line(knob: Knob) -> str:
    """The line `addUserKnob {...}` of a script."""
    line = f"{knob._type} {knob._name}"
    if knob._label != knob._name:
        line += f" l {quote(knob._label)}"
    if knob._tooltip:
        line += f" t {quote(knob._tooltip)}"
    line += knob._extra()
    for name, flag in _FLAGS.items():
        line += f" +{name}" if knob._flags & flag else f" -{name}" if knob._cleared & flag else ""
    return "addUserKnob {" + line + "}"


def knob_from_line(words: Sequence[str]) -> Knob:
    """The knob that `user_knob_line` described."""
    from ._text import words_of

    kind, name = _BY_TYPE[int(words[0])], words[1]
    given: dict[str, str] = {}
    flags: list[str] = []
    rest = list(words[2:])
    while rest:
        word = rest.pop(0)
        if word[0] in "+-" and word[1:] in _FLAGS:
            flags.append(word)
        else:
            given[word] = rest.pop(0)
    arguments: list[Any] = [name, given.get("l")]
    if kind is Enumeration_Knob:
        arguments.append(words_of(given["M"]))
    elif kind in (Text_Knob, PyScript_Knob):
        arguments.append(given.get("T", ""))
    knob = kind(*arguments)
    if isinstance(knob, Link_Knob):
        knob.setLink(given["T"])
    knob.setTooltip(given.get("t", ""))
    for word in flags:
        (knob.setFlag if word[0] == "+" else knob.clearFlag)(_FLAGS[word[1:]])
    return knob
