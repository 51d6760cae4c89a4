"""`stm propagate`: one key in, a matte sequence out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from stm_plugin.cli.console import counted, errors, output, progress_bar, tell_of_movie
from stm_plugin.cli.guard import Overwrite
from stm_plugin.errors import KeyframeError, SettingsError
from stm_plugin.planning.values import Directions, State
from stm_plugin.propagation.events import (
    DamageFound,
    Event,
    FrameFinished,
    Notice,
    PlanMade,
    PlateChanged,
)
from stm_plugin.propagation.events import Progress as StepDone
from stm_plugin.settings import Edges, FinishSettings, MaskMode, Precision, Settings
from stm_plugin.windows import Window

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from stm_plugin.images.plate import PlateSource
    from stm_plugin.shot.inputs import Inputs
    from stm_plugin.shot.propagate import Summary

STOPPED = 130
"""Exit code of a command that was stopped by Ctrl-C, as in shells."""

_KEY = re.compile(r"(-?\d+)=(.+)")
_RANGE = re.compile(r"(-?\d+)-(-?\d+)|(-?\d+)")
_WINDOW = re.compile(r"(-?\d+),(-?\d+),(\d+),(\d+)")

KeyOption = Annotated[
    list[str], typer.Option("--key", help="FRAME=MASK, a key's frame and its mask's file; repeatable.")
]


def propagate(
    plate: Annotated[
        str, typer.Argument(help="plate.####.exr, plate.%04d.exr, plate.1001-1100#.exr, a folder or a movie.")
    ],
    key: KeyOption,
    out: Annotated[str, typer.Option("--out", "-o", help="The matte sequence: matte.####.exr.")],
    frames: Annotated[str | None, typer.Option(help="FIRST-LAST; the whole plate if not given.")] = None,
    direction: Annotated[Directions, typer.Option(help="From each key.")] = "both",
    shot: Annotated[Path | None, typer.Option(help="Shot store; beside the mattes if not given.")] = None,
    objects: Annotated[
        list[str] | None, typer.Option("--object", help="Name of an object, in the mask's order; repeatable.")
    ] = None,
    mask_mode: Annotated[MaskMode, typer.Option(help="How mask files are understood.")] = "auto",
    mask_channel: Annotated[str | None, typer.Option(help="Channel or layer of the mask files.")] = None,
    channel: Annotated[str, typer.Option(help="Channel of the matte.")] = "A",
    cryptomatte: Annotated[bool, typer.Option(help="A Cryptomatte layer of the objects too.")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="The confidence of each pixel too, as stm.confidence.")
    ] = False,
    layer: Annotated[str | None, typer.Option(help="Layer of the plate.")] = None,
    view: Annotated[str | None, typer.Option(help="View of a stereo plate.")] = None,
    start_frame: Annotated[int, typer.Option(help="Number of a movie's first frame.")] = 1,
    colour_space: Annotated[
        str | None, typer.Option("--colour-space", "--colorspace", help="Of the plate; else from the file.")
    ] = None,
    ocio: Annotated[str | None, typer.Option(help="OCIO config; else $OCIO, else the built-in one.")] = None,
    memory: Annotated[str, typer.Option(help="first, previous, first+previous or every:N.")] = "every:5",
    memory_cap: Annotated[int, typer.Option(help="Stored frames besides the keys.")] = Settings.memory_cap,
    working_size: Annotated[
        int, typer.Option(help="Short side of the working picture in pixels.")
    ] = Settings.working_size,
    region: Annotated[str | None, typer.Option(help="X,Y,WIDTH,HEIGHT in plate pixels (y down).")] = None,
    weights: Annotated[str, typer.Option(help="A shipped name or a file.")] = Settings.weights,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the convolutions.")] = "float32",
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Adapt the network to the keys first (`stm adapt`).")
    ] = False,
    edges: Annotated[
        Edges, typer.Option(help="learned: soft as the plate is; guided: by a filter; off: enlarged.")
    ] = FinishSettings.edges,
    edge_width: Annotated[
        float, typer.Option(help="Of learned edges: below 1 narrower, above 1 wider.")
    ] = FinishSettings.width,
    overlay: Annotated[
        str | None,
        typer.Option(
            help="A folder, overlay.####.jpg or overlay.mp4: pictures to look at, with a contact sheet."
        ),
    ] = None,
    overwrite: Overwrite = False,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for another process that holds the shot.")
    ] = 0.0,
) -> None:
    """Propagate the masks of keys through a plate and write a matte for every frame."""
    from stm_plugin.cli.overlay import OverlayTarget, write_overlays
    from stm_plugin.images.mask import MaskReading
    from stm_plugin.planning.values import Request
    from stm_plugin.shot.propagate import RunOptions, default_shot_folder
    from stm_plugin.shot.propagate import propagate as run
    from stm_plugin.store.description import PlateDescription
    from stm_plugin.store.store import with_suffix

    settings = Settings(
        memory_rule=memory,
        memory_cap=memory_cap,
        working_size=working_size,
        region=parse_region(region),
        precision=precision,
        weights=weights,
        colour_space=colour_space,
        ocio_config=ocio,
        finish=FinishSettings(edges=edges, width=edge_width),
        channel=channel,
        cryptomatte=cryptomatte,
        confidence=confidence,
        device=device,  # type: ignore[arg-type]  # checked by Settings, which also knows cuda:N
    )
    text = str(Path(plate).expanduser().absolute())
    described = PlateDescription("files", text, layer=layer, view=view, movie_first_frame=start_frame)
    keys = parse_keys(key)
    first, last = parse_range(frames) or (None, None)
    target = None if overlay is None else OverlayTarget(overlay, overwrite)

    def check(plate: PlateSource, inputs: Inputs, chosen: Sequence[int]) -> None:
        if target is not None:
            target.check(inputs, default_shot_folder(out) if shot is None else with_suffix(shot), chosen)

    tell_of_movie(plate)
    with EventPrinter() as printer:
        summary = run(
            described,
            keys,
            out,
            settings=settings,
            request=Request(first, last, direction),
            reading=MaskReading(objects, mask_mode, mask_channel),
            adapt=adapt,
            run=RunOptions(shot, overwrite, wait, on_event=printer, check=check),
        )
    print_summary(summary)
    if target is not None:
        for words in write_overlays(summary.shot, target, parse_range(frames)):
            output.print(f"to check: {words}", highlight=False, soft_wrap=True, markup=False)
    printer.check_reached()


class EventPrinter:
    """Prints the events of a propagation: the plan with reasons, a progress bar, and notices."""

    def __init__(self) -> None:
        self._bar = progress_bar("steps")
        self._task = self._bar.add_task("propagate", total=None)
        self._bar.disable = True
        self._finished: set[int] = set()
        self._unreached: list[int] = []

    def __enter__(self) -> EventPrinter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if isinstance(error, KeyboardInterrupt):
            kept = counted(len(self._finished), "frame")
            errors.print(
                f"Stopped. {kept} finished in this run {'is' if len(self._finished) == 1 else 'are'} kept, "
                "and so are all earlier ones. The same command continues from here.",
                highlight=False,
            )
            raise typer.Exit(STOPPED) from error

    def check_reached(self) -> None:
        """Raise an error for frames that no pass reaches, when everything else is done.

        Raises:
            KeyframeError: there are such frames; the text names them.
        """
        from stm_plugin.images.sequence import describe_frames

        if self._unreached:
            word = "frame" if len(self._unreached) == 1 else "frames"
            raise KeyframeError(
                f"Not computed: {word} {describe_frames(self._unreached)}, as no key reaches "
                f"{'it' if word == 'frame' else 'them'} in this direction.",
                hint="Give --direction both, add a key on that side, or leave them out with --frames.",
            )

    def __call__(self, event: Event) -> None:
        if isinstance(event, PlanMade):
            for dirty in event.plan.dirty:
                errors.print(str(dirty), highlight=False, markup=False)
            self._unreached = [one.frame for one in event.plan.frames if one.state is State.UNREACHED]
            self._bar.disable = False
            self._bar.start()
            self._bar.update(self._task, total=len(event.plan.steps), completed=0)
        elif isinstance(event, StepDone):
            self._bar.update(
                self._task, completed=event.done, total=event.total, description=f"frame {event.frame}"
            )
        elif isinstance(event, FrameFinished):
            self._finished.add(event.frame)
        elif isinstance(event, PlateChanged):
            numbers = ", ".join(map(str, event.frames))
            errors.print(f"The plate changed on {numbers}; what depends on it is computed again.")
        elif isinstance(event, DamageFound):
            errors.print(f"{event.path}: damaged; it is computed again.", markup=False)
        elif isinstance(event, Notice):
            errors.print(event.text, markup=False)


def print_summary(summary: Summary) -> None:
    """Print what was computed, where it is, and how long it took."""
    done = summary.propagation
    written = sum(1 for one in summary.files if one.written)
    table = Table.grid(padding=(0, 2))
    table.add_row("frames", f"{done.frames} ({written} written, {len(summary.files) - written} were current)")
    table.add_row("network", f"{done.computed} computed, {done.reused} reused, on {done.device}")
    table.add_row("time", f"{done.seconds:.1f} s" + _per_frame(done.seconds, done.computed))
    table.add_row("memory", done.forecast)
    if summary.files:
        table.add_row("mattes", f"{summary.files[0].path} to {summary.files[-1].path.name}")
    table.add_row("shot", str(summary.shot))
    output.print(table, highlight=False, soft_wrap=True)


def parse_keys(texts: list[str]) -> dict[int, str]:
    """FRAME=MASK options by frame.

    Raises:
        KeyframeError: for text of another form, a frame that is given twice, or a mask that does not exist.
    """
    keys: dict[int, str] = {}
    for text in texts:
        match = _KEY.fullmatch(text)
        if match is None:
            raise KeyframeError(f"--key {text!r} cannot be read.", hint="Write --key 1001=mask.exr.")
        frame, path = int(match[1]), match[2]
        if frame in keys:
            raise KeyframeError("There are two keys on one frame.", frame=frame, hint="Give one of them.")
        if not Path(path).expanduser().is_file():
            raise KeyframeError(
                "The mask is a folder." if Path(path).is_dir() else "The mask does not exist.",
                frame=frame,
                path=path,
                hint="Give the file of one picture." if Path(path).is_dir() else "Check the file's name.",
            )
        keys[frame] = path
    return keys


def parse_range(text: str | None) -> tuple[int, int] | None:
    """`1001-1100` or `1001`.

    Raises:
        SettingsError: for text of another form, or a range that runs backwards.
    """
    if text is None:
        return None
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"The frame range {text!r} cannot be read.", hint="Write --frames 1001-1100.")
    first, last = (int(match[3]),) * 2 if match[3] else (int(match[1]), int(match[2]))
    if last < first:
        raise SettingsError(f"The frame range {text} runs backwards.", hint=f"Write --frames {last}-{first}.")
    return first, last


def parse_region(text: str | None) -> Window | None:
    """`X,Y,WIDTH,HEIGHT`.

    Raises:
        SettingsError: for text of another form.
    """
    if text is None:
        return None
    match = _WINDOW.fullmatch(text.replace(" ", ""))
    if match is None:
        hint = "Write X,Y,WIDTH,HEIGHT, such as 0,0,640,480."
        raise SettingsError(f"The region {text!r} cannot be read.", hint=hint)
    return Window(*(int(number) for number in match.groups()))


def _per_frame(seconds: float, computed: int) -> str:
    return f", {seconds / computed:.2f} s per computed frame" if computed else ""
