"""The batch script's command line. See ../stm_batch.py for how it is called and what its exit codes mean."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import nuke
from stm_nuke import batch, cache, callbacks, session, tasks
from stm_nuke.errors import ScriptError, StmNodeError, Stopped, UsageError
from stm_nuke.frames import Range, in_words, parse_range
from stm_nuke.node import StmNode

_MASK = re.compile(r"(-?\d+)=(.+)")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint="See --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    try:
        with _stopping_on_signals():
            return _run(
                _parser().parse_args(own_arguments(nuke.rawArgs) if arguments is None else list(arguments))
            )
    except StmNodeError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:  # a bug: farms must see it fail, and how
        sys.excepthook(*sys.exc_info())
        print(f"Error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        session.leave_engine()


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Ctrl-C, and a farm that takes its task back, stop as the Stop button does: in order, in words."""

    def stop(number: int, frame: object) -> None:
        if not tasks.stop_all():
            raise Stopped()

    mine = threading.current_thread() is threading.main_thread()  # others cannot have a handler
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM) if mine}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def own_arguments(raw: Sequence[str]) -> list[str]:
    """What was written after the name of this script, whatever Nuke made of it."""
    for number, argument in enumerate(raw):
        if Path(argument).name == "stm_batch.py":
            return list(raw[number + 1 :])
    return list(sys.argv[1:])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nuke -t stm_batch.py", description="Make the mattes of STM nodes in a comp.")
    parser.add_argument("--script", required=True, help="the comp, a .nk file")
    parser.add_argument("--node", action="append", default=[], help="STM node; may be repeated; default: all")
    parser.add_argument("--frames", help="frame range, as --frames=1001-1100; default: the node's own")
    parser.add_argument("--direction", choices=["forward", "backward", "both"], default="both")
    parser.add_argument(
        "--view", action="append", default=[], help="view; may be repeated; default: all with keys"
    )
    parser.add_argument(
        "--key", action="append", default=[], metavar="FRAME=FILE", help="set a key from a mask file first"
    )
    parser.add_argument("--key-from-input", action="append", default=[], metavar="FRAME", type=_frame)
    parser.add_argument(
        "--update-keys", action="store_true", help="take over changed masks of the mask input"
    )
    parser.add_argument(
        "--check-plate", action="store_true", help="render the plate again, compare by content"
    )
    parser.add_argument("--bake", metavar="FOLDER", help="copy the mattes there when they are done")
    parser.add_argument(
        "--write", action="append", default=[], help="then render this Write; may be repeated"
    )
    parser.add_argument(
        "--save", action="store_true", help="save the comp (keys that were set are in its knobs)"
    )
    return parser


def _frame(text: str) -> int:
    first, last = parse_range(text)
    if first != last:
        raise argparse.ArgumentTypeError(f"{text} is a range, not a frame")
    return first


def _run(options: argparse.Namespace) -> int:
    frames = None if options.frames is None else parse_range(options.frames)
    masks = dict(_mask(text) for text in options.key)
    _open(options.script)
    nodes = [batch.find(name) for name in options.node] or batch.find_all()
    if not nodes:
        raise UsageError(f"There is no STM node in {options.script}.")
    if (masks or options.key_from_input) and len(nodes) > 1:
        raise UsageError("--key needs one --node.")
    writes = [_write(name) for name in options.write]
    callbacks.put_effects_in()
    for node in nodes:
        for view in options.view or _views(node):
            _do_node(node, view, frames, masks, options)
    for write in writes:
        _render(write, frames)
    if options.save:
        _save(options.script)
    return 0


def _do_node(
    node: StmNode, view: str, frames: Range | None, masks: dict[int, Path], options: argparse.Namespace
) -> None:
    print(f"{node.name}, view {view}", flush=True)
    batch.set_keys_from_files(node, masks, view)
    for frame in options.key_from_input:
        batch.set_key(node, frame, view=view)
    if options.update_keys:
        batch.update_keys(node, view)
    if options.check_plate:
        batch.check_plate(node, view)
    ready = batch.propagate(node, frames, options.direction, view)
    first, last = frames or node.frames
    lacking = set(range(first, last + 1)) - set(ready)
    if lacking:
        raise StmNodeError(f"{node.name} has no matte at {in_words(lacking)} after propagating.")
    place = cache.store_folder(node.cache, view) if node.is_live else node.cache / "mattes"
    print(f"{node.name}: {len(ready)} mattes ready in {place}", flush=True)
    if options.bake:
        print(f"Baked to {batch.bake(node, options.bake, (first, last), view)}", flush=True)


def _views(node: StmNode) -> list[str]:
    """The views that have keys; the first one where none has."""
    return sorted({key.view for key in node.keys}) or [node.view()]


def _open(script: str) -> None:
    if not Path(script).is_file():
        raise ScriptError(f"There is no script {script}.")
    try:
        nuke.scriptOpen(str(Path(script).resolve()))
    except RuntimeError as error:
        raise ScriptError(f"{script} cannot be opened: {error}.") from error


def _write(name: str) -> nuke.Node:
    """A Write by its name: looked for before hours are spent on what it is to render."""
    write = nuke.toNode(name)
    if write is None:
        raise UsageError(f"There is no Write {name}.")
    return write


def _render(write: nuke.Node, frames: Range | None) -> None:
    first, last = frames or (int(nuke.root().firstFrame()), int(nuke.root().lastFrame()))
    try:
        nuke.execute(write, first, last, 1)
    except nuke.CancelledError as error:
        raise Stopped() from error
    except RuntimeError as error:
        raise StmNodeError(f"{write.fullName()} cannot be rendered: {error}.") from error


def _save(script: str) -> None:
    try:
        nuke.scriptSave(script)
    except (RuntimeError, OSError) as error:
        raise ScriptError(f"{script} cannot be saved: {error}.") from error


def _mask(text: str) -> tuple[int, Path]:
    match = _MASK.fullmatch(text)
    if match is None:
        raise UsageError(f"--key {text} cannot be understood.", hint="Write --key 1001=/path/mask.exr.")
    path = Path(match[2])
    if not path.is_file():
        raise UsageError(f"There is no mask file {path}.")
    return int(match[1]), path
