"""Scripts as text: the content of a .nk file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from . import _knobs as k
from ._graph import Group, Node, Root, new_node
from ._host import host
from ._text import commands_of, quote

_NOT_SAVED = frozenset(("selected", "name"))


def to_text(nodes: Iterable[Node], root: Root | None) -> str:
    """A script as text; without a root, the copied nodes."""
    lines = ["#! stand-in -nx", "version 15.1 v1"]
    if root is not None:
        lines += ["Root {", " inputs 0", *_knob_lines(root), "}"]
        lines += [f"add_layer {{{name} {' '.join(channels)}}}" for name, channels in host.layers.items()]
    lines += _node_lines(list(nodes), itertools.count(0xA0))
    return "\n".join(lines) + "\n"


def _node_lines(nodes: list[Node], numbers: Iterator[int]) -> list[str]:
    """The text of nodes; each has its own variable, also in groups."""
    lines: list[str] = []
    ids = {id(node): f"N{next(numbers):x}" for node in nodes}
    done: set[int] = set()

    def put(node: Node) -> None:
        if id(node) in done:
            return
        done.add(id(node))
        inputs = [node.input(number) for number in range(node.inputs())]
        for one in inputs:
            if one is not None and id(one) in ids:
                put(one)
        for one in reversed(inputs):
            lines.append(f"push ${ids[id(one)]}" if one is not None and id(one) in ids else "push 0")
        lines.extend([f"{node.Class()} {{", f" inputs {len(inputs)}", f" name {quote(node.name())}"])
        lines.extend([*_knob_lines(node), "}"])
        if isinstance(node, Group):
            lines.extend([*(f" {line}" for line in _node_lines(node.nodes(), numbers)), "end_group"])
        lines.append(f"set {ids[id(node)]} [stack 0]")

    for node in nodes:
        put(node)
    return lines


def _knob_lines(node: Node) -> list[str]:
    lines = []
    for name, knob in node.knobs().items():
        if knob._is_user:
            lines.append(f" {k.user_knob_line(knob)}")
        has_own_line = not isinstance(knob, (k.Tab_Knob, k.Text_Knob, k.PyScript_Knob, k.Link_Knob))
        if has_own_line and name not in _NOT_SAVED and not knob._is_default():
            lines.append(f" {name} {knob.toScript()}")
    return lines


def from_text(text: str, parent: Group) -> list[Node]:
    """Make the nodes of a script in `parent`; returns them. RuntimeError if it cannot be read."""
    try:
        commands = commands_of(text)
    except (ValueError, IndexError) as error:
        raise RuntimeError(f"the script cannot be read: {error}") from error
    made: list[Node] = []
    stack: list[Node | None] = []
    named: dict[str, Node | None] = {}
    groups = [parent]
    stacks: list[list[Node | None]] = []
    for command in commands:
        if command[0] == "version":
            continue
        if command[0] == "push":
            stack.append(None if command[1] == "0" else named[command[1][1:]])
        elif command[0] == "set":
            named[command[1]] = stack[-1]
        elif command[0] == "add_layer":
            layer, *channels = command[1].split()
            host.layers[layer] = channels
        elif command[0] == "end_group":
            stack = stacks.pop()
            host.tell("onCreate", groups.pop())
        elif command[0] == "Root":
            assert host.root is not None
            _fill(host.root, command[1])
        else:
            node = new_node(command[0], groups[-1], {})
            inputs = _fill(node, command[1])
            connected = [stack.pop() for _ in range(inputs)]
            node._inputs = connected
            stack.append(node)
            if groups[-1] is parent:
                made.append(node)
            if isinstance(node, Group):
                groups.append(node)
                stacks.append(stack)
                stack = []
            else:
                host.tell("onCreate", node)
    return made


def _fill(node: Node, body: str) -> int:
    """Set the knobs that a node's text names; returns how many inputs it takes from the stack."""
    from ._text import words_of

    inputs = 1
    for name, *values in commands_of(body):
        if name == "inputs":
            inputs = int(values[0].split("+")[0])
        elif name == "addUserKnob":
            node.addKnob(k.knob_from_line(words_of(values[0])))
        elif name == "name":
            if not isinstance(node, Root):
                node.setName(values[0])
        else:
            knob = node[name]
            knob.fromScript("{" + values[0] + "}" if values[0].startswith("{") else values[0])
    return inputs
