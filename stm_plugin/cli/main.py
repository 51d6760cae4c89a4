"""The command's tree, and its way out: errors for people on stderr, and an exit code that farms can trust."""

from __future__ import annotations

import os
import sys

import typer

from stm_plugin.cli import adapt, doctor, evaluate, host, info, propagate, review, serve, shot, train, weights
from stm_plugin.cli.console import errors
from stm_plugin.errors import StmError

EXIT_ERROR = 1

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
app.command("review")(review.review)
app.add_typer(host.app, name="host")
app.command("doctor")(doctor.doctor)
app.add_typer(evaluate.app, name="eval")
app.add_typer(train.app, name="train")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Entry point of the `stm` command. Ends the process with 0 only if everything was done."""
    # Two OpenMP programs that spin while they wait starve each other; must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (StmError, FileNotFoundError, PermissionError, ValueError) as error:
        errors.print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(getattr(error, "exit_code", EXIT_ERROR))
