"""`stm doctor`: checks every part of this installation and says how to repair it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stm_plugin.installation.doctor import doctor as examine
from stm_plugin.installation.prefix import Prefix, own_prefix


def doctor(
    prefix: Annotated[Path | None, typer.Option(help="The installation, if not this command's own.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a zip for whoever helps: versions, configuration, logs, no picture."),
    ] = None,
) -> None:
    """Check every part of this installation and say how to repair it; changes nothing."""
    found = Prefix(own_prefix() if prefix is None else prefix.expanduser().absolute())
    if report is not None:
        from stm_plugin.installation.report import write_report

        names = write_report(found, found.python or Path(sys.executable), report.expanduser().absolute())
        print(f"{report}: {', '.join(names)}")
        print("Logs name the files that were worked on: read them before you send it on.")
        return
    status = examine(found)
    if status:
        raise typer.Exit(status)
