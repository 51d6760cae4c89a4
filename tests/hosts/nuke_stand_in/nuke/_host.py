"""The state of the one stand-in host: open nodes, callbacks, undo steps, waiting calls.

Tests look in here; the code under test sees only what `nuke` offers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._graph import Group, Node, Root
    from ._knobs import Knob


@dataclass
class Listener:
    """A callback that was registered with an `add...` function."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    node_class: str


@dataclass
class Host:
    """The state of a Nuke process."""

    root: Root | None = None
    groups: list[Group] = field(default_factory=list)
    """The group that new nodes go into is the last one."""
    this_node: list[Node] = field(default_factory=list)
    this_knob: list[Knob] = field(default_factory=list)
    listeners: dict[str, list[Listener]] = field(default_factory=dict)
    undo_steps: list[tuple[str, list[tuple[Knob, Any]]]] = field(default_factory=list)
    redo_steps: list[tuple[str, list[tuple[Knob, Any]]]] = field(default_factory=list)
    open_undo: list[tuple[str, list[tuple[Knob, Any]]]] = field(default_factory=list)
    undo_disabled: int = 0
    frame: float = 1
    """Where the time of the script is; it may be between two frames."""
    viewer_view: str = "main"
    views: list[str] = field(default_factory=lambda: ["main"])
    layers: dict[str, list[str]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    says_yes: bool = True
    """What the artist answers when asked."""
    progress: list[str] = field(default_factory=list)
    cancel_progress: bool = False
    clipboard: str = ""
    executed: list[tuple[str, int, str]] = field(default_factory=list)
    """Every frame that a Write has written: its full name, frame and view."""
    executing: bool = False
    cancel_execute: bool = False
    reach: int | None = None
    """How many nodes of a group Python reaches."""
    knob_defaults: dict[str, Any] = field(default_factory=dict)
    """What a studio has made the defaults of knobs, by `class.knob`."""
    events: list[str] = field(default_factory=list)
    """The callbacks that are being called."""
    calls: queue.Queue[tuple[Callable[[], None], threading.Event]] = field(default_factory=queue.Queue)

    def listen(self, event: str, call: Any, args: Any, kwargs: Any, node_class: str) -> None:
        self.listeners.setdefault(event, []).append(
            Listener(call, tuple(args), dict(kwargs or {}), node_class)
        )

    def forget(self, event: str, call: Any) -> None:
        self.listeners[event] = [one for one in self.listeners.get(event, []) if one.call is not call]

    def tell(self, event: str, node: Node, knob: Knob | None = None) -> None:
        """Call all callbacks of this event of this node. They must not edit the graph."""
        for one in list(self.listeners.get(event, [])):
            if one.node_class in ("*", node.Class()):
                with self.about(node, knob):
                    self.events.append(event)
                    try:
                        one.call(*one.args, **one.kwargs)
                    finally:
                        self.events.pop()

    def edit_graph(self) -> None:
        """A node is made, deleted or connected. RuntimeError where Nuke is in the middle of something."""
        if self.events:
            raise RuntimeError(f"the graph cannot be edited in {self.events[-1]}")

    @contextmanager
    def about(self, node: Node, knob: Knob | None = None) -> Iterator[None]:
        """Set `thisNode` and `thisKnob` inside the block."""
        self.this_node.append(node)
        if knob is not None:
            self.this_knob.append(knob)
        try:
            yield
        finally:
            self.this_node.pop()
            if knob is not None:
                self.this_knob.pop()

    def will_change(self, knob: Knob, before: Any) -> None:
        """Note for undo that a knob is about to change."""
        if self.undo_disabled:
            return
        if self.open_undo:
            self.open_undo[-1][1].append((knob, before))
        else:
            self.undo_steps.append((knob.name(), [(knob, before)]))
        self.redo_steps.clear()

    def in_main(self, call: Callable[[], Any], wait: bool) -> Any:
        """Queue a call for the main thread; `pump` runs it."""
        done = threading.Event()
        results: list[Any] = []

        def work() -> None:
            try:
                results.append(call())
            except Exception:  # the host swallows it, as Nuke does
                pass
            finally:
                done.set()

        self.calls.put((work, done))
        if not wait:
            return None
        done.wait()
        return results[0] if results else None

    def pump(self, until: Callable[[], bool], seconds: float = 300.0) -> None:
        """Run the host's event loop until a condition is true."""
        end = time.monotonic() + seconds
        while not until() or not self.calls.empty():
            assert time.monotonic() < end, "it does not come to an end"
            try:
                work, _ = self.calls.get(timeout=0.01)
            except queue.Empty:
                continue
            work()


host = Host()
