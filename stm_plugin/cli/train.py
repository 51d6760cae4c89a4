"""`stm train`: the two stages of the paper's recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stm_plugin.cli.console import errors, progress_bar
from stm_plugin.cli.guard import Overwrite, check_new, check_single, folders_of, given_of
from stm_plugin.files.outputs import check_folder

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from model.data.davis import VideoSequence
    from model.training.recipe import Stage
    from model.training.trainer import Losses, Trainer, TrainingConfig

app = typer.Typer(help="Train weights of your own (paper section 3.5).", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(help="Folder of the run; one that was begun is resumed.")]
Videos = Annotated[list[str] | None, typer.Option("--videos", help="DAVIS or YouTube-VOS root; repeatable.")]
Stills = Annotated[
    list[str] | None, typer.Option("--stills", help="Folder of images/ and masks/; repeatable.")
]
Instances = Annotated[
    list[str] | None,
    typer.Option(
        "--instances", help="Folder of images/ and labels/: several things of one kind; repeatable."
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option("--still-weight", help="Share of each --stills, then of each --instances folder."),
]
LeaveOut = Annotated[
    list[str] | None, typer.Option("--leave-out", help="Video never trained on; repeatable.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with options of TrainingConfig; options win over it."),
]
Steps = Annotated[int | None, typer.Option(help="Length of the run.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Workers = Annotated[int, typer.Option(help="Processes that prepare samples.")]
Start = Annotated[
    str | None, typer.Option("--from", help="imagenet, random, weights, or the folder of a run.")
]
EvaluateEvery = Annotated[
    int,
    typer.Option(help="Steps between evaluations: curves, a grid of predictions, held-out scores. 0: none."),
]
EvaluateOn = Annotated[
    Path | None,
    typer.Option(help="DAVIS-style folder with held-out videos; else those that --leave-out names."),
]

EVALUATE_EVERY = 250
_DATA = "the training data"


@app.command()
def stills(
    run: Run,
    stills: Stills = None,
    instances: Instances = None,
    still_weight: Weights = None,
    start: Start = None,
    config: Config = None,
    steps: Steps = None,
    device: Device = "cpu",
    workers: Workers = 1,
    evaluate_every: EvaluateEvery = EVALUATE_EVERY,
    evaluate_on: EvaluateOn = None,
) -> None:
    """First stage: synthetic clips from stills."""
    from model.training.recipe import read_config

    given = read_config(
        "stills",
        config,
        stills=stills,
        instances=instances,
        still_weights=still_weight,
        start=start,
        steps=steps,
    )
    _run("stills", run, given, device, workers, evaluate_every, evaluate_on)


@app.command()
def video(
    run: Run,
    videos: Videos = None,
    stills: Stills = None,
    instances: Instances = None,
    still_weight: Weights = None,
    leave_out: LeaveOut = None,
    start: Start = None,
    config: Config = None,
    steps: Steps = None,
    device: Device = "cpu",
    workers: Workers = 1,
    evaluate_every: EvaluateEvery = EVALUATE_EVERY,
    evaluate_on: EvaluateOn = None,
) -> None:
    """Second stage: real videos, with stills mixed in where they are given."""
    from model.training.recipe import read_config

    given = read_config(
        "video",
        config,
        run=run,
        videos=videos,
        stills=stills,
        instances=instances,
        still_weights=still_weight,
        leave_out=leave_out,
        start=start,
        steps=steps,
    )
    _run("video", run, given, device, workers, evaluate_every, evaluate_on)


@app.command()
def clips(
    folder: Annotated[
        Path, typer.Argument(help="The clips' folder (DAVIS layout); existing clips are kept.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Number of the first clip.")] = 0,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Folder of pictures for textures; repeatable.")
    ] = None,
    cut_outs: Annotated[
        list[str] | None,
        typer.Option(help="Folder of images/ and labels/ or masks/: things to cut out; repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of the names of cut-outs that are used, such as cat_*; repeatable."),
    ] = None,
) -> None:
    """Makes clips with exactly known labels, from material that allows commercial use."""
    from model.data.pictures import PICTURE_SUFFIXES
    from model.training.clips import still_sources
    from model.training.synthetic_clips import HELD_OUT, write_clips
    from stm_plugin.errors import SettingsError

    if seed < HELD_OUT.stop and seed + count > HELD_OUT.start:
        raise SettingsError(
            f"The seeds {HELD_OUT.start} to {HELD_OUT.stop - 1} are of clips that only measure: "
            "choose another --seed."
        )
    check_folder(folder, folders_of("the pictures", *(pictures or ()), *(cut_outs or ())))
    found = [path for root in pictures or () for path in sorted(root.iterdir())]
    found = [path for path in found if path.suffix.lower() in PICTURE_SUFFIXES]
    cuts = [
        source
        for root in cut_outs or ()
        for source in still_sources(Path(root), instances=True, only=only or ())
    ]
    with progress_bar("clips") as bar:
        task = bar.add_task("clips", total=count)
        for _ in write_clips(
            folder,
            range(seed, seed + count),
            pictures=found,
            cut_outs=[(source.pictures[0], source.labels[0]) for source in cuts],
        ):
            bar.advance(task)


@app.command()
def pack(
    archive: Annotated[Path, typer.Argument(help="File to write, a tar.")],
    videos: Videos = None,
    stills: Stills = None,
    instances: Instances = None,
    still_weight: Weights = None,
    leave_out: LeaveOut = None,
    start: Start = None,
    config: Config = None,
    run: Annotated[Path | None, typer.Option("--run", help="A begun run that is to go on there.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="MiB of the archive at most.")] = 60,
    video_step: Annotated[int, typer.Option(min=1, help="Only every so many-th frame of videos.")] = 1,
    still_step: Annotated[int, typer.Option(min=1, help="Only every so many-th picture of --stills.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Packs data, start and configuration of a run for a machine with limited time."""
    from model.training.archive import Steps
    from model.training.archive import pack as pack_run
    from model.training.recipe import read_config
    from stm_plugin.cli.console import output
    from stm_plugin.errors import SettingsError

    try:
        given = read_config(
            "video",
            config,
            run=run,
            videos=videos,
            stills=stills,
            instances=instances,
            still_weights=still_weight,
            leave_out=leave_out,
            start=start,
        )
    except (ValueError, OSError) as error:
        raise SettingsError(f"The run cannot be packed: {error}") from error
    folders = (*given.videos, *given.stills, *given.instances)
    inputs = given_of(
        [],
        *(("training data", Path(one)) for one in folders),
        ("the configuration", config),
        ("a file of the begun run", run),
        ("the weights of the start", Path(given.start)),
    )
    check_single([archive], inputs, overwrite, folders_of(_DATA, *folders))
    try:
        steps = Steps(video_step, still_step)
        packed = pack_run(given, archive, run=run, limit=limit * 2**20, steps=steps)
    except (ValueError, OSError) as error:
        raise SettingsError(f"The run cannot be packed: {error}") from error
    output.print(
        f"{archive}: {packed.pictures} pictures, short side {packed.fidelity.short_side} at most, "
        f"quality {packed.fidelity.quality}, {packed.size / 2**20:.1f} MiB",
        highlight=False,
    )


@app.command()
def timed(
    archive: Annotated[Path, typer.Argument(help="From `stm train pack`.")],
    run: Annotated[Path, typer.Argument(help="A new folder.")],
    minutes: Annotated[float, typer.Option(help="For everything.")],
    device: Device = "cuda",
    workers: Workers = 8,
) -> None:
    """Trains from an archive and ends in time, with the results in RUN/result.tar."""
    from model.training.archive import train_for
    from stm_plugin.cli.console import output
    from stm_plugin.errors import SettingsError

    def progress(trainer: Trainer, losses: Losses) -> None:
        if trainer.step % 20 == 0:
            errors.print(
                f"step {trainer.step} of {trainer.config.steps}: loss {float(losses.total):.3f}, "
                f"IoU {float(losses.iou):.2f}",
                highlight=False,
            )

    if "RANK" not in os.environ:  # processes that train together unpack into one folder
        check_new(run)
    try:
        result = train_for(archive, run, minutes, device=device, workers=workers, progress=progress)
    except (ValueError, OSError) as error:
        raise SettingsError(f"The packed run cannot be trained: {error}") from error
    output.print(str(result), highlight=False)


@app.command()
def collect(
    result: Annotated[Path, typer.Argument(help="The result.tar that `stm train timed` wrote.")],
    run: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Unpacks the result of `stm train timed`: the run can be exported, measured or continued."""
    from model.training.archive import collect as collect_run
    from stm_plugin.errors import SettingsError

    check_new(run)
    try:
        collect_run(result, run)
    except (ValueError, OSError) as error:
        raise SettingsError(f"{result} cannot be taken home: {error}") from error
    errors.print(f"{run}: go on with `--from {run}`, or export it.", highlight=False)


@app.command()
def edges(
    run: Run,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of pictures for textures, beside scikit-image's; repeatable."),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips of the pool.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Length of the run.")] = 8000,
    weights: Annotated[str, typer.Option(help="The network whose masks are refined.")] = "stm-lite",
    start: Annotated[
        str | None, typer.Option("--from", help="edges-lite or a file; random weights if not given.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Highest learning rate; less to go on from weights.")] = 1e-3,
    softer: Annotated[bool, typer.Option(help="More fur and blur, as for the last part of a run.")] = False,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    name: Annotated[str, typer.Option(help="Name shown to people.")] = "edges",
    licence: Annotated[str, typer.Option(help="Under which the weights may be used.")] = "in house",
) -> None:
    """The edge refiner: makes clips with exactly known alpha, and trains on them."""
    from model.training.edge_clips import SHARES, SOFTER
    from model.training.edge_recipe import WEIGHTS, EdgeMaterial, train_edges
    from model.training.edge_trainer import EdgeTraining
    from model.weights_file import Manifest, WeightsFileError
    from stm_plugin.cli.console import output
    from stm_plugin.errors import SettingsError

    check_folder(run, folders_of("the pictures", *(pictures or ())))
    data = ("composites with exactly known alpha (model/training/edge_clips.py)", *map(str, pictures or ()))
    manifest = Manifest(name, "", licence, data, f"{clips} clips, {steps} steps, masks by {weights}")
    with progress_bar("steps") as bar:
        making = bar.add_task("clips", total=clips)
        learning = bar.add_task("train edges", total=steps)
        try:
            written = train_edges(
                run,
                EdgeTraining(steps=steps, rate=rate, seed=seed),
                manifest,
                EdgeMaterial(clips, pictures or (), weights, SOFTER if softer else SHARES),
                start=start,
                on_clip=lambda number: bar.update(making, completed=number),
                on_step=lambda step, parts: bar.update(
                    learning, completed=step, description=f"train edges: loss {parts['loss']:.3f}"
                ),
            )
        except (WeightsFileError, ValueError, OSError) as error:
            raise SettingsError(f"The refiner cannot be trained: {error}.") from error
    output.print(f"{run / WEIGHTS}: {written.architecture}, sha256 {written.sha256}")


def _run(
    stage: Stage,
    folder: Path,
    config: TrainingConfig,
    device: str,
    workers: int,
    evaluate_every: int,
    evaluate_on: Path | None,
) -> None:
    from model.data.davis import find_sequences
    from model.training.processes import is_first, joined_processes
    from model.training.recipe import Monitor, held_out_videos
    from model.training.recipe import train as train_stage
    from model.training.trainer import continued_config

    with joined_processes(device) as here:
        config = continued_config(folder, config)
        check_folder(folder, folders_of(_DATA, *config.videos, *config.stills, *config.instances))
        held_out: Sequence[VideoSequence] = (
            find_sequences(evaluate_on) if evaluate_on is not None else held_out_videos(config)
        )
        speaks = is_first()
        bar = progress_bar("steps")
        bar.disable = not speaks
        with bar:
            task = bar.add_task(f"train {stage}", total=config.steps)

            def progress(trainer: Trainer, losses: Losses) -> None:
                bar.update(
                    task,
                    completed=trainer.step,
                    description=f"train {stage}: loss {float(losses.total):.3f}, IoU {float(losses.iou):.2f}",
                )

            train_stage(
                folder,
                config,
                device=here,
                workers=workers,
                monitor=Monitor(held_out, evaluate_every) if evaluate_every else None,
                progress=progress,
            )
    if speaks:
        errors.print(f"Done: {folder}. `stm weights export` makes a weights file of it.", highlight=False)
