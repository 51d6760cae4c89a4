"""An STM node in Python: its knobs as typed values, and the ownership of its cache."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nuke
from stm_nuke import (
    cache,
    copies,
    fingerprint,
    group,
    knobs,
    layers,
    live,
    releases,
    scriptcolour,
    tasks,
    timeline,
)
from stm_nuke.errors import (
    CacheError,
    KeyframeError,
    NoNodeError,
    PlateError,
    StmNodeError,
    UsageError,
)
from stm_nuke.finish import Finish
from stm_nuke.frames import Range, whole, whole_within
from stm_nuke.keys import Key, format_keys, parse_keys
from stm_nuke.wire import Window

MAX_OBJECTS = 16
_BELOW = 100
"""Where a new node is put in the node graph, from its plate."""
_OBJECT = re.compile(r"(\S+?)\s*(?:=\s*([^\s=]+))?")
_UNSAVED = f"unsaved:{secrets.token_hex(8)}"
"""The script of nodes in a script that was not saved yet."""


@dataclass(frozen=True)
class MaskObject:
    """An object, and its channel of the mask input."""

    name: str
    channel: str


@dataclass(frozen=True)
class Snapshot:
    """The values of a node for a background task; made in the main thread, does not change.

    Attributes:
        display_window, canvas: x, y, width, height; y down.
        settings: by the engine's names.
        is_live: the OpenFX effect shows the mattes; no files are written.
    """

    node_id: str
    name: str
    view: str
    cache: Path
    frames: Range
    objects: tuple[MaskObject, ...]
    keys: tuple[Key, ...]
    settings: dict[str, Any]
    display_window: Window
    canvas: Window
    pixel_aspect: float
    fps: float
    keep_stale: bool
    is_live: bool

    def opening(self) -> dict[str, Any]:
        """The fields of `open_shot`."""
        return {
            "folder": str(cache.store_folder(self.cache, self.view)),
            "create": True,
            "owner": f"{self.node_id} in process {os.getpid()}",
            "plate": {
                "kind": "pushed",
                "frames": list(self.frames),
                "display_window": list(self.display_window),
                "canvas": list(self.canvas),
                "pixel_aspect": self.pixel_aspect,
                "fps": self.fps,
            },
            "settings": self.settings,
        }


class StmNode:
    """An STM group. All methods are for Nuke's main thread."""

    def __init__(self, node: nuke.Node) -> None:
        """Raises NoNodeError where it is not an STM node."""
        if not knobs.is_stm_node(node):
            raise NoNodeError(f"{node.fullName()} is not an STM node.")
        self.group = cast(nuke.Group, node)

    # ---- what it is

    @property
    def name(self) -> str:
        """Its name for people, with the groups that it is in."""
        return str(self.group.fullName())

    @property
    def id(self) -> str:
        """Its id; empty before `claim`."""
        return str(self[knobs.NODE_ID])

    @property
    def cache(self) -> Path:
        """Its cache folder."""
        return Path(str(self[knobs.CACHE_PATH]))

    @property
    def keys(self) -> tuple[Key, ...]:
        """Its keys in all views."""
        return parse_keys(str(self[knobs.KEYS]))

    def set_keys(self, keys: Sequence[Key]) -> None:
        """Change the keys: a change that can be undone."""
        self.set(knobs.KEYS, format_keys(keys))

    def keys_of(self, view: str) -> tuple[Key, ...]:
        """The keys of one view."""
        return tuple(key for key in self.keys if key.view == view)

    def keys_in_range(self, view: str) -> tuple[Key, ...]:
        """The active keys of one view; keys outside the range are kept, but inactive."""
        first, last = self.frames
        return tuple(key for key in self.keys_of(view) if first <= key.frame <= last)

    @property
    def frames(self) -> Range:
        """The frame range of the shot; (0, 0) before it is known."""
        first, last = self[knobs.FIRST], self[knobs.LAST]
        if last < first:
            raise UsageError(f"The range {first} to {last} of {self.name} runs backwards.")
        return int(first), int(last)

    @property
    def objects(self) -> tuple[MaskObject, ...]:
        """The objects of the shot.

        Raises:
            UsageError: the objects knob cannot be understood.
        """
        found: list[MaskObject] = []
        for line in str(self[knobs.OBJECTS]).splitlines():
            if line.strip():
                found.append(self._object_of(line.strip()))
        names = [one.name for one in found]
        if not found or len(names) > MAX_OBJECTS or len({name.lower() for name in names}) != len(names):
            raise UsageError(
                f"{self.name} has {len(names)} objects: {', '.join(names) or 'none'}.",
                hint=f"Give 1 to {MAX_OBJECTS} different names under objects, one a line.",
            )
        return tuple(found)

    def _object_of(self, line: str) -> MaskObject:
        match = _OBJECT.fullmatch(line)
        why = "it has several words" if match is None else layers.why_no_layer(match[1], nuke.views())
        if match is None or why:
            raise UsageError(
                f"{self.name}: the object {line!r} cannot be used: {why}.",
                hint="Write NAME = CHANNEL, for example hero = rgba.alpha; NAME is no layer of Nuke's own.",
            )
        channel = match[2] or "rgba.alpha"
        return MaskObject(match[1], channel if "." in channel else f"rgba.{channel}")

    @property
    def plate(self) -> nuke.Node | None:
        """The node connected to `plate`, or None."""
        return self.group.input(group.PLATE)

    @property
    def mask(self) -> nuke.Node | None:
        """The node connected to `mask`, or None."""
        return self.group.input(group.MASK)

    def connected_plate(self) -> nuke.Node:
        """The node connected to `plate`. PlateError where there is none."""
        plate = self.plate
        if plate is None:
            raise PlateError(f"{self.name} has no plate.", hint="Connect the picture to its plate input.")
        return plate

    def connected_mask(self) -> nuke.Node:
        """The node connected to `mask`. KeyframeError where there is none."""
        mask = self.mask
        if mask is None:
            raise KeyframeError(
                f"{self.name} has no mask.", hint="Connect a Roto, RotoPaint or Read to its mask input."
            )
        return mask

    def connected_fix(self) -> nuke.Node:
        """The node connected to `fix`. KeyframeError where there is none."""
        fix = self.group.input(group.FIX)
        if fix is None:
            raise KeyframeError(
                f"{self.name} has no fix.", hint="Go to the frame that is wrong and press Correct this frame."
            )
        return fix

    def view(self) -> str:
        """The current view."""
        if nuke.GUI:
            viewer = nuke.activeViewer()
            if viewer is not None:
                return str(viewer.view())
        return str(nuke.views()[0])

    def plate_fingerprint(self) -> str:
        """The fingerprint of the graph above the plate."""
        return fingerprint.fingerprint_of(self.plate)

    def mask_fingerprint(self, seconds: float | None = None) -> str:
        """The fingerprint of the graph above the mask. TookTooLong where `seconds` are not enough."""
        return fingerprint.fingerprint_of(self.mask, seconds)

    def __getitem__(self, knob: str) -> Any:
        if self.group.knob(knob) is None and knob in knobs.LATER:
            return knobs.LATER[knob]
        return self.group[knob].value()

    def set(self, knob: str, value: Any) -> None:
        """Set a knob if its value differs."""
        if self.group[knob].value() != value:
            self.group[knob].setValue(value)

    # ---- its range, its settings

    def take_range_from_input(self) -> Range:
        """Set the shot's range to the whole frames of the plate input's range."""
        found = self.connected_plate().frameRange()
        first, last = whole_within(found.first(), found.last())
        self.set(knobs.FIRST, first)
        self.set(knobs.LAST, last)
        return first, last

    def settings(self) -> dict[str, Any]:
        """The engine's settings from the panel."""
        step = int(self[knobs.MEMORY_STEP])
        rule = str(self[knobs.MEMORY_RULE])
        own_space, own_config = (
            str(self[knobs.COLOUR_SPACE]).strip(),
            str(self[knobs.OCIO_CONFIG] or "").strip(),
        )
        if own_space and own_space != knobs.SCRIPT_COLOUR:
            space = scriptcolour.WorkingSpace(own_space, own_config or None)
        else:
            found = scriptcolour.working_space()
            space = scriptcolour.WorkingSpace(found.colour_space, own_config or found.ocio_config)
        return {
            "memory_rule": knobs.RULES.get(rule, f"every:{step}"),
            "memory_cap": int(self[knobs.MEMORY_CAP]),
            "working_size": int(self[knobs.WORKING_SIZE]),
            "region": self._region(),
            "colour_space": space.colour_space,
            "ocio_config": space.ocio_config,
            "device": str(self[knobs.DEVICE]),
            "weights": str(self[knobs.WEIGHTS]).strip(),
            "confidence": self.has_confidence and not self.is_live,
            "foreground": self.has_foreground and not self.is_live,
            "finish.edges": str(self[knobs.EDGES]),
            "finish.width": float(self[knobs.EDGE_WIDTH]),
        }

    @property
    def finish(self) -> Finish:
        """The edges and the layers of matte files that the panel asks for."""
        layers = {"confidence": self.has_confidence, "foreground": self.has_foreground}
        edges = {"finish.edges": self[knobs.EDGES], "finish.width": self[knobs.EDGE_WIDTH]}
        return Finish.of({**layers, **edges})

    def _region(self) -> list[int] | None:
        """The region in the engine's coordinates: y down from the top of the format."""
        if not self[knobs.USE_REGION]:
            return None
        box = cast(nuke.BBox_Knob, self.group[knobs.REGION])  # `value()` of an empty one is a single number
        left, bottom, right, top = (round(one) for one in (box.x(), box.y(), box.r(), box.t()))
        with full_size():
            height = self.connected_plate().format().height()
        if right <= left or top <= bottom:
            raise UsageError(f"The region of {self.name} is empty.", hint="Draw it, or switch it off.")
        return [left, height - top, right - left, top - bottom]

    def snapshot(self, view: str) -> Snapshot:
        """The values for a task. Claims the cache first."""
        self.claim()
        frames = self.frames
        if frames == (0, 0):
            frames = self.take_range_from_input()
        with full_size():
            plate_format = self.connected_plate().format()
        display: Window = (0, 0, plate_format.width(), plate_format.height())
        return Snapshot(
            node_id=self.id,
            name=self.name,
            view=view,
            cache=self.cache,
            frames=frames,
            objects=self.objects,
            keys=self.keys_in_range(view),
            settings=self.settings(),
            display_window=display,
            canvas=self._canvas(display),
            pixel_aspect=float(plate_format.pixelAspect()),
            fps=float(nuke.root()["fps"].value()),
            keep_stale=self.keeps_old_mattes,
            is_live=self.is_live,
        )

    def _canvas(self, display: Window) -> Window:
        numbers = [int(one) for one in str(self[knobs.CANVAS]).split()]
        known = display if len(numbers) != 4 else (numbers[0], numbers[1], numbers[2], numbers[3])
        return union(display, known)

    def grow_canvas(self, display: Window, window: Window) -> Window:
        """Extend the canvas by `window`; returns the canvas."""
        canvas = union(self._canvas(display), window)
        with unrecorded():
            self.set(knobs.CANVAS, " ".join(str(one) for one in canvas))
        return canvas

    # ---- whose cache it is

    def claim(self) -> None:
        """Make sure that only this node of this script writes into its cache.

        A pasted node, or one in a script that was saved under another name, gets a copy of the cache. On a
        farm, which works on copies of scripts, nothing is moved, and two nodes with one cache are an error.

        Raises:
            CacheError: the cache cannot be written, or another node of this script has it.
        """
        self.upgrade()
        self._follow_moved_project()
        twin = self.twin()
        if not self.id:
            self._settle(cache.new_id(), None)
        elif twin is not None:
            if not nuke.GUI:
                raise CacheError(
                    f"{self.name} and {twin.name} have one cache.",
                    hint="Open the script in Nuke, press Set key or Propagate in one of them, and save.",
                )
            self._settle(cache.new_id(), self.cache)
        elif nuke.GUI and self._came_from_another_script():
            self._leave_cache_to_first_script()
        elif nuke.GUI:
            with unrecorded():
                self.set(knobs.HOME, script_path() or _UNSAVED)
        cache.make(self.cache)
        with unrecorded():
            self._show_matte()

    def upgrade(self) -> None:
        """Give a node of an older release the knobs and the inside of a new one; its values are kept."""
        version = self.group.knob(knobs.VERSION)
        if version is not None and int(str(version.value()) or 0) >= int(knobs.NEWEST_VERSION):
            return
        with unrecorded():
            live.take_out(self.group)
            for knob in knobs.all_knobs():
                if self.group.knob(knob.name()) is None:
                    self.group.addKnob(knob)
            old = self.group.knob("keep_stale")
            if old is not None:
                if old.value():
                    self.set(knobs.MISSING, knobs.OLD_MATTE)
                self.group.removeKnob(old)
            if self.group.node(group.GUARD) is None:
                group.rebuild(self.group)
            self.set(knobs.VERSION, knobs.NEWEST_VERSION)

    def _follow_moved_project(self) -> None:
        """The project has moved to another folder or system: use the cache that moved with it."""
        if not self.id or self.cache.is_dir():
            return
        filtered = str(nuke.filenameFilter(self.cache.as_posix()) or "")  # type: ignore[no-untyped-call]
        beside = cache.place_for(self.id, script_path(), "")
        for place in (Path(filtered), beside):
            if filtered and place.is_dir():
                self._use(place)
                return
        if script_path() and not self.cache.parent.is_dir():
            self._use(beside)  # do not make folders at the project's old place

    def _use(self, place: Path) -> None:
        with unrecorded():
            copies.follow_cache(self.group, self.cache.as_posix(), place.as_posix())
            self.set(knobs.CACHE_PATH, place.as_posix())

    def twin(self) -> StmNode | None:
        """Another node of this script with the same id. Clones count as one node."""
        mine = self.group.fullName()
        for other in find_all():
            are_clones = bool(self.group.clones() and other.group.clones())
            if other.id == self.id and other.group.fullName() != mine and not are_clones:
                return other
        return None

    def _came_from_another_script(self) -> bool:
        home = str(self[knobs.HOME])
        if home in ("", script_path(), _UNSAVED):
            return False
        # The cache follows a renamed or moved script; a script that still exists keeps it.
        return home.startswith("unsaved:") or os.path.isfile(home)

    def settle_after_save(self) -> None:
        """When the script is saved, move a cache without a script next to it; another script's is not
        moved."""
        script = script_path()
        if not script or not self.id or self[knobs.HOME] == script:
            return
        if not nuke.GUI and self[knobs.HOME] != _UNSAVED:
            return  # farms save copies, which are not separate scripts
        chosen = self[knobs.CACHE_PLACE] == knobs.CHOSEN_FOLDER
        if self._came_from_another_script():
            self._leave_cache_to_first_script()
        elif str(self[knobs.HOME]) == _UNSAVED and not chosen:
            self._settle(self.id, self.cache)
        else:
            with unrecorded():
                self.set(knobs.HOME, script)

    def _leave_cache_to_first_script(self) -> None:
        """The script was saved under another name. Work that is running for the node still belongs to it."""
        before = self.id
        self._settle(cache.new_id(), self.cache)
        tasks.rename(before, self.id)

    def move_cache(self) -> Path:
        """Move the cache to the folder of the Settings tab."""
        self.claim()
        self._settle(self.id, self.cache)
        return self.cache

    def _settle(self, node_id: str, source: Path | None) -> None:
        chosen = str(self[knobs.CACHE_FOLDER] or "") if self[knobs.CACHE_PLACE] == knobs.CHOSEN_FOLDER else ""
        place = cache.place_for(node_id, script_path(), chosen)
        if source is None or not source.is_dir():
            cache.make(place)
        elif place != source:
            cache.fork(source, place, is_whole=self.is_live)
        before = str(self[knobs.CACHE_PATH])
        with unrecorded():
            if before:
                copies.follow_cache(self.group, before, place.as_posix())
            self.set(knobs.NODE_ID, node_id)
            self.set(knobs.HOME, script_path() or _UNSAVED)
            self.set(knobs.CACHE_PATH, place.as_posix())
            self._show_matte()

    # ---- its output

    @property
    def shows_old(self) -> bool:
        """Whether the output shows the mattes from before the last change."""
        return bool(self[knobs.COMPARE] == knobs.OLD) and not self.is_live

    @property
    def has_confidence(self) -> bool:
        """Whether the output has the layer with the network's confidence."""
        return bool(self[knobs.CONFIDENCE])

    @property
    def has_foreground(self) -> bool:
        """Whether the output has the layer with the plate's colours without the background."""
        return bool(self[knobs.FOREGROUND])

    @property
    def keeps_old_mattes(self) -> bool:
        """Whether a matte that is out of date stays in use until there is a new one."""
        return bool(self[knobs.MISSING] == knobs.OLD_MATTE)

    def show_timeline(
        self, view: str, done: Collection[int] | None = None, advised: int | None = None
    ) -> None:
        """Set the curves of the node to the state of each frame.

        Args:
            done: the frames with a matte, if known; else the files are checked.
        """
        frames = self.frames
        if frames == (0, 0) or not self.id:
            return
        every = range(frames[0], frames[1] + 1)
        old: set[int] = set()
        if self.shows_old:
            done = cache.matte_frames(self.cache, view, cache.PREVIOUS)
        if done is None:
            found = cache.matte_frames(self.cache, view)
            old = cache.stale_mattes(self.cache, view) & found
            done = found - old
        keys = {key.frame for key in self.keys_of(view)}
        states = timeline.states_of(frames, set(done) & set(every), old, keys)
        marks = keys | ({advised} if advised is not None else set())
        timeline.show(self.group, states, marks, self._set_script)
        held = "parent." + knobs.HELD if self[knobs.MISSING] == knobs.HOLD_LAST and not self.is_live else ""
        read = group.inner(self.group, group.MATTE_READ)
        if read["frame"].value() != held:
            with unrecorded():
                read["frame"].setValue(held)

    def frames_by_state(self) -> list[tuple[str, list[int]]]:
        """The frames with an old matte, or none, by the timeline; empty before it is set."""
        curve = self.group.knob(knobs.TIMELINE)
        first, last = self.frames
        if curve is None or not curve.isAnimated():
            return []
        states = {frame: int(curve.getValueAt(frame)) for frame in range(first, last + 1)}
        return [
            (what, [frame for frame, found in states.items() if found == state])
            for what, state in (("old matte", timeline.OLD_MATTE), ("no matte", timeline.NO_MATTE))
        ]

    def _set_script(self, knob: str, script: str) -> None:
        root = nuke.root()
        was_modified = root.modified()
        with unrecorded():
            self.group[knob].fromScript(script)
        root.setModified(was_modified)

    @property
    def is_live(self) -> bool:
        """Whether the matte is live from the OpenFX effect, instead of files."""
        return live.is_wanted(self.group)

    def offer_objects(self) -> None:
        """Give each object a layer in the output, if there are several."""
        group.offer_objects(self.group, [one.name for one in self.objects])
        self._show_matte()

    def arrange_live(self) -> str:
        """Add or remove the effect by the switch; returns why that is impossible, or an empty text."""
        root = nuke.root()
        was_modified = root.modified()
        with unrecorded():
            problem = self._show_matte()
        root.setModified(was_modified)
        return problem

    def live_problem(self) -> str:
        """Why the effect does not match the switch, or an empty text. Nothing is changed."""
        names = self._object_names()
        return live.problem_of(self.group, self._live_store(), names, self.has_confidence)

    def _show_matte(self) -> str:
        first, last = self.frames
        pattern = group.matte_pattern(self.cache, cache.PREVIOUS if self.shows_old else "mattes")
        group.point_to(self.group, "" if self.is_live else pattern, first, last)
        group.show_layers(self.group, self.has_confidence, self.has_foreground and not self.is_live)
        problem = live.arrange(self.group, self._live_store(), self._object_names(), self.has_confidence)
        if self.is_live and not live.is_in(self.group):
            group.forbid(self.group, live.NOT_HERE)
        return problem

    def _live_store(self) -> Path:
        return cache.store_folder(self.cache, str(nuke.views()[0]))

    def _object_names(self) -> list[str]:
        try:
            return [one.name for one in self.objects]
        except UsageError:
            return []  # reported where they are needed


@contextlib.contextmanager
def full_size() -> Iterator[None]:
    """Switch proxy mode off inside: a matte of the proxy would have another size."""
    proxy = nuke.root().knob("proxy")
    if proxy is None or not proxy.value():
        yield
        return
    was_modified = nuke.root().modified()
    with unrecorded():
        proxy.setValue(False)
    try:
        yield
    finally:
        with unrecorded():
            proxy.setValue(True)
        nuke.root().setModified(was_modified)


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Changes inside are not recorded for undo."""
    nuke.Undo.disable()
    try:
        yield
    finally:
        nuke.Undo.enable()


def create(plate: nuke.Node | None = None, mask: nuke.Node | None = None) -> StmNode:
    """A new, connected STM node with its cache."""
    built = group.build()
    try:
        releases.check_reach(built, group.NODES)
    except StmNodeError:
        nuke.delete(built)
        raise
    for number, source in ((group.PLATE, plate), (group.MASK, mask)):
        if source is not None:
            built.setInput(number, source)
    if plate is not None:
        built.setXYpos(plate.xpos(), plate.ypos() + _BELOW)
    node = StmNode(built)
    try:
        if plate is not None:
            node.take_range_from_input()
        node.claim()
    except StmNodeError:
        nuke.delete(built)  # half a node would render black
        raise
    return node


def current_time() -> float:
    """The script's current time, which need not be a whole frame."""
    return float(nuke.root()["frame"].value())


def current_frame() -> int:
    """The current frame. UsageError between two frames."""
    return whole(current_time())


def find_all() -> list[StmNode]:
    """Every STM node of the script, in groups too, by name."""
    found = [StmNode(node) for node in _every_node(nuke.root()) if knobs.is_stm_node(node)]
    return sorted(found, key=lambda node: node.name)


def _every_node(parent: nuke.Group) -> Iterator[nuke.Node]:
    for node in parent.nodes():
        yield node
        if isinstance(node, nuke.Group) and not knobs.is_stm_node(node):
            yield from _every_node(node)


def find(name: str) -> StmNode:
    """The STM node of this name.

    Raises:
        NoNodeError: there is none.
    """
    node = nuke.toNode(name)
    if node is None or not knobs.is_stm_node(node):
        names = [one.name for one in find_all()]
        raise NoNodeError(
            f"There is no STM node {name}.",
            hint=f"There {'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}.",
        )
    return StmNode(node)


def find_by_id(node_id: str) -> StmNode:
    """The node that has or had this id. NoNodeError where it has been deleted."""
    nodes = find_all()
    for one in (node_id, tasks.present_id(node_id)):
        for node in nodes:
            if node.id == one:
                return node
    raise NoNodeError("The STM node has been deleted.")


def script_path() -> str:
    """The path of the open script, with forward slashes; empty where it has not been saved."""
    name = str(nuke.root().name())
    return "" if name in ("", "Root", nuke.untitled) else Path(name).as_posix()


def union(one: Window, other: Window) -> Window:
    """The smallest window that holds both."""
    left, top = min(one[0], other[0]), min(one[1], other[1])
    right = max(one[0] + one[2], other[0] + other[2])
    bottom = max(one[1] + one[3], other[1] + other[3])
    return left, top, right - left, bottom - top
