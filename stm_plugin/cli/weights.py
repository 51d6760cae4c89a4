"""`stm weights`: list, convert and export weights files, and take their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from model.weights_file import (
    Manifest,
    convert_published,
    read_manifest,
    save_mean,
    shipped_edges,
    shipped_weights,
)
from stm_plugin.cli.console import output
from stm_plugin.cli.guard import Overwrite, check_single, given_of
from stm_plugin.errors import SettingsError

app = typer.Typer(help="List, convert, export and mix weights.", no_args_is_help=True)


@app.command("list")
def list_weights() -> None:
    """List the weights that ship with the plug-in."""
    output.print(weights_table())


@app.command()
def convert(
    pth: Annotated[Path, typer.Argument(help="STM_weights.pth, as the authors of STM released it.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Turn the released STM weights into a safetensors file; code inside the .pth is never run."""
    _check(out, ("the weights", pth), overwrite=overwrite)
    manifest = convert_published(pth, out)
    output.print(f"{out}: {manifest.architecture}, {manifest.licence}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    name: Annotated[str, typer.Option(help="Name shown to people.")],
    licence: Annotated[
        str, typer.Option(help="In words; `non-commercial` and `free for commercial use` are understood.")
    ],
    data: Annotated[list[str], typer.Option(help="A training set with its licence. May be repeated.")],
    recipe: Annotated[str, typer.Option(help="How they were trained, in words.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Write the averaged weights of a training run as a weights file (fp16)."""
    from model.training.recipe import export as export_run

    _check(out, ("a file of the training run", run), overwrite=overwrite)
    stated = Manifest(name=name, architecture="", licence=licence, data=tuple(data), recipe=recipe)
    manifest = export_run(run, stated, out)
    output.print(f"{out}: {manifest.architecture}, sha256 {manifest.sha256}")


@app.command()
def mean(
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    parts: Annotated[list[str], typer.Argument(help="Weights by name or file, with their shares: NAME=0.7")],
    name: Annotated[str, typer.Option(help="Name shown to people.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the mean of several weights (fp16). Its licence is the strictest of theirs."""
    shares = [_share_of(part) for part in parts]
    _check(out, *(("the weights", Path(one)) for one, _ in shares), overwrite=overwrite)
    try:
        manifest = save_mean(shares, name, out)
    except ValueError as error:
        raise SettingsError(f"The mean cannot be taken: {error}.") from error
    output.print(f"{out}: {manifest.architecture}, {manifest.licence}, sha256 {manifest.sha256}")


def _share_of(part: str) -> tuple[str, float]:
    """`NAME=0.7`: the name, and the share."""
    name, _, share = part.rpartition("=")
    try:
        return name, float(share)
    except ValueError:
        raise SettingsError(f"{part}: give weights with their share, as in stm-lite=0.7") from None


def _check(out: Path, *sources: tuple[str, Path], overwrite: bool) -> None:
    """Check the outputs: a weights file and the manifest beside it."""
    shipped = (*shipped_weights(), *shipped_edges())
    given = given_of([], *sources, *(("the shipped weights", path) for path in shipped))
    check_single([out, out.with_suffix(".json")], given, overwrite)


def weights_table(*, with_scores: bool = True) -> Table:
    """The shipped weights for people, in blocks that fit a narrow terminal. Without scores the licence is
    stated where it restricts the use."""
    table = Table.grid(padding=(0, 2))
    for path in (*shipped_weights(), *shipped_edges()):
        manifest = read_manifest(path)
        table.add_row("weights", f"{path.stem} ({manifest.architecture})")
        table.add_row("  use", manifest.use)
        if with_scores or manifest.use != "commercial use allowed":
            table.add_row("  licence", manifest.licence)
        scores = [f"{name}: {value:.3f}" for name, value in manifest.scores.items() if with_scores]
        for number, score in enumerate(scores):
            table.add_row("" if number else "  scores", score)
        table.add_row("  sha256", manifest.sha256)
    return table
