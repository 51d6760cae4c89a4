"""`stm propagate`: one key in, a matte sequence out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from stm_plugin.cli.as_json import print_json, propagate_json
from stm_plugin.cli.console import Stopped, counted, errors, output, progress_bar, tell_of_movie
from stm_plugin.cli.guard import Overwrite, Wait
from stm_plugin.errors import KeyframeError, SettingsError
from stm_plugin.exit_codes import ExitCode
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
from stm_plugin.settings import Edges, MaskMode, PrecisionChoice, Settings, changed_settings, flat_settings
from stm_plugin.windows import Window

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from logging import Logger

    from stm_plugin.images.plate import PlateSource
    from stm_plugin.shot.inputs import Inputs
    from stm_plugin.shot.propagate import Summary

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object (docs/schemas).")]

_KEY = re.compile(r"(-?\d+)=(.+)")
_RANGE = re.compile(r"(-?\d+)-(-?\d+)|(-?\d+)")
_WINDOW = re.compile(r"(-?\d+),(-?\d+),(\d+),(\d+)")

KeyOption = Annotated[
    list[str], typer.Option("--key", help="FRAME=MASK, a key's frame and its mask's file; repeatable.")
]


def _configured(name: str, help_text: str) -> Any:
    """An option whose default is the configuration's; the help shows the built-in one."""
    default = flat_settings(Settings())[name]
    is_switch = isinstance(default, bool)
    return typer.Option(help=help_text, show_default=False if is_switch else str(default))


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
    channel: Annotated[str | None, _configured("channel", "Channel of the matte.")] = None,
    cryptomatte: Annotated[
        bool | None, _configured("cryptomatte", "A Cryptomatte layer of the objects too.")
    ] = None,
    confidence: Annotated[
        bool | None, _configured("confidence", "The confidence of each pixel too, as stm.confidence.")
    ] = None,
    foreground: Annotated[
        bool | None, _configured("foreground", "The plate's colours without the background too: layer fg.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the plate.")] = None,
    view: Annotated[str | None, typer.Option(help="View of a stereo plate.")] = None,
    start_frame: Annotated[int, typer.Option(help="Number of a movie's first frame.")] = 1,
    colour_space: Annotated[
        str | None, typer.Option("--colour-space", "--colorspace", help="Of the plate; else from the file.")
    ] = None,
    ocio: Annotated[str | None, typer.Option(help="OCIO config; else $OCIO, else the built-in one.")] = None,
    memory: Annotated[
        str | None, _configured("memory_rule", "first, previous, first+previous or every:N.")
    ] = None,
    memory_cap: Annotated[int | None, _configured("memory_cap", "Stored frames besides the keys.")] = None,
    working_size: Annotated[
        int | None, _configured("working_size", "Short side of the working picture in pixels.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="X,Y,WIDTH,HEIGHT in plate pixels (y down).")] = None,
    weights: Annotated[str | None, _configured("weights", "A shipped name or a file.")] = None,
    device: Annotated[str | None, _configured("device", "auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[
        PrecisionChoice | None,
        _configured("precision", "Of the convolutions; auto is chosen when the shot is made, and kept."),
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Adapt the network to the keys first (`stm adapt`).")
    ] = False,
    edges: Annotated[
        Edges | None,
        _configured("finish.edges", "learned: soft as the plate is; guided: by a filter; off: enlarged."),
    ] = None,
    edge_width: Annotated[
        float | None, _configured("finish.width", "Of learned edges: below 1 narrower, above 1 wider.")
    ] = None,
    overlay: Annotated[
        str | None,
        typer.Option(
            help="A folder, overlay.####.jpg or overlay.mp4: pictures to look at, with a contact sheet."
        ),
    ] = None,
    overwrite: Overwrite = False,
    wait: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Propagate the masks of keys through a plate and write a matte for every frame."""
    from stm_plugin.cli.overlay import OverlayTarget, write_overlays
    from stm_plugin.images.mask import MaskReading
    from stm_plugin.planning.values import Request
    from stm_plugin.shot.propagate import RunOptions, base_settings, default_shot_folder
    from stm_plugin.shot.propagate import propagate as run
    from stm_plugin.store.description import PlateDescription
    from stm_plugin.store.store import with_suffix

    folder = default_shot_folder(out) if shot is None else with_suffix(shot)
    window = parse_region(region)
    given = {
        "memory_rule": memory,
        "memory_cap": memory_cap,
        "working_size": working_size,
        "region": None if window is None else [window.x, window.y, window.width, window.height],
        "precision": precision,
        "weights": weights,
        "colour_space": colour_space,
        "ocio_config": ocio,
        "finish.edges": edges,
        "finish.width": edge_width,
        "channel": channel,
        "cryptomatte": cryptomatte,
        "confidence": confidence,
        "foreground": foreground,
        "device": device,
    }
    said = {name: value for name, value in given.items() if value is not None}
    settings = changed_settings(base_settings(folder), said)
    text = str(Path(plate).expanduser().absolute())
    described = PlateDescription("files", text, layer=layer, view=view, movie_first_frame=start_frame)
    keys = parse_keys(key)
    first, last = parse_range(frames) or (None, None)
    target = None if overlay is None else OverlayTarget(overlay, overwrite)

    def check(plate: PlateSource, inputs: Inputs, chosen: Sequence[int]) -> None:
        if target is not None:
            target.check(inputs, folder, chosen)

    tell_of_movie(plate, folder)
    print_licence_note(settings.weights)
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
    if not as_json:
        print_summary(summary)
    looks = [] if target is None else write_overlays(summary.shot, target, parse_range(frames))
    if as_json:
        print_json(propagate_json(summary, looks, printer.unreached))
    else:
        for words in looks:
            output.print(f"to check: {words}", highlight=False, soft_wrap=True, markup=False)
    printer.check_reached()


def print_licence_note(weights: str) -> None:
    """Print, once, that weights are for non-commercial use only, and how to choose others."""
    from stm_plugin.licences import note_of_licence

    note = note_of_licence(weights)
    if note is not None:
        errors.print(note, markup=False, highlight=False)


class EventPrinter:
    """Prints the events of a propagation: the plan with reasons, a progress bar, and notices."""

    def __init__(self) -> None:
        from stm_plugin.logs import start_command_log, wants_json_lines

        self._bar = progress_bar("steps")
        self._task = self._bar.add_task("propagate", total=None)
        self._bar.disable = True
        self._finished: set[int] = set()
        self._log = start_command_log()
        self._plain = not wants_json_lines()
        self.unreached: list[int] = []
        """Frames of the last plan that no pass comes by."""

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
            raise Stopped(int(ExitCode.INTERRUPTED)) from error

    def check_reached(self) -> None:
        """Raise an error for frames that no pass reaches, when everything else is done.

        Raises:
            KeyframeError: there are such frames; the text names them.
        """
        from stm_plugin.images.sequence import describe_frames

        if self.unreached:
            word = "frame" if len(self.unreached) == 1 else "frames"
            raise KeyframeError(
                f"Not computed: {word} {describe_frames(self.unreached)}, as no key reaches "
                f"{'it' if word == 'frame' else 'them'} in this direction.",
                hint="Give --direction both, add a key on that side, or leave them out with --frames.",
            )

    def __call__(self, event: Event) -> None:
        log_event(self._log, event)
        if isinstance(event, PlanMade):
            self.unreached = [one.frame for one in event.plan.frames if one.state is State.UNREACHED]
        if isinstance(event, FrameFinished):
            self._finished.add(event.frame)
        elif self._plain:
            self._show(event)

    def _show(self, event: Event) -> None:
        if isinstance(event, PlanMade):
            for dirty in event.plan.dirty:
                errors.print(str(dirty), highlight=False, markup=False)
            self._bar.disable = False
            self._bar.start()
            self._bar.update(self._task, total=len(event.plan.steps), completed=0)
        elif isinstance(event, StepDone):
            self._bar.update(
                self._task, completed=event.done, total=event.total, description=f"frame {event.frame}"
            )
        elif isinstance(event, PlateChanged):
            numbers = ", ".join(map(str, event.frames))
            errors.print(f"The plate changed on {numbers}; what depends on it is computed again.")
        elif isinstance(event, DamageFound):
            errors.print(f"{event.path}: damaged; it is computed again.", markup=False)
        elif isinstance(event, Notice):
            errors.print(event.text, markup=False)


def log_event(log: Logger, event: Event) -> None:
    """Write what a propagation says into a log: what concerns a single step at the level debug."""
    from stm_plugin.logs import DEBUG, WARNING
    from stm_plugin.logs import event as record

    match event:
        case PlanMade():
            steps, said = len(event.plan.compute_steps), [str(one) for one in event.plan.dirty]
            record(log, "plan", frames=len(event.plan.frames), network_frames=steps, to_run=said)
        case StepDone():
            record(
                log,
                "progress",
                DEBUG,
                done=event.done,
                total=event.total,
                frame=event.frame,
                seconds_left=event.seconds_left,
            )
        case FrameFinished():
            record(log, "frame_finished", frame=event.frame)
        case PlateChanged():
            record(log, "plate_changed", WARNING, frames=list(event.frames))
        case DamageFound():
            record(log, "damage_found", WARNING, path=event.path)
        case Notice():
            record(log, "notice", text=event.text)


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
