"""The batch script's command line. ../stm_batch.py describes its call and its exit codes.

Several scripts and nodes are done one after the other. After an error the others are still done; the exit
code is that of the first error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import nuke
from stm_nuke import batch, cache, callbacks, session, tasks
from stm_nuke.errors import ScriptError, StmNodeError, Stopped, UsageError
from stm_nuke.frames import Range, in_words, parse_range
from stm_nuke.node import StmNode
from stm_nuke.verbs import FARM_STM

_MASK = re.compile(r"(-?\d+)=(.+)")
STANDARD_OUTPUT = "-"


@dataclass
class Result:
    """The result of one view of one node.

    Attributes:
        first, last: the requested frames; None if an error came before.
        ready: how many of them have a matte.
        mattes: a pattern of files, or a shot store.
        bundle: the folder of the farm's bundle; the farm makes the mattes.
        error: the text of the error, or None.
    """

    script: str
    node: str = ""
    view: str = ""
    first: int | None = None
    last: int | None = None
    ready: int = 0
    mattes: str | None = None
    baked: str | None = None
    bundle: str | None = None
    seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint="See --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        with _stopping_on_signals():
            return _run(
                _parser().parse_args(own_arguments(nuke.rawArgs) if arguments is None else list(arguments))
            )
    except StmNodeError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:  # a bug: farms must see the error
        sys.excepthook(*sys.exc_info())
        print(f"Error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        session.leave_engine()


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Ctrl-C and a farm's signal stop the work as the Stop button does."""

    def stop(number: int, frame: object) -> None:
        if not tasks.stop_all():
            raise Stopped()

    mine = threading.current_thread() is threading.main_thread()  # other threads cannot set a handler
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM) if mine}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def own_arguments(raw: Sequence[str]) -> list[str]:
    """The arguments after the name of this script; Nuke may have read some of them."""
    for number, argument in enumerate(raw):
        if Path(argument).name == "stm_batch.py":
            return list(raw[number + 1 :])
    return list(sys.argv[1:])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nuke -t stm_batch.py", description="Make the mattes of STM nodes in a comp.")
    parser.add_argument(
        "--script", action="append", required=True, help="the comp, a .nk file; may be repeated"
    )
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
    parser.add_argument("--update-keys", action="store_true", help="update changed masks from the mask input")
    parser.add_argument(
        "--check-plate", action="store_true", help="render the plate again, compare by content"
    )
    parser.add_argument("--bake", metavar="FOLDER", help="copy the mattes there when they are done")
    parser.add_argument(
        "--farm-bundle",
        metavar="FOLDER",
        nargs="?",
        const="",
        help="make no mattes: write a job bundle for a render farm; default: in the node's cache",
    )
    parser.add_argument(
        "--stm", default=FARM_STM, metavar="COMMAND", help="the command stm on the farm's machines"
    )
    parser.add_argument(
        "--write", action="append", default=[], help="then render this Write; may be repeated"
    )
    parser.add_argument(
        "--keys-from-roto", action="store_true", help="set a key on every frame on which the Roto has one"
    )
    parser.add_argument(
        "--save", action="store_true", help="save the comp (keys that were set are in its knobs)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the results there; - is the last line of standard output"
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
    if (masks or options.key_from_input) and len(options.script) > 1:
        raise UsageError("--key needs one --script.")
    if options.farm_bundle is not None and (options.bake or options.write):
        raise UsageError("--farm-bundle makes no mattes, so there is nothing for --bake or --write.")
    results: list[Result] = []
    try:
        for script in options.script:
            _do_script(script, frames, masks, options, results)
    finally:
        _report(results, options.json)
    return next((one.exit_code for one in results if one.exit_code), 0)


def _do_script(
    script: str,
    frames: Range | None,
    masks: dict[int, Path],
    options: argparse.Namespace,
    results: list[Result],
) -> None:
    with _recording(Result(script), results, only_errors=True):
        _open(script)
        nodes = [batch.find(name) for name in options.node] or batch.find_all()
        if not nodes:
            raise UsageError(f"There is no STM node in {script}.")
        if (masks or options.key_from_input) and len(nodes) > 1:
            raise UsageError("--key needs one --node.")
        options.are_several = len(options.script) > 1 or len(nodes) > 1
        options.are_bundles = sum(len(options.view or _views(node)) for node in nodes) > 1
        writes = [_write(name) for name in options.write]
        callbacks.put_effects_in()
        before = len(results)
        for node in nodes:
            for view in options.view or _views(node):
                with _recording(Result(script, node.name, view), results) as result:
                    _do_node(node, view, frames, masks, options, result)
        if any(one.error for one in results[before:]):
            return  # incomplete mattes must not be rendered
        for write in writes:
            _render(write, frames)
        if options.save:
            _save(script)


@contextlib.contextmanager
def _recording(result: Result, results: list[Result], only_errors: bool = False) -> Iterator[Result]:
    """Record the result of the work inside. An error is printed and recorded, and the next node follows.

    A stop is recorded and ends everything.
    """
    begin = time.monotonic()
    try:
        yield result
    except StmNodeError as error:
        result.error, result.exit_code = str(error), error.exit_code
        if isinstance(error, Stopped):
            raise
        print(f"Error: {error}", file=sys.stderr, flush=True)
    finally:
        result.seconds = round(time.monotonic() - begin, 3)
        is_noted = bool(results) and results[-1].exit_code == Stopped.exit_code  # further inside
        if not is_noted and (result.error is not None or not only_errors):
            results.append(result)


def _report(results: Sequence[Result], file: str | None) -> None:
    """Print a table if there are several results; write the results as JSON if requested."""
    if len(results) > 1:
        for line in table_of(results):
            print(line, flush=True)
    if file is None:
        return
    text = json.dumps({"results": [asdict(one) for one in results]})
    if file == STANDARD_OUTPUT:
        print(text, flush=True)
        return
    try:
        Path(file).write_text(text + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from error


def table_of(results: Sequence[Result]) -> list[str]:
    """The results as lines of a table for people."""
    rows = [("script", "node", "view", "frames", "ready", "seconds", "result")]
    for one in results:
        frames = "" if one.first is None else f"{one.first}-{one.last}"
        state = "done" if one.error is None else f"failed ({one.exit_code}): {one.error}"
        seconds = f"{one.seconds:.1f}"
        rows.append((Path(one.script).name, one.node, one.view, frames, str(one.ready), seconds, state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [[*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]] for row in rows]
    return ["  ".join(line).rstrip() for line in lines]


def _do_node(
    node: StmNode,
    view: str,
    frames: Range | None,
    masks: dict[int, Path],
    options: argparse.Namespace,
    result: Result,
) -> None:
    print(f"{node.name}, view {view}", flush=True)
    batch.set_keys_from_files(node, masks, view)
    for frame in options.key_from_input:
        batch.set_key(node, frame, view=view)
    if options.keys_from_roto:
        batch.keys_from_roto(node, view)
    if options.update_keys:
        batch.update_keys(node, view)
    if options.check_plate:
        batch.check_plate(node, view)
    if options.farm_bundle is not None:
        _write_bundle(node, view, frames, options, result)
    else:
        _propagate(node, view, frames, options, result)


def _write_bundle(
    node: StmNode, view: str, frames: Range | None, options: argparse.Namespace, result: Result
) -> None:
    folder = Path(options.farm_bundle) if options.farm_bundle else None
    if folder is not None and (options.are_several or options.are_bundles):
        folder = folder / Path(result.script).stem / f"{node.name}.{view}"
    bundle = batch.farm_bundle(node, folder, frames, options.stm, view)
    first, last = result.first, result.last = frames or node.frames
    result.ready = len(cache.fresh_mattes(node.cache, view, range(first, last + 1)))
    result.bundle = bundle.as_posix()
    result.mattes = cache.matte_pattern(node.cache, view)
    print(f"Farm bundle {result.bundle}", flush=True)


def _propagate(
    node: StmNode, view: str, frames: Range | None, options: argparse.Namespace, result: Result
) -> None:
    ready = batch.propagate(node, frames, options.direction, view)
    first, last = frames or node.frames
    result.first, result.last, result.ready = first, last, len(ready)
    lacking = set(range(first, last + 1)) - set(ready)
    if lacking:
        raise StmNodeError(f"{node.name} has no matte at {in_words(lacking)} after propagating.")
    place = cache.store_folder(node.cache, view) if node.is_live else node.cache / "mattes"
    result.mattes = place.as_posix() if node.is_live else cache.matte_pattern(node.cache, view)
    print(f"{node.name}: {len(ready)} mattes ready in {place}", flush=True)
    if options.bake:
        folder = Path(options.bake)
        if options.are_several:
            folder = folder / Path(result.script).stem / node.name
        result.baked = batch.bake(node, folder, (first, last), view).as_posix()
        print(f"Baked to {result.baked}", flush=True)


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
    """A Write by its name; searched before the mattes are computed."""
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
