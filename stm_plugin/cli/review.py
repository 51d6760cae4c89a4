"""`stm review`: look at a shot and correct it in a browser on this machine."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from stm_plugin.cli.console import output
from stm_plugin.errors import SettingsError


def review(
    shot: Annotated[str, typer.Argument(help="The shot store, NAME.stmshot; or a plate, for a new shot.")],
    new: Annotated[
        Path | None, typer.Option("--shot", help="Where a plate's new shot store goes (beside the plate).")
    ] = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in your browser.")] = True,
) -> None:
    """Look at a shot, paint masks, propagate and export, in a page that only you can open."""
    try:
        from stm_plugin.review.app import make_server
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The page needs a package that is not installed ({error.name}).",
            hint="Run `python3 install.py --review`.",
        ) from error
    from stm_plugin.review.opening import open_for_review
    from stm_plugin.review.proxies import PictureCache, cache_folder
    from stm_plugin.review.session import ReviewSession

    opened = open_for_review(shot, new)
    session = ReviewSession(opened, PictureCache(cache_folder() / opened.folder.name))
    try:
        server = make_server(session, port)
        output.print(f"{opened.folder}", highlight=False, soft_wrap=True)
        output.print(f"Open {server.address}", highlight=False, soft_wrap=True)
        output.print("The address works once, on this machine only. Ctrl-C ends the page.", highlight=False)
        if browser:
            webbrowser.open(server.address)
        server.run()
    finally:
        session.close()
