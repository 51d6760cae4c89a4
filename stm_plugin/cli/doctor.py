"""`stm doctor`: what of this installation is in order, what is not, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stm_plugin.installation.doctor import doctor as examine
from stm_plugin.installation.prefix import Prefix, own_prefix


def doctor(
    prefix: Annotated[Path | None, typer.Option(help="The installation, if not this command's own.")] = None,
) -> None:
    """Say of every part of this installation whether it is in order; changes nothing."""
    status = examine(Prefix(own_prefix() if prefix is None else prefix.expanduser().absolute()))
    if status:
        raise typer.Exit(status)
