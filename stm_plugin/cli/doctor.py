"""`stm doctor`: checks every part of this installation and says how to repair it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stm_plugin.installation.doctor import doctor as examine
from stm_plugin.installation.prefix import Prefix, own_prefix


def doctor(
    prefix: Annotated[Path | None, typer.Option(help="The installation, if not this command's own.")] = None,
) -> None:
    """Check every part of this installation and say how to repair it; changes nothing."""
    status = examine(Prefix(own_prefix() if prefix is None else prefix.expanduser().absolute()))
    if status:
        raise typer.Exit(status)
