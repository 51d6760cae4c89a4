"""Opening the page of a shot store or a plate in a browser."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from stm_plugin.errors import SettingsError

_say_at_once: Final = partial(print, flush=True)
"""Also into a file or a pipe: the page serves until it is ended."""


def serve_review(
    text: str,
    new: Path | None = None,
    *,
    port: int = 0,
    browser: bool = True,
    say: Callable[[str], None] = _say_at_once,
) -> None:
    """Serve the page of a shot until Ctrl-C.

    Args:
        text, new: as in `open_for_review`.
        port: 0 chooses a free one.
        browser: whether to open the page in the user's browser.
        say: is called with each line for people.

    Raises:
        SettingsError: the packages of the page are not installed.
        StmError: the shot cannot be opened, or the port is taken.
    """
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

    shot = open_for_review(text, new)
    session = ReviewSession(shot, PictureCache(cache_folder() / shot.folder.name))
    try:
        server = make_server(session, port)
        say(str(shot.folder))
        say(f"Open {server.address}")
        say("The address works once, on this machine only. Ctrl-C ends the page.")
        if browser:  # in a thread, because some browsers return only at their end
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        server.run()
    finally:
        session.close()
