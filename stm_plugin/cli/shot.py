"""`stm shot`: the artist's loop in a terminal: keys, status, propagate, check, correct, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from stm_plugin.cli.adapt import describe_adaptation
from stm_plugin.cli.as_json import export_json, print_json, propagation_json, status_json
from stm_plugin.cli.console import counted, output, progress_bar, tell_of_movie
from stm_plugin.cli.farm import merge
from stm_plugin.cli.guard import Overwrite, Wait
from stm_plugin.cli.propagate import (
    AsJson,
    EventPrinter,
    parse_range,
    parse_region,
    print_licence_note,
)
from stm_plugin.cli.shapes import shapes
from stm_plugin.cli.tables import confidence_lines, settings_help, settings_table
from stm_plugin.errors import SettingsError
from stm_plugin.planning.plan import frames_in_range
from stm_plugin.planning.reasons import NEW_KEY
from stm_plugin.planning.values import Directions, Request, State
from stm_plugin.propagation.events import Event, FrameFinished, Notice
from stm_plugin.settings import MaskMode, Settings, settings_hint

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from stm_plugin.shot.shot import Shot, ShotStatus

app = typer.Typer(help="Work on a shot: keys, corrections, cached memory.", no_args_is_help=True)
key_app = typer.Typer(help="Add and remove keys.", no_args_is_help=True)
app.add_typer(key_app, name="key")
app.command()(shapes)
app.command()(merge)

Folder = Annotated[Path, typer.Argument(help="The shot store, NAME.stmshot.")]
Frames = Annotated[str | None, typer.Option(help="FIRST-LAST; the whole plate if not given.")]


@app.command()
def new(
    shot: Folder,
    plate: Annotated[str, typer.Argument(help="As `stm propagate` takes it.")],
    layer: Annotated[str | None, typer.Option(help="Layer of the plate.")] = None,
    view: Annotated[str | None, typer.Option(help="View of a stereo plate.")] = None,
    start_frame: Annotated[int, typer.Option(help="Number of a movie's first frame.")] = 1,
    setting: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE; repeatable.")] = None,
) -> None:
    """Create a shot store for a plate."""
    from stm_plugin.configuration import configuration
    from stm_plugin.shot.shot import Shot
    from stm_plugin.store.description import PlateDescription
    from stm_plugin.store.store import with_suffix

    tell_of_movie(plate, with_suffix(shot))
    text = str(Path(plate).expanduser().absolute())
    description = PlateDescription("files", text, layer=layer, view=view, movie_first_frame=start_frame)
    settings = parse_settings(configuration().settings(), setting or [])
    with Shot.create(with_suffix(shot), description, settings) as made:
        frames = made.plate.frames
        output.print(f"{made.folder}: frames {frames[0]}-{frames[-1]}", highlight=False, soft_wrap=True)


@key_app.command("add")
def add_key(
    shot: Folder,
    frame: Annotated[int, typer.Argument(help="The key's frame.")],
    mask: Annotated[Path, typer.Argument(help="An image file.")],
    objects: Annotated[list[str] | None, typer.Option("--object", help="Names, in the mask's order.")] = None,
    mask_mode: Annotated[MaskMode, typer.Option(help="How the file is understood.")] = "auto",
    mask_channel: Annotated[str | None, typer.Option(help="Channel or layer of the mask.")] = None,
    keep_others: Annotated[bool, typer.Option(help="Keep the key's other objects.")] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="The mask may be empty: the object is not in this frame.")
    ] = False,
    wait: Wait = 0.0,
) -> None:
    """Give the masks of one frame.

    A new key adds two passes to those of the other keys, and the frames around it are fused again.
    """
    from stm_plugin.images.mask import MaskReading

    with _open(shot) as opened:
        key = opened.add_key(
            frame,
            mask,
            reading=MaskReading(objects, mask_mode, mask_channel),
            allow_empty=allow_empty,
            replace_all=not keep_others,
            wait=wait,
        )
        output.print(f"key {key.frame}: {', '.join(key.objects)}", highlight=False, markup=False)
        if key.dropped:
            output.print(
                f"The key's mask of {', '.join(key.dropped)} was removed; --keep-others would have kept it.",
                highlight=False,
                markup=False,
            )
        found = opened.status()
        if len(found.keys) > 1:
            output.print(NEW_KEY, highlight=False)
        _print_dirty(found)


@key_app.command("remove")
def remove_key(
    shot: Folder,
    frame: Annotated[int, typer.Argument(help="The key's frame.")],
    objects: Annotated[
        list[str] | None, typer.Option("--object", help="Only the masks of these objects; repeatable.")
    ] = None,
    wait: Wait = 0.0,
) -> None:
    """Remove a key, or some of its objects."""
    with _open(shot) as opened:
        opened.remove_key(frame, objects, wait=wait)
        gone = "removed" if not objects else f"without {', '.join(objects)} now"
        output.print(f"key {frame}: {gone}", highlight=False, markup=False)
        found = opened.status()
        _print_dirty(found)
        if not found.keys:
            output.print(_no_key(shot), highlight=False, markup=False)


@app.command("set", epilog=settings_help())
def set_settings(
    shot: Folder,
    settings: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE ...; without any, all settings are listed.")
    ] = None,
    wait: Wait = 0.0,
) -> None:
    """Change settings, and show what becomes stale."""
    with _open(shot) as opened:
        if not settings:
            output.print(settings_table(opened.settings), highlight=False)
            return
        before = opened.settings
        opened.set_settings(parse_settings(before, settings), wait=wait)
        after = opened.settings
        found = opened.status()
        if after == before:
            waiting = "No setting has changed. What waits to be computed, as before:"
            output.print(waiting if found.dirty else "Nothing has changed.", highlight=False)
        _print_dirty(found)
        if after == before:
            return
        if not found.dirty and after.finish != before.finish:
            output.print("The mattes are finished anew when they are written; nothing is propagated again.")
        elif not found.dirty:
            output.print("Nothing has to be computed again.")


@app.command()
def status(shot: Folder, as_json: AsJson = False) -> None:
    """Show which frames are done, stale or missing, and why."""
    with _open(shot) as opened:
        found = opened.status()
        if as_json:
            print_json(status_json(opened, found))
            return
        table = Table.grid(padding=(0, 2))
        for key in found.keys:
            table.add_row(f"key {key.frame}", ", ".join(key.objects))
        for state in State:
            if found.count(state):
                table.add_row(state.value, counted(found.count(state), "frame"))
        table.add_row("to run", f"{counted(found.network_frames, 'frame')} through the network")
        table.add_row("on disk", str(found.size))
        if found.holder is not None:
            table.add_row("held by", str(found.holder))
        if found.adapted is not None:
            table.add_row("weights", describe_adaptation(found.adapted))
        output.print(table, highlight=False, soft_wrap=True)
        for line in confidence_lines(found.qualities, [key.frame for key in found.keys]):
            output.print(line, highlight=False, soft_wrap=True)
        _print_dirty(found)
        if not found.keys:
            output.print(_no_key(shot), highlight=False, markup=False)
        for sentence in found.advice:
            output.print(sentence, highlight=False, markup=False)
        if found.next_key is not None:
            output.print(f"The next key would help most on {found.next_key.text}.", highlight=False)
        elif found.no_advice:
            output.print(found.no_advice, highlight=False)


@app.command()
def propagate(
    shot: Folder,
    frames: Frames = None,
    direction: Annotated[Directions, typer.Option(help="From each key.")] = "both",
    wait: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compute the frames that are not done."""
    from stm_plugin.shot.opening import check_frames

    first, last = parse_range(frames) or (None, None)
    with _open(shot) as opened, EventPrinter() as printer:
        check_frames(opened.plate, parse_range(frames))
        print_licence_note(opened.settings.weights)
        done = opened.propagate(Request(first, last, direction), on_event=printer, wait=wait)
    if as_json:
        print_json(propagation_json(opened.folder, done))
    else:
        output.print(f"{done.computed} computed, {done.reused} kept, {done.seconds:.1f} s", highlight=False)
    printer.check_reached()


@app.command()
def export(
    shot: Folder,
    out: Annotated[str, typer.Argument(help="The matte sequence: matte.####.exr.")],
    frames: Frames = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the mattes of finished frames."""
    from stm_plugin.shot.export import MatteWriter
    from stm_plugin.shot.opening import check_frames

    first, last = parse_range(frames) or (None, None)
    with _open(shot) as opened, progress_bar() as bar:
        settings = opened.settings
        check_frames(opened.plate, parse_range(frames))
        writer = MatteWriter(
            out,
            opened.plate,
            channel=settings.channel,
            with_ids=settings.cryptomatte,
            overwrite=overwrite,
        )
        request = Request(first, last)
        total = len(frames_in_range(tuple(opened.plate.frames), request))
        task = bar.add_task("export", total=total)

        def on_event(event: Event) -> None:
            if isinstance(event, FrameFinished):
                bar.advance(task)
            elif isinstance(event, Notice):
                bar.console.print(event.text, highlight=False, markup=False)

        opened.export(writer, request, on_event=on_event)
    files = writer.written
    if as_json:
        print_json(export_json(opened.folder, files))
        return
    output.print(
        f"{counted(len(files), 'frame')}: {files[0].path} to {files[-1].path.name}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def fix(
    shot: Folder,
    frame: Annotated[int, typer.Argument(help="The frame that is wrong.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="SEQUENCE.####.exr; NAME.fix.####.exr beside the shot.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the matte of a frame as a mask, to be corrected and given as a key."""
    from stm_plugin.shot.export import MatteWriter
    from stm_plugin.shot.opening import check_frames
    from stm_plugin.store.store import with_suffix

    folder = with_suffix(shot)
    with _open(shot) as opened:
        check_frames(opened.plate, (frame, frame))
        pattern = out or str(folder.with_name(f"{folder.stem}.fix.####.exr"))
        writer = MatteWriter(pattern, opened.plate, overwrite=overwrite)
        opened.export(writer, Request(frame, frame))
        mode = " --mask-mode layers" if len(opened.objects) > 1 else ""
    path = writer.written[0].path
    output.print(f"{path}\nPaint in it, then:", highlight=False, markup=False, soft_wrap=True)
    command = f"stm shot key add {shot} {frame} {path}{mode}"
    output.print(command, highlight=False, markup=False, soft_wrap=True)


@app.command()
def overlay(
    shot: Folder,
    out: Annotated[str, typer.Argument(help="A folder, overlay.####.jpg or overlay.mp4.")],
    frames: Frames = None,
    overwrite: Overwrite = False,
) -> None:
    """Write pictures for checking: the matte over the plate, and a contact sheet."""
    from stm_plugin.cli.overlay import OverlayTarget, write_overlays
    from stm_plugin.store.store import with_suffix

    for words in write_overlays(with_suffix(shot), OverlayTarget(out, overwrite), parse_range(frames)):
        output.print(f"to check: {words}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def clean(
    shot: Folder,
    results: Annotated[bool, typer.Option(help="Delete results that no key needs any more too.")] = False,
    wait: Wait = 0.0,
) -> None:
    """Delete cached data that can be computed again."""
    with _open(shot) as opened:
        freed = opened.clean(results=results, wait=wait)
        output.print(f"freed: {freed}", highlight=False)


def _open(folder: Path) -> Shot:
    """The shot of a folder, with or without its suffix."""
    from stm_plugin.shot.shot import Shot
    from stm_plugin.store.store import ShotStore, with_suffix

    tell_of_movie(ShotStore.open(folder).description().plate.text, with_suffix(folder))
    return Shot.open(with_suffix(folder))


def parse_settings(settings: Settings, texts: list[str]) -> Settings:
    """`settings` changed by NAME=VALUE texts; `finish.radius=6` changes a setting inside a group.

    Raises:
        SettingsError: for a name or a value that cannot be used.
    """
    values = settings.to_json()
    for text in texts:
        name, _, value = text.partition("=")
        *groups, last = name.strip().split(".")
        inside = values
        for group in groups:
            inside = inside.setdefault(group, {})
            if not isinstance(inside, dict):
                raise SettingsError(f"There is no setting {name.strip()!r}.", hint=settings_hint())
        is_region = name.strip() == "region" and value.strip().lower() != "none"
        inside[last] = _region(value) if is_region else _plain(value.strip())
    return Settings.from_json(values)


def _region(text: str) -> dict[str, int] | None:
    region = parse_region(text)
    return None if region is None else asdict(region)


def _plain(text: str) -> str | int | float | bool | None:
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _no_key(shot: Path) -> str:
    return f"The shot has no key, so nothing can be computed: `stm shot key add {shot} FRAME MASK`."


def _print_dirty(found: ShotStatus) -> None:
    for dirty in found.dirty:
        output.print(str(dirty), highlight=False, markup=False)
