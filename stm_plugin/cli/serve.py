"""`stm serve`: the resident engine, which hosts connect to."""

from __future__ import annotations

from typing import Annotated

import typer

from stm_plugin.cli.console import errors
from stm_plugin.server.options import DEFAULT_IDLE_SECONDS, ServeOptions


def serve(
    idle: Annotated[
        float, typer.Option(help="Seconds without a client before it ends.")
    ] = DEFAULT_IDLE_SECONDS,
    parent: Annotated[int | None, typer.Option(help="End when this process has gone.")] = None,
    log: Annotated[bool, typer.Option("--log/--foreground", help="Log to a file or to the terminal.")] = True,
) -> None:
    """Serve hosts (Nuke, OpenFX) on this machine, for this user only. One engine per user."""
    from stm_plugin.server.main import serve as run
    from stm_plugin.server.runtime import EngineRunningError

    try:
        run(ServeOptions(idle, parent, to_log=log))
    except EngineRunningError as running:
        errors.print(str(running), markup=False, highlight=False)
