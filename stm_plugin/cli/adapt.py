"""`stm adapt`: adapt the network to a shot's keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stm_plugin.cli.console import output, progress_bar
from stm_plugin.cli.guard import Wait
from stm_plugin.settings import DEFAULT_ADAPT_SECONDS

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from model.training.adapt import AdaptStep
    from stm_plugin.propagation.memory_forecast import AdaptationForecast
    from stm_plugin.store.description import AdaptationRecord


def adapt(
    shot: Annotated[Path, typer.Argument(help="The shot store, NAME.stmshot.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of training steps; the default is measured.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and keys give the same weights.")] = 0,
    seconds: Annotated[
        float, typer.Option(min=1, help="Stop after this time at the latest.")
    ] = DEFAULT_ADAPT_SECONDS,
    wait: Wait = 0.0,
) -> None:
    """Adapt the network to the shot's keys, and use the adaptation. Every matte is computed again.

    `stm shot set SHOT adapt=false` returns to the unchanged weights, and `adapt=true` to the adaptation.
    """
    from stm_plugin.propagation.adaptation import default_options
    from stm_plugin.shot.shot import Shot
    from stm_plugin.store.store import with_suffix

    with Shot.open(with_suffix(shot)) as opened:
        options = default_options(opened.settings)
        options = replace(options, seed=seed, steps=steps or options.steps)
        with AdaptPrinter(options.steps) as printer:
            record = opened.adapt(
                options, seconds=seconds, on_forecast=printer.forecast, on_step=printer, wait=wait
            )
        output.print(describe_adaptation(record), highlight=False, soft_wrap=True)
        for dirty in opened.status().dirty:
            output.print(str(dirty), highlight=False, markup=False)


class AdaptPrinter:
    """Shows the steps of adapting."""

    def __init__(self, steps: int) -> None:
        self._bar = progress_bar("steps")
        self._task = self._bar.add_task("adapt", total=steps)

    def __enter__(self) -> AdaptPrinter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def forecast(self, forecast: AdaptationForecast) -> None:
        """Prints how much memory it will need."""
        self._bar.console.print(f"memory: {forecast}", highlight=False, soft_wrap=True)

    def __call__(self, step: AdaptStep) -> None:
        self._bar.update(self._task, completed=step.step, description=f"adapt: loss {step.loss:.3f}")


def describe_adaptation(record: AdaptationRecord) -> str:
    """An adaptation in one line for people, with its licence."""
    keys = ", ".join(str(key) for key in sorted(record.keys))
    return (
        f"{record.base_name} adapted to the keys {keys} in {record.steps} steps ({record.id[:12]}); "
        f"licence: {record.licence}"
    )
