"""`stm eval`: J and F over a DAVIS-style folder, and the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from model.evaluation.protocol import TABLE_5_RULES, WORKING_SHORT_SIDE, EvaluationProtocol
from model.weights_file import DEFAULT_WEIGHTS
from stm_plugin.cli.console import errors, output, progress_bar
from stm_plugin.cli.guard import Overwrite, folders_of, given_of
from stm_plugin.files.outputs import Given, listed_outputs
from stm_plugin.settings import Precision

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from model.data.davis import VideoSequence
    from model.evaluation.evaluate import Evaluation, NetworkSegmenter, Progress
    from model.evaluation.read_picture import Point
    from model.evaluation.tables import Comparison
    from model.inference.fast_network import FastNetwork

DEFAULT_COMMAND = "scores"
_SCORES = ("global.csv", "per_sequence.csv", "per_object.csv", "per_frame.csv")
_DATA = "the data set"


class DefaultCommandGroup(TyperGroup):
    """`stm eval DATASET` is `stm eval scores DATASET`; a data set named like a command is `./NAME`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Measure results or a network: `stm eval DATASET` prints J and F (the paper's tables 2 and 3). "
    "Its other tables and figures have separate commands.",
)

Dataset = Annotated[
    Path, typer.Argument(help="Folder with JPEGImages/ and Annotations/ of DAVIS or YouTube-VOS.")
]
Sequences = Annotated[list[str] | None, typer.Option("--sequence", help="Only these; repeatable.")]
Split = Annotated[Path | None, typer.Option(help="A DAVIS ImageSets file with names.")]
Weights = Annotated[str, typer.Option(help="A shipped name or a file.")]
Rule = Annotated[str, typer.Option(help="first, previous, first+previous or every:N.")]
Rules = Annotated[list[str] | None, typer.Option("--rule", help="Memory rule; repeatable.")]
ShortSide = Annotated[int, typer.Option(help="Working size in pixels.")]
ProtocolOption = Annotated[EvaluationProtocol, typer.Option("--protocol", help="Which frames count.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Of the convolutions.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
PreviousFrameCap = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Largest share of a read from the previous frame; 1 is the paper's. Else the network's.",
    ),
]
KeyWeight = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of the rest that is read from keys alone. Else the network's."),
]
ShrinkGuard = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Share of an area that may be lost in one frame under that cap; 1: any. Else the network's.",
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for predictions, CSV tables and curves.")]

DEFAULT_RULE = TABLE_5_RULES[-1]


@app.command(DEFAULT_COMMAND)
def scores(
    folder: Dataset,
    sequences: Sequences = None,
    split: Split = None,
    results: Annotated[
        Path | None, typer.Option(help="Measure the PNGs in this folder instead of running the network.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for predictions and CSV tables.")] = None,
    weights: Weights = DEFAULT_WEIGHTS,
    rule: Rule = DEFAULT_RULE,
    short_side: ShortSide = WORKING_SHORT_SIDE,
    protocol: ProtocolOption = "davis",
    precision: PrecisionOption = "float32",
    device: Device = "auto",
    backward: Annotated[
        bool,
        typer.Option("--backward", help="From the last frame to the first: a second test of the weights."),
    ] = False,
    step: Annotated[
        int, typer.Option(min=1, help="Only every STEP-th frame: faster motion, a further test.")
    ] = 1,
    previous_frame_cap: PreviousFrameCap = None,
    key_weight: KeyWeight = None,
    shrink_guard: ShrinkGuard = None,
    overwrite: Overwrite = False,
) -> None:
    """J, F and J&F with the DAVIS definitions: of the network, or of existing results.

    Tables 2 and 3 of the paper, on DAVIS-2016 and 2017.
    """
    from model.evaluation.evaluate import NetworkSegmenter
    from model.network.memory import MemoryRule

    found = _find(folder, sequences, split)
    if backward:
        found = [sequence.backward for sequence in found]
    found = [sequence.stepped(step) for sequence in found]
    with _outputs(out, folder, found, overwrite, results=results, files=_SCORES):
        segmenter = None
        if results is None:
            engine = _engine(weights, device, precision, previous_frame_cap, key_weight, shrink_guard)
            segmenter = NetworkSegmenter(engine, MemoryRule.parse(rule), short_side)
        measured = _measure(found, protocol, segmenter, results, out)
        output.print(measured.table(), highlight=False)
        if out is not None:
            _say_written(measured.write_csv(out))


@app.command()
def submission(
    folder: Dataset,
    out: Annotated[Path, typer.Argument(help="Folder for NAME/FRAME.png, to be packed and sent in.")],
    meta: Annotated[
        Path | None, typer.Option(help="meta.json of YouTube-VOS: only the frames that it names.")
    ] = None,
    sequences: Sequences = None,
    split: Split = None,
    weights: Weights = DEFAULT_WEIGHTS,
    rule: Rule = DEFAULT_RULE,
    short_side: ShortSide = WORKING_SHORT_SIDE,
    precision: PrecisionOption = "float32",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Results for a benchmark's server, where only each object's first mask is known.

    YouTube-VOS validation, DAVIS-2017 test.
    """
    from model.evaluation.evaluate import submission_frames, write_submission

    found = _find(folder, sequences, split)
    frames = submission_frames(meta) if meta else None
    with _outputs(out, folder, found, overwrite), _progress() as progress:
        segmenter = _segmenter(weights, device, precision, rule, short_side)
        written = write_submission(found, segmenter, out, frames=frames, progress=progress)
    output.print(f"written: {written} label pictures of {len(found)} sequences to {out}", highlight=False)


@app.command()
def table1(
    folder: Dataset,
    meta: Annotated[Path, typer.Option(help="meta.json of the sequences that are measured.")],
    training_meta: Annotated[Path, typer.Option(help="meta.json of what the weights were trained on.")],
    results: Annotated[
        Path | None, typer.Option(help="Measure the PNGs in this folder instead of running the network.")
    ] = None,
    sequences: Sequences = None,
    split: Split = None,
    out: Out = None,
    weights: Weights = DEFAULT_WEIGHTS,
    rule: Rule = DEFAULT_RULE,
    short_side: ShortSide = WORKING_SHORT_SIDE,
    precision: PrecisionOption = "float32",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """YouTube-VOS: J and F of seen and unseen categories, and the mean of the four."""
    from model.evaluation.tables import (
        TABLE_FILE,
        Comparison,
        by_group,
        category_groups,
        overall_of_groups,
    )

    groups = category_groups(meta, training_meta)
    found = _find(folder, sequences, split)
    with _outputs(out, folder, found, overwrite, results=results, files=(*_SCORES, TABLE_FILE)):
        segmenter = None if results else _segmenter(weights, device, precision, rule, short_side)
        measured = _measure(found, "youtube-vos", segmenter, results, out)
        parts = by_group(measured, groups)
        comparison = Comparison("categories", parts)
        output.print(comparison.table(), highlight=False)
        output.print(f"overall {100 * overall_of_groups(parts):.1f}", highlight=False)
        if out is not None:
            _say_written([*measured.write_csv(out), comparison.write_csv(out / TABLE_FILE)])


@app.command()
def table4(
    folder: Dataset,
    weights: Annotated[
        list[str],
        typer.Option(help="NAME=WEIGHTS of a row, such as full=stm-lite or pre-training=FILE; repeatable."),
    ],
    sequences: Sequences = None,
    split: Split = None,
    out: Out = None,
    rule: Rule = DEFAULT_RULE,
    short_side: ShortSide = WORKING_SHORT_SIDE,
    protocol: ProtocolOption = "davis",
    precision: PrecisionOption = "float32",
    device: Device = "auto",
    previous_frame_cap: PreviousFrameCap = None,
    key_weight: KeyWeight = None,
    shrink_guard: ShrinkGuard = None,
    overwrite: Overwrite = False,
) -> None:
    """Several weights on one data set: pre-training only, main training only, full, cross."""
    from model.evaluation.tables import compare_weights

    named = dict(_named(text) for text in weights)
    found = _find(folder, sequences, split)
    with _outputs(out, folder, found, overwrite, rows=tuple(named)), _progress() as progress:
        engines = {
            name: _engine(file, device, precision, previous_frame_cap, key_weight, shrink_guard)
            for name, file in named.items()
        }
        comparison = compare_weights(
            found, engines, rule, protocol, short_side=short_side, out=out, progress=progress
        )
    _show(comparison, out)


@app.command()
def table5(
    folder: Dataset,
    rules: Rules = None,
    sequences: Sequences = None,
    split: Split = None,
    out: Out = None,
    weights: Weights = DEFAULT_WEIGHTS,
    short_side: ShortSide = WORKING_SHORT_SIDE,
    protocol: ProtocolOption = "davis",
    precision: PrecisionOption = "float32",
    device: Device = "auto",
    previous_frame_cap: PreviousFrameCap = None,
    key_weight: KeyWeight = None,
    shrink_guard: ShrinkGuard = None,
    overwrite: Overwrite = False,
) -> None:
    """Memory rules, with J, F and time per frame: first, previous, both, every fifth frame."""
    from model.evaluation.tables import compare_memory_rules

    found = _find(folder, sequences, split)
    chosen = tuple(rules or TABLE_5_RULES)
    with _outputs(out, folder, found, overwrite, rows=chosen), _progress() as progress:
        comparison = compare_memory_rules(
            found,
            _engine(weights, device, precision, previous_frame_cap, key_weight, shrink_guard),
            chosen,
            protocol,
            short_side=short_side,
            out=out,
            progress=progress,
        )
    _show(comparison, out)


@app.command()
def figure5(
    folder: Dataset,
    out: Annotated[Path, typer.Option(help="The PNG to write; a CSV of the same name is written beside it.")],
    sequence: Annotated[str | None, typer.Option(help="The first one if not given.")] = None,
    frame: Annotated[
        str | None, typer.Option(help="The query's name or number; else the middle one.")
    ] = None,
    object_label: Annotated[int | None, typer.Option("--object", help="Label; else the lowest one.")] = None,
    points: Annotated[
        list[str] | None,
        typer.Option("--point", help="X,Y in the query picture; repeatable. Else one inside the object."),
    ] = None,
    weights: Weights = DEFAULT_WEIGHTS,
    rule: Rule = DEFAULT_RULE,
    short_side: ShortSide = WORKING_SHORT_SIDE,
    precision: PrecisionOption = "float32",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """A picture of the read's weights over the frames in memory.

    One block for the whole object, and one for each point.
    """
    from model.data.davis import find_sequences
    from model.evaluation.read_picture import capture, draw, read_from, write_reading

    chosen = [_point(text) for text in points or ()]
    video = find_sequences(folder, [sequence] if sequence else [])[0]
    name = video.frames[len(video.frames) // 2] if frame is None else _frame_name(video, frame)
    table = out.with_suffix(".csv")
    given, folders = given_of([video]), folders_of(_DATA, folder)
    with listed_outputs(out.parent, [out, table], given, overwrite, folders), _progress() as progress:
        segmenter = _segmenter(weights, device, precision, rule, short_side)
        read = capture(video, segmenter, name, object_label, progress=progress)
        if read.query.mask.any():
            readings = [read_from(read), *(read_from(read, p) for p in chosen or [read.inner_point()])]
        else:  # an object that is hidden on the query frame has no block; --point can show its memory
            readings = [read_from(read, point) for point in chosen] or [read_from(read)]
        out.parent.mkdir(parents=True, exist_ok=True)
        draw(read, readings).save(out)
        _say_written([out, write_reading(table, read, readings)])


@app.command()
def figure7(
    folder: Annotated[Path, typer.Argument(help="A data set, or the --out of table4 or table5.")],
    out: Annotated[Path, typer.Option(help="Folder for sorted_j.csv and sorted_j.png.")],
    rules: Rules = None,
    sequences: Sequences = None,
    split: Split = None,
    weights: Weights = DEFAULT_WEIGHTS,
    short_side: ShortSide = WORKING_SHORT_SIDE,
    protocol: ProtocolOption = "davis",
    precision: PrecisionOption = "float32",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """J of all frames, sorted, for several memory rules (or for what table4 or table5 compared)."""
    from model.evaluation.tables import CURVE_FILES, TABLE_FILE, Comparison

    if (folder / TABLE_FILE).is_file():
        comparison = Comparison.read(folder).only(rules or ())
        with listed_outputs(out, [out / name for name in CURVE_FILES], [], overwrite):
            _say_written(comparison.write_curves(out))
        return
    table5(
        *(folder, rules, sequences, split, out, weights),
        short_side=short_side,
        protocol=protocol,
        precision=precision,
        device=device,
        overwrite=overwrite,
    )


def _find(folder: Path, names: Sequence[str] | None, split: Path | None) -> list[VideoSequence]:
    from model.data.davis import find_sequences, read_split

    return find_sequences(folder, [*(names or ()), *(read_split(split) if split else ())])


def _outputs(
    out: Path | None,
    dataset: Path,
    found: Sequence[VideoSequence],
    overwrite: bool,
    *,
    results: Path | None = None,
    files: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> AbstractContextManager[None]:
    """Checks all outputs that an evaluation may write to `out`."""
    from model.evaluation.tables import CURVE_FILES, TABLE_FILE, row_folder

    if out is None:
        return listed_outputs(None, [], [], overwrite)
    folders = [row_folder(out, row) for row in rows] or [out]
    paths = [out / name for name in files]
    if rows:
        paths += [out / name for name in (TABLE_FILE, *CURVE_FILES)]
        paths += [folder / name for folder in folders for name in _SCORES]
    if results is None:
        paths += [
            folder / sequence.name / f"{frame}.png"
            for folder in folders
            for sequence in found
            for frame in sequence.frames
        ]
    given = given_of(found)
    if results is not None:
        given += [Given("a result that is measured", path) for path in results.rglob("*.png")]
    return listed_outputs(out, list(dict.fromkeys(paths)), given, overwrite, folders_of(_DATA, dataset))


def _engine(
    weights: str,
    device: str,
    precision: Precision,
    previous_frame_cap: float | None = None,
    key_weight: float | None = None,
    shrink_guard: float | None = None,
) -> FastNetwork:
    from model.inference.fast_network import FastNetwork
    from model.weights_file import load_network
    from stm_plugin.propagation.memory_forecast import pick_device

    network, manifest = load_network(weights)
    errors.print(f"{manifest.name} ({manifest.architecture}); licence: {manifest.licence}", highlight=False)
    return FastNetwork(
        network,
        device=pick_device(device),
        precision=precision,
        previous_frame_cap=previous_frame_cap,
        key_weight=key_weight,
        shrink_guard=shrink_guard,
    )


def _segmenter(
    weights: str,
    device: str,
    precision: Precision,
    rule: str,
    short_side: int,
) -> NetworkSegmenter:
    from model.evaluation.evaluate import NetworkSegmenter
    from model.network.memory import MemoryRule

    return NetworkSegmenter(_engine(weights, device, precision), MemoryRule.parse(rule), short_side)


def _measure(
    found: Sequence[VideoSequence],
    protocol: EvaluationProtocol,
    segmenter: NetworkSegmenter | None,
    results: Path | None,
    out: Path | None,
) -> Evaluation:
    """Scores of a network, or of existing results."""
    from model.evaluation.evaluate import evaluate_network, evaluate_results

    if segmenter is None:
        assert results is not None
        return evaluate_results(found, results, protocol)
    with _progress() as progress:
        return evaluate_network(found, segmenter, protocol, results=out, progress=progress)


@contextmanager
def _progress() -> Iterator[Progress]:
    """One bar that shows the current sequence."""
    with progress_bar() as bar:
        task = bar.add_task("", total=None)

        def progress(name: str, done: int, count: int) -> None:
            if done == 1:
                bar.reset(task, description=name, total=count)
            bar.update(task, completed=done)

        yield progress


def _show(comparison: Comparison, out: Path | None) -> None:
    from model.evaluation.tables import CURVE_FILES, TABLE_FILE, row_folder

    output.print(comparison.table(), highlight=False)
    if out is not None:
        names = ", ".join(
            (TABLE_FILE, *CURVE_FILES, *(f"{row_folder(out, row).name}/" for row in comparison.rows))
        )
        output.print(f"written to {out}: {names}", highlight=False, soft_wrap=True)


def _say_written(files: Sequence[Path]) -> None:
    for path in files:
        output.print(f"written: {path}", highlight=False, soft_wrap=True)


def _named(text: str) -> tuple[str, str]:
    """NAME and WEIGHTS of `NAME=WEIGHTS`; the file's name where none is given."""
    name, equals, weights = text.partition("=")
    return (name, weights) if equals else (Path(text).stem, text)


def _point(text: str) -> Point:
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--point {text}: write it as X,Y in pixels, such as --point 320,200") from None
    return x, y


def _frame_name(sequence: VideoSequence, text: str) -> str:
    """The frame of that name, or with that number at the end of its name.

    Raises:
        ValueError: if there is none.
    """
    if text in sequence.frames:
        return text
    if text.isdigit():
        for name in sequence.frames:
            digits = name[len(name.rstrip("0123456789")) :]
            if digits and int(digits) == int(text):
                return name
    raise ValueError(
        f"{sequence.name} has no frame {text}: its frames are {sequence.frames[0]} to {sequence.frames[-1]}."
    )
