"""`stm eval`: J, F and J&F over a DAVIS-style folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from model.davis import find_sequences, read_split
from model.evaluate import EvaluationProtocol, NetworkSegmenter, evaluate_network, evaluate_results
from model.inference import FastNetwork, Precision
from model.memory import MemoryRule
from model.weights import load_network
from stm_plugin.cli.console import errors, output, progress_bar
from stm_plugin.device import pick_device


def evaluate(
    folder: Annotated[Path, typer.Argument(help="JPEGImages/ and Annotations/ of DAVIS or YouTube-VOS.")],
    sequences: Annotated[list[str] | None, typer.Option("--sequence", help="Only these; repeatable.")] = None,
    split: Annotated[Path | None, typer.Option(help="A DAVIS ImageSets file with names.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Measure the PNGs in this folder instead of running the network.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions and CSV tables.")] = None,
    weights: Annotated[str, typer.Option(help="A shipped name or a file.")] = "stm-lite",
    rule: Annotated[str, typer.Option(help="first, previous, first+previous or every:N.")] = "every:5",
    short_side: Annotated[int, typer.Option(help="Working size in pixels.")] = 480,
    protocol: Annotated[EvaluationProtocol, typer.Option(help="Which frames count.")] = "davis",
    precision: Annotated[Precision, typer.Option(help="Of the convolutions.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """J, F and J&F with the DAVIS definitions: of the network, or of results that are there already."""
    names = [*(sequences or ()), *(read_split(split) if split else ())]
    if results is not None:
        scores = evaluate_results(find_sequences(folder, names), results, protocol)
    else:
        network, manifest = load_network(weights)
        errors.print(
            f"{manifest.name} ({manifest.architecture}); licence: {manifest.licence}", highlight=False
        )
        engine = FastNetwork(network, device=pick_device(device), precision=precision)
        segmenter = NetworkSegmenter(engine, MemoryRule.parse(rule), short_side)
        with progress_bar() as bar:
            tasks: dict[str, TaskID] = {}

            def progress(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=total)
                bar.update(tasks[name], completed=done)

            scores = evaluate_network(
                find_sequences(folder, names), segmenter, protocol, results=out, progress=progress
            )
    output.print(scores.table(), highlight=False)
    if out is not None:
        for path in scores.write_csv(out):
            output.print(f"written: {path}", highlight=False)
