"""`stm review`: check and correct a shot in a browser on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stm_plugin.cli.console import output


def review(
    shot: Annotated[str, typer.Argument(help="The shot store, NAME.stmshot; or a plate, for a new shot.")],
    new: Annotated[
        Path | None, typer.Option("--shot", help="The new store; beside the plate if not given.")
    ] = None,
    port: Annotated[int, typer.Option(help="0 chooses a free port.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in your browser.")] = True,
) -> None:
    """View a shot, paint masks, propagate and export, in a page that only you can open."""
    from stm_plugin.review.serving import serve_review

    def say(line: str) -> None:
        output.print(line, highlight=False, markup=False, soft_wrap=True)

    serve_review(shot, new, port=port, browser=browser, say=say)
