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
import numpy.typing as npt
from PIL import Image

from model.data.davis import ANNOTATION_FOLDER, PICTURE_FOLDER
from model.data.pictures import write_labels
from model.training.textures import ByteArray, FloatArray, noise, read_bytes, texture

Rng = np.random.Generator
Matrix = npt.NDArray[np.float64]
"""(3, 3), takes points (x, y, 1) of one plane to another."""

HELD_OUT = range(9_000_000, 9_010_000)
"""Seeds of clips that only measure; `stm train clips` refuses them."""

_TILE = 192
"""Side of the square on which a thing is drawn, in pixels."""
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


@dataclass(frozen=True, eq=False)
class CutOut:
    """A photograph with the mask of one thing in it.

    picture (H, W, 3), mask (H, W) with 0 and 1.
    """

    picture: ByteArray
    mask: ByteArray


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


# ---- things ----------------------------------------------------------------------------------


class _Thing:
    """Something flat that is drawn on a tile of `_TILE` pixels: an outline, parts, and what they are painted
    with. It bends, and it may turn."""

    def __init__(self, rng: Rng, options: SceneOptions, paint: _Paint) -> None:
        self._paint = paint
        self._bend, self._phase = rng.uniform(0, 0.12), rng.uniform(0, math.tau, 12)
        self._pace = rng.uniform(0.1, 0.9)
        self._turning = rng.choice(["no", "roll", "flip"], p=self._turns(options))
        self._turn_speed, self._turn_start = _turn_of(rng)

    @staticmethod
    def _turns(options: SceneOptions) -> tuple[float, float, float]:
        return 1 - options.turn_chance, 0.5 * options.turn_chance, 0.5 * options.turn_chance

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        """Coverage (S, S) in 255ths, and the number of the part seen at each pixel (S, S)."""
        raise NotImplementedError

    def drawn(self, time: float) -> tuple[ByteArray, ByteArray]:
        """Coverage (S, S) in 255ths and colours (S, S, 3) at a time in frames."""
        cover, parts = self.shape(time)
        turn = self._turn_start + self._turn_speed * time
        colours = self._paint.at(parts, turn if self._turning != "no" else 0.0, roll=self._turning == "roll")
        return _squeezed(cover, colours, turn if self._turning == "flip" else 0.0)

    def _wave(self, index: int, time: float) -> float:
        return self._bend * math.sin(self._phase[index % 12] + self._pace * time)


def _turn_of(rng: Rng) -> tuple[float, float]:
    """Speed in radians a frame, and angle on the first frame."""
    return rng.choice([-1, 1]) * rng.uniform(0.1, 0.45), rng.uniform(-0.4, 0.4)


def _squeezed(cover: ByteArray, colours: ByteArray, turn: float) -> tuple[ByteArray, ByteArray]:
    """A flat thing that has turned by an angle about its upright axis: it looks narrower."""
    if turn == 0:
        return cover, colours
    squeeze = max(abs(math.cos(turn)), 0.15)
    matrix = np.array([[squeeze, 0, _TILE / 2 * (1 - squeeze)], [0, 1, 0]])
    return _warped(cover, matrix, _TILE, _TILE), _warped(colours, matrix, _TILE, _TILE)


class _Paint:
    """What the parts of a thing are painted with: a front, a back and, while it rolls, all round."""

    def __init__(self, rng: Rng, pictures: Sequence[Path], parts: int) -> None:
        plain = rng.random() < 0.3
        self._round = [_surface(rng, pictures, plain) for _ in range(parts)]
        self._back = [
            _surface(rng, pictures, plain) if rng.random() < 0.7 else front[:, ::-1] for front in self._round
        ]
        self._shade = rng.uniform(0, 0.5), rng.uniform(0, math.tau)

    def at(self, parts: ByteArray, turn: float, *, roll: bool) -> ByteArray:
        """Colours (S, S, 3) for the part numbers (S, S).

        Args:
            turn: angle in radians.
            roll: the surface moves over the thing like a cylinder's; otherwise the side that faces us shows.
        """
        colours = np.zeros((_TILE, _TILE, 3), np.uint8)
        for index, front in enumerate(self._round):
            if roll:
                shift = round(turn / math.pi * _TILE)
                both = np.concatenate([front, self._back[index]], axis=1)
                surface = np.roll(both, shift, axis=1)[:, :_TILE]
            else:
                surface = front if math.cos(turn) >= 0 else self._back[index]
            np.copyto(colours, surface, where=(parts == index)[..., None])
        strength, angle = self._shade
        rows, columns = _GRID
        light = 1 + strength * ((columns - 0.5) * math.cos(angle) + (rows - 0.5) * math.sin(angle))
        return np.asarray(np.clip(colours * light[..., None], 0, 255), np.uint8)


def _surface(rng: Rng, pictures: Sequence[Path], plain: bool) -> ByteArray:
    if plain or rng.random() < 0.25:
        colour = rng.integers(0, 256, 3).astype(np.float32)
        grain = 0.8 + 0.4 * noise(rng, _TILE, _TILE, rng.uniform(6, 80))
        return np.asarray(np.clip(colour * grain[..., None], 0, 255), np.uint8)
    return texture(rng, _TILE, _TILE, pictures)


_GRID = tuple(np.mgrid[0:_TILE, 0:_TILE].astype(np.float32) / _TILE)


class _Blob(_Thing):
    """A closed curve, round or angular, perhaps with holes and with parts of other colours."""

    PARTS = 3

    def __init__(self, rng: Rng, options: SceneOptions, paint: _Paint) -> None:
        super().__init__(rng, options, paint)
        self._angles = np.linspace(0, math.tau, 120, endpoint=False)
        rough = rng.uniform(0.05, 0.45)
        if rng.random() < 0.4:
            corners = np.sort(rng.uniform(0, math.tau, int(rng.integers(3, 9))))
            self._radius = np.interp(
                self._angles, corners, rng.uniform(0.5, 1, corners.size), period=math.tau
            )
        else:
            self._radius = np.ones(120)
            for wave in range(1, 7):
                self._radius += (
                    rough / wave * rng.normal(0, 0.7) * np.sin(wave * self._angles + rng.uniform(0, 6))
                )
        self._radius = np.clip(self._radius, 0.2, 1.6)
        self._radius /= self._radius.max()
        self._stretch = rng.uniform(0.45, 1.0, 2)
        self._parts = noise(rng, _TILE, _TILE, rng.uniform(40, 150))
        self._limits = np.sort(rng.uniform(0.35, 1.1, 2))
        self._hole = (rng.uniform(0.35, 0.65, 2), rng.uniform(0.05, 0.2)) if rng.random() < 0.2 else None

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        radius = self._radius.copy()
        for wave in range(1, 5):
            radius *= 1 + self._wave(wave, time) * np.sin(wave * self._angles + self._phase[wave])
        reach = 0.46 * _TILE * np.clip(radius, 0.15, 1.05)
        x = _TILE / 2 + reach * np.cos(self._angles) * self._stretch[0]
        y = _TILE / 2 + reach * np.sin(self._angles) * self._stretch[1]
        cover = np.zeros((_TILE, _TILE), np.uint8)
        _fill(cover, np.stack([x, y], 1), 255)
        if self._hole is not None:
            middle, size = self._hole
            cv2.circle(cover, _fixed(middle * _TILE), int(size * _TILE * 16), 0, -1, cv2.LINE_AA, shift=4)
        parts = np.digitize(self._parts, self._limits).astype(np.uint8)
        return cover, parts


class _Creature(_Thing):
    """A body with a head and limbs that swing, each painted otherwise."""

    PARTS = 4

    def __init__(self, rng: Rng, options: SceneOptions, paint: _Paint) -> None:
        super().__init__(rng, options, paint)
        self._body = rng.uniform(0.1, 0.2), rng.uniform(0.14, 0.26), rng.uniform(-40, 40)
        self._head = rng.uniform(0.06, 0.13), rng.uniform(-2.4, -0.7)
        count = int(rng.integers(2, 6))
        self._limbs = [
            (
                rng.uniform(0, math.tau),
                rng.uniform(0.12, 0.26),
                rng.uniform(0.12, 0.22),
                rng.uniform(0.015, 0.07),
            )
            for _ in range(count)
        ]
        self._swing = rng.uniform(0.1, 0.9)

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        cover = np.zeros((_TILE, _TILE), np.uint8)
        parts = np.zeros((_TILE, _TILE), np.uint8)
        middle = np.array([0.5, 0.5])
        for index, (angle, upper, lower, width) in enumerate(self._limbs):
            swing = self._swing * math.sin(self._phase[index] + self._pace * time)
            knee = middle + upper * np.array([math.cos(angle + swing), math.sin(angle + swing)])
            bent = angle + 1.8 * swing
            end = knee + lower * np.array([math.cos(bent), math.sin(bent)])
            line = np.array([middle, knee, end]) * _TILE
            _line(cover, parts, line, width, 2 + index % 2)
        wide, tall, lean = self._body
        lean += 20 * self._wave(7, time) * 5
        _oval(cover, parts, middle, (wide, tall), lean, 0)
        size, angle = self._head
        angle += 4 * self._wave(8, time)
        head = middle + (tall + 0.6 * size) * np.array([math.cos(angle), math.sin(angle)])
        _oval(cover, parts, head, (size, size * 1.2), lean, 1)
        return cover, parts


class _Wheeled(_Thing):
    """A body with a cabin, windows and wheels. Seen from the front it is narrower."""

    PARTS = 4

    def __init__(self, rng: Rng, options: SceneOptions, paint: _Paint) -> None:
        super().__init__(rng, options, paint)
        self._length, self._height = rng.uniform(0.28, 0.44), rng.uniform(0.08, 0.14)
        self._cabin = rng.uniform(0.4, 0.8), rng.uniform(-0.15, 0.15), rng.uniform(0.08, 0.16)
        self._wheel = rng.uniform(0.05, 0.09)

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        cover = np.zeros((_TILE, _TILE), np.uint8)
        parts = np.zeros((_TILE, _TILE), np.uint8)
        long, tall = self._length, self._height
        body = np.array(
            [[-long, 0], [-0.9 * long, -tall], [0.9 * long, -tall], [long, 0], [long, tall], [-long, tall]]
        )
        share, shift, high = self._cabin
        x = np.array([-share, -0.7 * share, 0.7 * share, share]) * long + shift * long
        roof = -tall - high
        cabin = np.stack([x, [-tall, roof, roof, -tall]], axis=1)
        top, bottom = roof + 0.2 * high, -tall - 0.01
        window = np.stack([0.8 * x, [bottom, top, top, bottom]], axis=1)
        for outline, part in ((cabin, 0), (window, 1), (body, 2 if self._wheel > 0.07 else 0)):
            points = (outline + 0.5) * _TILE
            _fill(cover, points, 255)
            _fill(parts, points, part, cv2.LINE_8)
        for side in (-0.6, 0.6):
            middle = np.array([0.5 + side * long, 0.5 + tall]) * _TILE
            for canvas, value, line in ((cover, 255, cv2.LINE_AA), (parts, 3, cv2.LINE_8)):
                cv2.circle(canvas, _fixed(middle), int(self._wheel * _TILE * 16), value, -1, line, shift=4)
        return cover, parts


class _Frame(_Thing):
    """Thin parts: a polygon of rods, or a ring with spokes."""

    PARTS = 1

    def __init__(self, rng: Rng, options: SceneOptions, paint: _Paint) -> None:
        super().__init__(rng, options, paint)
        self._points = rng.uniform(0.1, 0.9, (int(rng.integers(3, 7)), 2))
        self._width = rng.uniform(0.02, 0.06)
        self._ring = rng.random() < 0.4

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        cover = np.zeros((_TILE, _TILE), np.uint8)
        thick = max(2, round(self._width * _TILE))
        if self._ring:
            middle = _fixed(np.array([0.5, 0.5]) * _TILE)
            cv2.circle(cover, middle, int(0.38 * _TILE * 16), 255, thick, cv2.LINE_AA, shift=4)
        bent = self._points + [
            [self._wave(i, time) * 0.5, self._wave(i + 5, time) * 0.5] for i in range(len(self._points))
        ]
        cv2.polylines(
            cover, [np.round(bent * _TILE * 16).astype(np.int32)], True, 255, thick, cv2.LINE_AA, shift=4
        )
        return cover, np.zeros_like(cover)


class _Strung(_Thing):
    """A load that hangs from a canopy by strings: thin lines between solid parts."""

    PARTS = 3

    def __init__(self, rng: Rng, options: SceneOptions, paint: _Paint) -> None:
        super().__init__(rng, options, paint)
        self._canopy = rng.uniform(0.25, 0.44), rng.uniform(0.08, 0.16)
        self._load = rng.uniform(0.04, 0.1), rng.uniform(0.04, 0.12)
        self._strings = np.sort(rng.uniform(-0.95, 0.95, int(rng.integers(2, 7))))
        self._thick = int(rng.integers(2, 5))

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        cover = np.zeros((_TILE, _TILE), np.uint8)
        parts = np.zeros((_TILE, _TILE), np.uint8)
        wide, tall = self._canopy
        top = np.array([0.5, 0.2])
        load = np.array([0.5 + 2 * self._wave(0, time), 0.8])
        for place in self._strings:
            string = np.array([top + np.array([place * wide, 0.0]), load]) * _TILE
            _line(cover, parts, string, self._thick / _TILE, 2)
        angles = np.linspace(math.pi, math.tau, 40)
        arc = np.stack([np.cos(angles) * wide, np.sin(angles) * tall * (1 + self._wave(1, time))], axis=1)
        for canvas, value, line in ((cover, 255, cv2.LINE_AA), (parts, 0, cv2.LINE_8)):
            _fill(canvas, (top + arc) * _TILE, value, line)
        _oval(cover, parts, load, self._load, 0, 1)
        return cover, parts


class _Photographed:
    """A thing cut out of a photograph. It sways like something soft, and it may turn and show a back."""

    def __init__(self, rng: Rng, options: SceneOptions, cut: CutOut, back: ByteArray) -> None:
        """back: (S, S, 3), what the other side of the thing is painted with."""
        rows, columns = np.nonzero(cut.mask)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        picture, mask = cut.picture[top:bottom, left:right], cut.mask[top:bottom, left:right] * np.uint8(255)
        # within the tile a little room is left, because it sways
        scale = 0.86 * _TILE / max(mask.shape)
        stretch = math.exp(rng.uniform(-0.25, 0.25))
        size = (
            max(2, round(mask.shape[1] * scale * min(stretch, 1))),
            max(2, round(mask.shape[0] * scale * min(1 / stretch, 1))),
        )
        self._cover, self._colours = np.zeros((_TILE, _TILE), np.uint8), np.zeros((_TILE, _TILE, 3), np.uint8)
        x, y = (_TILE - size[0]) // 2, (_TILE - size[1]) // 2
        flip = rng.random() < 0.5
        for canvas, one in ((self._cover, mask), (self._colours, picture)):
            small = cv2.resize(one, size, interpolation=cv2.INTER_AREA)
            canvas[y : y + size[1], x : x + size[0]] = small[:, ::-1] if flip else small
        self._strength, self._phase = rng.uniform(0, 0.025) * _TILE, rng.uniform(0, math.tau, 2)
        self._waves, self._pace = rng.uniform(2, 7, 2), rng.uniform(0.1, 0.7)
        self._turns = rng.random() < options.turn_chance
        self._turn_speed, self._turn_start = _turn_of(rng)
        share = np.float32(rng.uniform(0.4, 1.0))  # a back has something of the front, as a cat's has
        front = self._colours[:, ::-1].astype(np.float32)
        self._back = np.asarray(front + (back - front) * share, np.uint8)

    def drawn(self, time: float) -> tuple[ByteArray, ByteArray]:
        """Coverage (S, S) in 255ths and colours (S, S, 3) at a time in frames."""
        rows, columns = _GRID
        x = columns * _TILE + self._strength * np.sin(
            self._waves[0] * rows + self._phase[0] + self._pace * time
        )
        y = rows * _TILE + self._strength * np.sin(
            self._waves[1] * columns + self._phase[1] + self._pace * time
        )
        maps = np.asarray(x, np.float32), np.asarray(y, np.float32)
        turn = self._turn_start + self._turn_speed * time if self._turns else 0.0
        side = self._colours if math.cos(turn) >= 0 else self._back
        cover = np.asarray(cv2.remap(self._cover, *maps, cv2.INTER_LINEAR), np.uint8)
        seen = cv2.remap(side, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return _squeezed(cover, np.asarray(seen, np.uint8), turn)


_KINDS = (_Blob, _Creature, _Wheeled, _Frame, _Strung)


def _shares(thin: float) -> tuple[float, ...]:
    """How often each of `_KINDS` is drawn, if those of thin lines have a share of `thin`."""
    solid = 1 - thin
    return solid / 2, solid / 3, solid / 6, thin / 2, thin / 2


# ---- a scene ---------------------------------------------------------------------------------


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
        scale = self._size * math.exp(self._growth * time) / _TILE
        angle = math.radians(self._angle + self._spin * time)
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cos * (-1 if self._flip else 1), -sin], [sin * (-1 if self._flip else 1), cos]])
        shift = place - linear @ np.array([_TILE / 2, _TILE / 2])
        return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


class _Member(NamedTuple):
    """A thing in a scene.

    label: 0 for what is no object; nearness: how much the camera's motion moves it; first: the frame from
    which on it is there; on_carrier: of a carried thing, whose path is its carrier's, takes its tile to the
    carrier's.
    """

    thing: _Thing | _Photographed
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
    shift = rng.uniform(0.3, 0.7, 2) * _TILE - linear @ np.array([_TILE / 2, _TILE / 2])
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

    def _placed(self, thing: _Thing | _Photographed, label: int) -> _Member:
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

    def _family(self) -> _Family:
        return _Family(self._rng, self._options, self._pictures, self._cut_outs)

    def _frame(self, time: float) -> tuple[ByteArray, ByteArray]:
        options = self._options
        camera = self._camera.matrix(time)
        to_picture = camera @ np.array([[1.0, 0, -self._margin], [0, 1, -self._margin], [0, 0, 1]])
        seen = _warped(
            self._background, to_picture[:2], options.height, options.width, border=cv2.BORDER_REFLECT
        ).astype(np.float32)
        labels = np.zeros((options.height, options.width), np.uint8)
        for member in self._members:
            if time < member.first:
                continue
            cover, colours = member.thing.drawn(time)
            matrix = (self._camera.matrix(time, member.nearness) @ member.matrix(time))[:2]
            alpha = _warped(cover, matrix, options.height, options.width)
            box = cv2.boundingRect(alpha)
            if box[2] == 0:
                continue
            x, y, wide, tall = box
            part = np.s_[y : y + tall, x : x + wide]
            moved = matrix - np.array([[0, 0, x], [0, 0, y]])
            colour = _warped(colours, moved, tall, wide, border=cv2.BORDER_REPLICATE).astype(np.float32)
            weight = alpha[part].astype(np.float32)[..., None] / np.float32(255)
            seen[part] += (colour - seen[part]) * weight
            labels[part][alpha[part] > 127] = member.label
        if self._smoke is not None:
            self._smoke.over(seen, time)
        return np.asarray(np.clip(seen, 0, 255), np.uint8), labels


class _Family:
    """Makes things that look alike: the same kind, size and paint."""

    def __init__(
        self, rng: Rng, options: SceneOptions, pictures: Sequence[Path], cut_outs: Sequence[tuple[Path, Path]]
    ) -> None:
        self._rng, self._options = rng, options
        self._cut: CutOut | None = None
        self._back = texture(rng, _TILE, _TILE, pictures)
        if cut_outs and rng.random() < 0.3:
            self._cut = read_cut_out(*cut_outs[int(rng.integers(len(cut_outs)))], rng)
        self._kind = _KINDS[int(rng.choice(len(_KINDS), p=_shares(options.thin_share)))]
        self._paint = _Paint(rng, pictures, self._kind.PARTS)

    def __call__(self) -> _Thing | _Photographed:
        if self._cut is not None:
            return _Photographed(self._rng, self._options, self._cut, self._back)
        return self._kind(self._rng, self._options, self._paint)


def read_cut_out(picture: Path, labels: Path, rng: Rng) -> CutOut | None:
    """One object of a photograph, or None if it has none of some size."""
    with Image.open(labels) as image:
        marked = np.asarray(image)
    sizes = np.bincount(marked.ravel(), minlength=256)[1:255]
    large = np.nonzero(sizes > 0.01 * marked.size)[0] + 1
    if large.size == 0:
        return None
    mask = (marked == int(rng.choice(large))).astype(np.uint8)
    return CutOut(read_bytes(str(picture)), mask)


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
        beside = np.array([*(0.5 + self._beside) * _TILE, 1.0])
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


# ---- drawing ---------------------------------------------------------------------------------


def _warped(
    picture: ByteArray, matrix: Matrix, height: int, width: int, *, border: int = cv2.BORDER_CONSTANT
) -> ByteArray:
    """A picture taken through a (2, 3) matrix."""
    warped = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(warped, np.uint8)


def _line(cover: ByteArray, parts: ByteArray, line: npt.NDArray[np.float64], width: float, part: int) -> None:
    """Draws a broken line into coverage and part numbers."""
    points = [np.round(line * 16).astype(np.int32)]
    thick = max(1, round(width * _TILE))
    cv2.polylines(cover, points, False, 255, thick, cv2.LINE_AA, shift=4)
    cv2.polylines(parts, points, False, part, thick + 1, cv2.LINE_8, shift=4)


def _oval(
    cover: ByteArray,
    parts: ByteArray,
    middle: npt.NDArray[np.float64],
    size: tuple[float, float],
    lean: float,
    part: int,
) -> None:
    """Draws an ellipse into coverage and part numbers."""
    axes = int(size[0] * _TILE * 16), int(size[1] * _TILE * 16)
    for canvas, value, line in ((cover, 255, cv2.LINE_AA), (parts, part, cv2.LINE_8)):
        cv2.ellipse(canvas, _fixed(middle * _TILE), axes, lean, 0, 360, value, -1, line, shift=4)


def _fill(canvas: ByteArray, outline: npt.NDArray[np.float64], value: int, line: int = cv2.LINE_AA) -> None:
    cv2.fillPoly(canvas, [np.round(outline * 16).astype(np.int32)], value, line, shift=4)


def _fixed(point: npt.NDArray[np.float64]) -> tuple[int, int]:
    """A point in 16ths of a pixel, as OpenCV's drawing takes it."""
    return round(float(point[0]) * 16), round(float(point[1]) * 16)
