"""`stm train`: the two stages of the paper's recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from model.recipe import IMAGENET, Monitor, Stage, TrainingData, read_config
from model.recipe import train as train_stage
from model.train import Losses, Trainer
from stm_plugin.cli.console import errors, progress_bar

app = typer.Typer(help="Train weights of your own (paper section 3.5).", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(help="Folder of the run; one that was begun is resumed.")]
Videos = Annotated[list[Path] | None, typer.Option("--videos", help="DAVIS or YouTube-VOS root; repeatable.")]
Stills = Annotated[
    list[Path] | None, typer.Option("--stills", help="Folder of images/ and masks/; repeatable.")
]
Weights = Annotated[list[float] | None, typer.Option("--still-weight", help="Share of each --stills folder.")]
LeaveOut = Annotated[
    list[str] | None, typer.Option("--leave-out", help="Video never trained on; repeatable.")
]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with options of TrainingConfig.")]
Steps = Annotated[int | None, typer.Option(help="Length of the run.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Workers = Annotated[int, typer.Option(help="Processes that prepare samples.")]
Start = Annotated[str, typer.Option("--from", help="imagenet, random, weights, or the folder of a run.")]
EvaluateEvery = Annotated[
    int, typer.Option(help="Steps between evaluations of the left-out videos; 0: none.")
]


@app.command()
def stills(
    run: Run,
    stills: Stills = None,
    still_weight: Weights = None,
    start: Start = IMAGENET,
    config: Config = None,
    steps: Steps = None,
    device: Device = "cpu",
    workers: Workers = 1,
) -> None:
    """First stage: synthetic clips from stills."""
    data = TrainingData(stills=stills or (), still_weights=still_weight or ())
    _run("stills", run, data, start, config, steps, device, workers, None)


@app.command()
def video(
    run: Run,
    videos: Videos = None,
    stills: Stills = None,
    still_weight: Weights = None,
    leave_out: LeaveOut = None,
    start: Start = IMAGENET,
    config: Config = None,
    steps: Steps = None,
    device: Device = "cpu",
    workers: Workers = 1,
    evaluate_every: EvaluateEvery = 0,
) -> None:
    """Second stage: real videos, with stills mixed in where they are given."""
    data = TrainingData(videos or (), stills or (), still_weight or (), leave_out or ())
    monitor = None
    if evaluate_every and leave_out and videos:
        monitor = Monitor(videos[0], leave_out, evaluate_every)
    _run("video", run, data, start, config, steps, device, workers, monitor)


def _run(
    stage: Stage,
    folder: Path,
    data: TrainingData,
    start: str,
    config_path: Path | None,
    steps: int | None,
    device: str,
    workers: int,
    monitor: Monitor | None,
) -> None:
    if "LOCAL_RANK" in os.environ:  # under torchrun
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
    config = read_config(stage, config_path, steps=steps)
    with progress_bar("steps") as bar:
        task = bar.add_task(f"train {stage}", total=config.steps)

        def progress(trainer: Trainer, losses: Losses) -> None:
            bar.update(
                task,
                completed=trainer.step,
                description=f"train {stage}: loss {float(losses.total):.3f}, IoU {float(losses.iou):.2f}",
            )

        source = None if start == "random" else start
        train_stage(
            folder,
            config,
            data,
            start=source,
            device=device,
            workers=workers,
            monitor=monitor,
            progress=progress,
        )
    errors.print(f"Done: {folder}. `stm weights export` makes a weights file of it.", highlight=False)
    if dist.is_initialized():
        dist.destroy_process_group()
