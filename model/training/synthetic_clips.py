"""Made-up clips with exactly known labels, from material that allows commercial use.

A clip is a scene: a background, things that move in front of it, a camera. Some things are objects (labels 1
to K), others only pass by. The scenes show what networks get wrong on real footage: things that turn and show
another side, parts of different colours, look-alikes that cross, thin lines, things that cover others, smoke
beside an object, light that changes, things that come in from the border. A clip depends on its seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from model.data.davis import ANNOTATION_FOLDER, PICTURE_FOLDER
from model.data.pictures import write_labels
from model.training.synthetic_things import TILE, Family, Matrix, Rng, Thing, warped
from model.training.textures import ByteArray, FloatArray, noise, texture

HELD_OUT = range(9_000_000, 9_010_000)
"""Seeds of clips that only measure; `stm train clips` refuses them."""

_SMALLEST = 0.004
"""Share of the first picture that each object shows at least."""


@dataclass(frozen=True)
class SceneOptions:
    """Sizes in pixels; chances in [0, 1]."""

    height: int = 288
    width: int = 384
    frames: int = 12
    most_objects: int = 3
    look_alike_chance: float = 0.45
    """Of the scenes, those in which several things look alike."""
    turn_chance: float = 0.4
    """Of the things, those that turn and show another side."""
    grow_chance: float = 0.15
    """Of the objects, those that come near: they grow much, or are small at first."""
    enter_chance: float = 0.2
    """Of the objects, those of which the first frame shows a part; the rest comes in from the border."""
    smoke_chance: float = 0.25
    """Of the scenes, those with smoke; in half of them it rises beside an object and moves with it."""
    cover_chance: float = 0.4
    """Of the scenes, those in which something that is no object stands or passes in front."""
    carry_chance: float = 0.0
    """Of the scenes, those in which a thing carries a smaller one, as a child its rucksack. One of the two is
    an object, or each is."""
    thin_share: float = 0.16
    """Of the things that no photograph shows, those of thin lines: frames, rings with spokes, loads on
    strings."""


class SyntheticClip(NamedTuple):
    """pictures (T, H, W, 3); labels (T, H, W), 0 background and 1 to K objects."""

    pictures: ByteArray
    labels: ByteArray


def synthetic_clip(
    seed: int,
    options: SceneOptions | None = None,
    *,
    pictures: Sequence[Path] = (),
    cut_outs: Sequence[tuple[Path, Path]] = (),
) -> SyntheticClip:
    """The clip of a seed.

    Args:
        pictures: more photographs for textures and backgrounds.
        cut_outs: files of photographs and of their label pictures, for things cut out of photographs.
    """
    options = options or SceneOptions()
    for attempt in range(20):
        rng = np.random.default_rng((seed, attempt))
        clip = _Scene(rng, options, pictures, cut_outs).clip()
        counts = np.bincount(clip.labels[0].ravel(), minlength=2)[1:]
        if counts.min() >= _SMALLEST * options.height * options.width:
            return clip
    raise RuntimeError(f"no scene of seed {seed} shows its objects")  # has not been seen


def write_clips(
    folder: Path,
    seeds: Sequence[int],
    options: SceneOptions | None = None,
    *,
    pictures: Sequence[Path] = (),
    cut_outs: Sequence[tuple[Path, Path]] = (),
) -> Iterator[str]:
    """Writes the clips of these seeds in DAVIS layout; existing ones are kept. Gives each name as it is
    done."""
    for seed in seeds:
        if not _is_written(folder, seed, options):
            clip = synthetic_clip(seed, options, pictures=pictures, cut_outs=cut_outs)
            _write(folder, seed, clip)
        yield _name(seed)


def write_held_out(
    folder: Path, count: int, options: SceneOptions | None = None, *, least_objects: int = 2
) -> list[str]:
    """Writes the first clips of `HELD_OUT` that begin with that many objects at least, in DAVIS layout.

    Existing ones are kept, so a folder is for one generator and one `options`.

    Returns:
        their names, ascending.
    """
    names = [_name(seed) for seed in HELD_OUT if _is_written(folder, seed, options)][:count]
    if len(names) == count:
        return names
    names = []
    for seed in HELD_OUT:
        if len(names) == count:
            break
        clip = synthetic_clip(seed, options)
        if clip.labels[0].max() >= least_objects:
            _write(folder, seed, clip)
            names.append(_name(seed))
    return names


def _name(seed: int) -> str:
    return f"made-{seed:06d}"


def _is_written(folder: Path, seed: int, options: SceneOptions | None) -> bool:
    """A clip is complete when its last annotation exists."""
    last = (options or SceneOptions()).frames - 1
    return (folder / ANNOTATION_FOLDER / _name(seed) / f"{last:05d}.png").exists()


def _write(folder: Path, seed: int, clip: SyntheticClip) -> None:
    pictures, annotations = (folder / kind / _name(seed) for kind in (PICTURE_FOLDER, ANNOTATION_FOLDER))
    pictures.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(clip.pictures):
        Image.fromarray(picture).save(pictures / f"{index:05d}.jpg", quality=90)
    for index, labels in enumerate(clip.labels):
        write_labels(annotations / f"{index:05d}.png", labels)


class _Path:
    """How a thing moves on the picture: place, size and angle at a time, smooth."""

    def __init__(self, rng: Rng, options: SceneOptions, *, start: tuple[float, float], size: float) -> None:
        self._start = np.array(start)
        speed = rng.exponential(0.012) + rng.choice([0.0, 0.02, 0.05], p=[0.6, 0.3, 0.1])
        heading = rng.uniform(0, math.tau)
        self._velocity = speed * options.height * np.array([math.cos(heading), 0.6 * math.sin(heading)])
        self._sway = rng.uniform(0, 0.03) * options.height, rng.uniform(0.2, 1.2), rng.uniform(0, math.tau, 2)
        self._size, self._growth = size, rng.normal(0, 0.015)
        self._angle, self._spin = rng.normal(0, 20), rng.normal(0, 1.5) + rng.choice([0, 6.0], p=[0.9, 0.1])
        self._flip = rng.random() < 0.5

    def entering(self, rng: Rng, options: SceneOptions) -> None:
        """Changes this path so that the thing comes in from a border; at first a part of it is seen."""
        side = rng.choice([-1, 1])
        middle = np.array([options.width, options.height]) / 2
        edge = middle[0] + side * (middle[0] + self._size * rng.uniform(0.0, 0.25))
        self._start = np.array([edge, self._start[1]])
        inward = -side * rng.uniform(0.5, 1.0) * middle[0] / options.frames
        self._velocity = np.array([inward, 0.3 * self._velocity[1]])

    def coming_near(self, rng: Rng) -> None:
        """Changes this path so that the thing grows by 1.5 to 4 times in a dozen frames."""
        self._growth = rng.uniform(0.035, 0.12)
        self._size *= 0.6

    def crossing(self, other: _Path, frames: int) -> None:
        """Changes this path so that both things change places about the middle of the clip."""
        middle = frames / 2
        self._velocity = (other._start - self._start) / frames + other._velocity * 0.3
        other._velocity = (self._start - other._start) / frames * (1 if middle else 0)

    def matrix(self, time: float) -> Matrix:
        """Takes the tile to the picture."""
        amount, pace, phase = self._sway
        place = self._start + self._velocity * time + amount * np.sin(phase + pace * time)
        scale = self._size * math.exp(self._growth * time) / TILE
        angle = math.radians(self._angle + self._spin * time)
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cos * (-1 if self._flip else 1), -sin], [sin * (-1 if self._flip else 1), cos]])
        shift = place - linear @ np.array([TILE / 2, TILE / 2])
        return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


class _Member(NamedTuple):
    """A thing in a scene.

    label: 0 for what is no object; nearness: how much the camera's motion moves it; first: the frame from
    which on it is there; on_carrier: of a carried thing, whose path is its carrier's, takes its tile to the
    carrier's.
    """

    thing: Thing
    path: _Path
    label: int
    nearness: float
    first: int
    on_carrier: Matrix | None = None

    def matrix(self, time: float) -> Matrix:
        """Takes the tile to the picture."""
        matrix = self.path.matrix(time)
        return matrix if self.on_carrier is None else matrix @ self.on_carrier


def _place_on_carrier(rng: Rng) -> Matrix:
    """Takes the tile of a carried thing to that of its carrier: smaller, and over a part of it."""
    size, angle = rng.uniform(0.25, 0.6), math.radians(rng.normal(0, 20))
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    shift = rng.uniform(0.3, 0.7, 2) * TILE - linear @ np.array([TILE / 2, TILE / 2])
    return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


class _Scene:
    """A background, things from back to front, a camera."""

    def __init__(
        self, rng: Rng, options: SceneOptions, pictures: Sequence[Path], cut_outs: Sequence[tuple[Path, Path]]
    ) -> None:
        self._rng, self._options, self._pictures, self._cut_outs = rng, options, pictures, cut_outs
        self._margin = options.height // 3
        size = options.height + 2 * self._margin, options.width + 2 * self._margin
        self._background = texture(rng, *size, pictures)
        if rng.random() < 0.4:
            blur = rng.uniform(0.8, 6)
            self._background = np.asarray(cv2.GaussianBlur(self._background, (0, 0), blur), np.uint8)
        self._members = self._cast()
        self._camera = _CameraMove(rng, options)
        self._smoke = self._cloud() if rng.random() < options.smoke_chance else None

    def clip(self) -> SyntheticClip:
        shown = [self._frame(time) for time in range(self._options.frames)]
        look = _Look(self._rng, self._options)
        pictures = [look.recorded(picture, time) for time, (picture, _) in enumerate(shown)]
        return SyntheticClip(np.stack(pictures), np.stack([labels for _, labels in shown]))

    def _cloud(self) -> _Smoke:
        source = next(member for member in self._members if member.label)
        beside = self._rng.random() < 0.5
        return _Smoke(self._rng, self._options, source.path if beside else None)

    def _cast(self) -> list[_Member]:
        rng, options = self._rng, self._options
        objects = 1 + int(rng.binomial(options.most_objects - 1, 0.4))
        extras = int(rng.integers(0, 4))
        alike = rng.random() < options.look_alike_chance
        family = self._family()
        members: list[_Member] = []
        for label in [0] * extras + list(range(1, objects + 1)):
            thing = family() if alike and rng.random() < 0.8 else self._family()()
            members.append(self._placed(thing, label))
        if alike and len(members) > 1:
            members[-1].path.crossing(members[-2].path, options.frames)
        order = rng.permutation(len(members))
        members = [members[index] for index in order]
        if options.carry_chance and rng.random() < options.carry_chance:
            self._load(members)
        if rng.random() < options.cover_chance:
            members.append(self._placed(self._family()(), 0))
        return members

    def _placed(self, thing: Thing, label: int) -> _Member:
        rng, options = self._rng, self._options
        smallest, largest = (0.3, 1.3) if label else (0.15, 1.0)
        size = options.height * math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        start = rng.uniform(0.1, 0.9) * options.width, rng.uniform(0.15, 0.85) * options.height
        late = label == 0 and rng.random() < 0.3
        first = int(rng.integers(1, options.frames)) if late else 0
        path = _Path(rng, options, start=start, size=size)
        if label and rng.random() < options.grow_chance:
            path.coming_near(rng)
        if label and rng.random() < options.enter_chance:
            path.entering(rng, options)
        return _Member(thing, path, label, rng.uniform(0.8, 1.3), first)

    def _load(self, members: list[_Member]) -> None:
        """Lets one of the objects carry a small thing, mostly in front of it. If there is room for one more
        object, the small thing is one in most cases; else it sometimes takes the label of its carrier."""
        rng = self._rng
        where = int(rng.choice([index for index, member in enumerate(members) if member.label]))
        carrier = members[where]
        labels = max(member.label for member in members)
        label = 0
        if labels < self._options.most_objects and rng.random() < 0.8:
            label = labels + 1
        elif rng.random() < 0.4:
            label = carrier.label
            members[where] = carrier = carrier._replace(label=0)
        carried = carrier._replace(thing=self._family()(), label=label, on_carrier=_place_on_carrier(rng))
        members.insert(where + int(rng.random() < 0.8), carried)

    def _family(self) -> Family:
        return Family(
            self._rng,
            self._pictures,
            self._cut_outs,
            turn_chance=self._options.turn_chance,
            thin_share=self._options.thin_share,
        )

    def _frame(self, time: float) -> tuple[ByteArray, ByteArray]:
        options = self._options
        camera = self._camera.matrix(time)
        to_picture = camera @ np.array([[1.0, 0, -self._margin], [0, 1, -self._margin], [0, 0, 1]])
        seen = warped(
            self._background, to_picture[:2], options.height, options.width, border=cv2.BORDER_REFLECT
        ).astype(np.float32)
        labels = np.zeros((options.height, options.width), np.uint8)
        for member in self._members:
            if time < member.first:
                continue
            cover, colours = member.thing.drawn(time)
            matrix = (self._camera.matrix(time, member.nearness) @ member.matrix(time))[:2]
            alpha = warped(cover, matrix, options.height, options.width)
            box = cv2.boundingRect(alpha)
            if box[2] == 0:
                continue
            x, y, wide, tall = box
            part = np.s_[y : y + tall, x : x + wide]
            moved = matrix - np.array([[0, 0, x], [0, 0, y]])
            colour = warped(colours, moved, tall, wide, border=cv2.BORDER_REPLICATE).astype(np.float32)
            weight = alpha[part].astype(np.float32)[..., None] / np.float32(255)
            seen[part] += (colour - seen[part]) * weight
            labels[part][alpha[part] > 127] = member.label
        if self._smoke is not None:
            self._smoke.over(seen, time)
        return np.asarray(np.clip(seen, 0, 255), np.uint8), labels


class _CameraMove:
    """Pan, zoom, turn and shake."""

    def __init__(self, rng: Rng, options: SceneOptions) -> None:
        self._middle = np.array([options.width, options.height]) / 2
        self._reach = options.height / 3.5
        still = rng.random() < 0.35
        strength = 0 if still else options.height
        self._pan = rng.normal(0, 0.008, 2) * strength
        self._zoom: float = 0.0 if still else rng.normal(0, 0.006)
        self._turn: float = 0.0 if still else rng.normal(0, 0.006)
        self._shake = rng.choice([0, 0.002, 0.006]) * strength
        self._jolts = rng.normal(0, 1, (256, 2))

    def matrix(self, time: float, nearness: float = 1.0) -> Matrix:
        """Takes the world to the picture at a time."""
        scale = math.exp(self._zoom * time)
        angle = self._turn * time
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]])
        pan = np.clip(self._pan * time, -self._reach, self._reach) * nearness
        shift = self._middle - linear @ self._middle + pan + self._shake * self._jolts[int(time) % 256]
        return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


class _Smoke:
    """A cloud that drifts and grows in front of everything.

    With a `source` it rises beside a thing and moves with it, as dust and spray do.
    """

    def __init__(self, rng: Rng, options: SceneOptions, source: _Path | None) -> None:
        height, width = options.height, options.width
        self._cloud = noise(rng, 2 * height, 2 * width, rng.uniform(40, 140), octaves=4)
        self._centre = rng.uniform(0.2, 0.8, 2) * (width, height)
        self._speed = rng.normal(0, 0.01, 2) * height
        self._size, self._growth = rng.uniform(0.15, 0.5) * height, rng.uniform(0, 0.06)
        self._source = source
        self._beside = rng.uniform(-0.5, 0.5, 2)
        self._colour = np.full(3, rng.uniform(120, 255), np.float32) * rng.uniform(0.9, 1.0, 3).astype(
            np.float32
        )
        self._thick = rng.uniform(0.4, 1.2)

    def over(self, seen: FloatArray, time: float) -> None:
        """Draws the cloud over a picture (H, W, 3)."""
        height, width = seen.shape[:2]
        x, y = self._centre_at(time)
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        size = self._size * math.exp(self._growth * time)
        near = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * size**2))
        shift = np.round(self._speed * 2 * time + (width // 2, height // 2)).astype(int)
        left, top = np.clip(shift, 0, (width, height))
        cloud = self._cloud[top : top + height, left : left + width]
        alpha = np.clip(self._thick * near * (2 * cloud - 0.5), 0, 0.95)[..., None]
        seen += (self._colour - seen) * alpha

    def _centre_at(self, time: float) -> FloatArray:
        if self._source is None:
            return np.asarray(self._centre + self._speed * time, np.float32)
        beside = np.array([*(0.5 + self._beside) * TILE, 1.0])
        return np.asarray((self._source.matrix(time) @ beside)[:2], np.float32)


class _Look:
    """How the camera records: light that changes, blur, grain."""

    def __init__(self, rng: Rng, options: SceneOptions) -> None:
        self._rng = rng
        self._gain, self._drift = rng.uniform(0.6, 1.25), rng.normal(0, 0.01)
        self._flicker = rng.choice([0, 0, 0.03])
        self._balance = rng.uniform(0.88, 1.12, 3).astype(np.float32)
        self._blur = rng.uniform(0.4, 1.4) if rng.random() < 0.3 else 0.0
        self._grain = rng.choice([0, 3, 8]) * rng.uniform(0.5, 1.2)

    def recorded(self, picture: ByteArray, time: float) -> ByteArray:
        gain = self._gain * math.exp(self._drift * time) * (1 + self._flicker * self._rng.normal())
        seen = picture.astype(np.float32) * (self._balance * np.float32(gain))
        if self._blur:
            seen = np.asarray(cv2.GaussianBlur(seen, (0, 0), self._blur), np.float32)
        if self._grain:
            seen += self._rng.standard_normal(seen.shape, np.float32) * np.float32(self._grain)
        return np.asarray(np.clip(seen, 0, 255), np.uint8)
