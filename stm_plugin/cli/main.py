"""The tree of commands, and their end: errors for people on stderr, and a reliable exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

import typer

from model.weights_file import WeightsFileError
from stm_plugin.cli import (
    adapt,
    config,
    doctor,
    evaluate,
    farm,
    host,
    info,
    propagate,
    review,
    serve,
    shot,
    train,
    weights,
)
from stm_plugin.cli.console import Stopped, errors, printable
from stm_plugin.errors import StmError, WeightsError, as_stm_error, was_interrupted
from stm_plugin.exit_codes import ExitCode

DEBUG_VARIABLE = "STM_DEBUG"
"""If it is set, errors are shown with their traceback."""
STOPPED = "Stopped. What was finished is kept. The same command continues from here."

app = typer.Typer(
    name="stm",
    help="From one roto key to a matte channel for the whole shot, by space-time memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("propagate")(propagate.propagate)
app.add_typer(shot.app, name="shot")
app.command("adapt")(adapt.adapt)
app.command("serve")(serve.serve)
app.command("info")(info.info)
app.command("config")(config.config)
app.command("review")(review.review)
app.add_typer(farm.app, name="farm")
app.add_typer(host.app, name="host")
app.command("doctor")(doctor.doctor)
app.add_typer(evaluate.app, name="eval")
app.add_typer(train.app, name="train")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Entry point of the `stm` command. Ends the process with 0 only if everything was done."""
    # Two OpenMP programs that spin while they wait starve each other; must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    errors.quiet = os.environ.get("STM_LOG") == "json"  # JSON lines alone: logs.py
    try:
        app()
    except SystemExit as ended:
        if ended.code == ExitCode.INTERRUPTED and not isinstance(ended.__context__, Stopped):
            errors.print(STOPPED, highlight=False)
        sys.exit(_flushed(ended.code))
    except KeyboardInterrupt:  # outside of every command
        errors.print(STOPPED, highlight=False)
        sys.exit(int(ExitCode.INTERRUPTED))
    except Exception as error:
        known = _as_known(error)
        if known is None and was_interrupted(error):
            errors.print(STOPPED, highlight=False)
            sys.exit(int(ExitCode.INTERRUPTED))
        if os.environ.get(DEBUG_VARIABLE):
            raise
        code = int(ExitCode.FAILED if known is None else known.exit_code)
        said = False
        with contextlib.suppress(Exception):  # as where there is no memory
            said = _logged_as_json(error, known, code)
        if not said:
            _say(f"Error: {_in_words(error)}")
        sys.exit(code)


def _logged_as_json(error: Exception, known: StmError | None, code: int) -> bool:
    """Write an error into the command's log; whether it is on standard error by that, as a JSON line."""
    import logging

    from stm_plugin.logs import event, start_command_log, wants_json_lines

    about = {} if known is None else {"frame": known.frame, "path": known.path, "hint": known.hint}
    event(
        start_command_log(),
        "error",
        logging.ERROR,
        exit_code=code,
        error=type(error).__name__,
        text=_in_words(error),
        where=_place_of(error),
        **about,
    )
    return wants_json_lines()


def _say(text: str) -> None:
    errors.quiet = False
    errors.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _flushed(code: str | int | None) -> str | int | None:
    """Flush the output; returns the exit code, or that of an error if the output cannot be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's own flush at its end
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        _say(f"Error: The output cannot be written: {error.strerror}. Free some space, or redirect it.")
        return int(ExitCode.FAILED)
    return code


def _in_words(error: Exception) -> str:
    """An error for people. ValueErrors of the model already state what to do; anything else is a bug."""
    known = _as_known(error)
    if known is not None:
        return _as_sentence(str(known))
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return _as_sentence(str(error))
    place = _place_of(error)
    where = f" in {place}" if place else ""
    return (
        f"STM has failed: {type(error).__name__}: {error}{where}. Finished frames are kept. This is a fault "
        f"of the program: run again with {DEBUG_VARIABLE}=1 for a report, and send it to the maintainers."
    )


def _as_known(error: Exception) -> StmError | None:
    """The text for people and the exit code of an error; None where only a bug explains it."""
    if isinstance(error, WeightsFileError):
        return WeightsError(_as_sentence(str(error)))
    return as_stm_error(error)


def _as_sentence(text: str) -> str:
    """A text that ends as a sentence does."""
    return text if not text or text.rstrip().endswith((".", "!", "?", ":")) else f"{text}."


def _place_of(error: Exception) -> str:
    """File and line that raised an error; empty if unknown."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
