"""The things of made-up clips: solid, jointed, of thin lines, or cut out of a photograph.

A thing is flat and drawn on a square tile. It bends, and it may turn and show another side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from model.training.textures import ByteArray, noise, read_bytes, texture

Rng = np.random.Generator
Matrix = npt.NDArray[np.float64]
"""(3, 3), takes points (x, y, 1) of one plane to another."""

TILE = 192
"""Side of the square on which a thing is drawn, in pixels."""


class Thing(Protocol):
    """Something flat that is drawn on a tile of `TILE` pixels."""

    def drawn(self, time: float) -> tuple[ByteArray, ByteArray]:
        """Coverage (S, S) in 255ths and colours (S, S, 3) at a time in frames."""
        ...


class Family:
    """Makes things that look alike: the same kind, size and paint."""

    def __init__(
        self,
        rng: Rng,
        pictures: Sequence[Path],
        cut_outs: Sequence[tuple[Path, Path]],
        *,
        turn_chance: float,
        thin_share: float,
    ) -> None:
        """
        Args:
            pictures, cut_outs: as `synthetic_clip`.
            turn_chance: of a thing to turn.
            thin_share: how often the things are of thin lines, if no photograph shows them.
        """
        self._rng, self._turn_chance = rng, turn_chance
        self._cut: CutOut | None = None
        self._back = texture(rng, TILE, TILE, pictures)
        if cut_outs and rng.random() < 0.3:
            self._cut = read_cut_out(*cut_outs[int(rng.integers(len(cut_outs)))], rng)
        self._kind = _KINDS[int(rng.choice(len(_KINDS), p=_shares(thin_share)))]
        self._paint = _Paint(rng, pictures, self._kind.PARTS)

    def __call__(self) -> Thing:
        if self._cut is not None:
            return _Photographed(self._rng, self._turn_chance, self._cut, self._back)
        return self._kind(self._rng, self._turn_chance, self._paint)


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


@dataclass(frozen=True, eq=False)
class CutOut:
    """A photograph with the mask of one thing in it.

    picture (H, W, 3), mask (H, W) with 0 and 1.
    """

    picture: ByteArray
    mask: ByteArray


class _Drawn:
    """A thing that is drawn: an outline, parts, and what they are painted with. It bends, and it may turn."""

    def __init__(self, rng: Rng, turn_chance: float, paint: _Paint) -> None:
        self._paint = paint
        self._bend, self._phase = rng.uniform(0, 0.12), rng.uniform(0, math.tau, 12)
        self._pace = rng.uniform(0.1, 0.9)
        self._turning = rng.choice(["no", "roll", "flip"], p=self._turns(turn_chance))
        self._turn_speed, self._turn_start = _turn_of(rng)

    @staticmethod
    def _turns(turn_chance: float) -> tuple[float, float, float]:
        return 1 - turn_chance, 0.5 * turn_chance, 0.5 * turn_chance

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
    matrix = np.array([[squeeze, 0, TILE / 2 * (1 - squeeze)], [0, 1, 0]])
    return warped(cover, matrix, TILE, TILE), warped(colours, matrix, TILE, TILE)


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
        colours = np.zeros((TILE, TILE, 3), np.uint8)
        for index, front in enumerate(self._round):
            if roll:
                shift = round(turn / math.pi * TILE)
                both = np.concatenate([front, self._back[index]], axis=1)
                surface = np.roll(both, shift, axis=1)[:, :TILE]
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
        grain = 0.8 + 0.4 * noise(rng, TILE, TILE, rng.uniform(6, 80))
        return np.asarray(np.clip(colour * grain[..., None], 0, 255), np.uint8)
    return texture(rng, TILE, TILE, pictures)


_GRID = tuple(np.mgrid[0:TILE, 0:TILE].astype(np.float32) / TILE)


class _Blob(_Drawn):
    """A closed curve, round or angular, perhaps with holes and with parts of other colours."""

    PARTS = 3

    def __init__(self, rng: Rng, turn_chance: float, paint: _Paint) -> None:
        super().__init__(rng, turn_chance, paint)
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
        self._parts = noise(rng, TILE, TILE, rng.uniform(40, 150))
        self._limits = np.sort(rng.uniform(0.35, 1.1, 2))
        self._hole = (rng.uniform(0.35, 0.65, 2), rng.uniform(0.05, 0.2)) if rng.random() < 0.2 else None

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        radius = self._radius.copy()
        for wave in range(1, 5):
            radius *= 1 + self._wave(wave, time) * np.sin(wave * self._angles + self._phase[wave])
        reach = 0.46 * TILE * np.clip(radius, 0.15, 1.05)
        x = TILE / 2 + reach * np.cos(self._angles) * self._stretch[0]
        y = TILE / 2 + reach * np.sin(self._angles) * self._stretch[1]
        cover = np.zeros((TILE, TILE), np.uint8)
        _fill(cover, np.stack([x, y], 1), 255)
        if self._hole is not None:
            middle, size = self._hole
            cv2.circle(cover, _fixed(middle * TILE), int(size * TILE * 16), 0, -1, cv2.LINE_AA, shift=4)
        parts = np.digitize(self._parts, self._limits).astype(np.uint8)
        return cover, parts


class _Creature(_Drawn):
    """A body with a head and limbs that swing, each painted otherwise."""

    PARTS = 4

    def __init__(self, rng: Rng, turn_chance: float, paint: _Paint) -> None:
        super().__init__(rng, turn_chance, paint)
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
        cover = np.zeros((TILE, TILE), np.uint8)
        parts = np.zeros((TILE, TILE), np.uint8)
        middle = np.array([0.5, 0.5])
        for index, (angle, upper, lower, width) in enumerate(self._limbs):
            swing = self._swing * math.sin(self._phase[index] + self._pace * time)
            knee = middle + upper * np.array([math.cos(angle + swing), math.sin(angle + swing)])
            bent = angle + 1.8 * swing
            end = knee + lower * np.array([math.cos(bent), math.sin(bent)])
            line = np.array([middle, knee, end]) * TILE
            _line(cover, parts, line, width, 2 + index % 2)
        wide, tall, lean = self._body
        lean += 20 * self._wave(7, time) * 5
        _oval(cover, parts, middle, (wide, tall), lean, 0)
        size, angle = self._head
        angle += 4 * self._wave(8, time)
        head = middle + (tall + 0.6 * size) * np.array([math.cos(angle), math.sin(angle)])
        _oval(cover, parts, head, (size, size * 1.2), lean, 1)
        return cover, parts


class _Wheeled(_Drawn):
    """A body with a cabin, windows and wheels. Seen from the front it is narrower."""

    PARTS = 4

    def __init__(self, rng: Rng, turn_chance: float, paint: _Paint) -> None:
        super().__init__(rng, turn_chance, paint)
        self._length, self._height = rng.uniform(0.28, 0.44), rng.uniform(0.08, 0.14)
        self._cabin = rng.uniform(0.4, 0.8), rng.uniform(-0.15, 0.15), rng.uniform(0.08, 0.16)
        self._wheel = rng.uniform(0.05, 0.09)

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        cover = np.zeros((TILE, TILE), np.uint8)
        parts = np.zeros((TILE, TILE), np.uint8)
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
            points = (outline + 0.5) * TILE
            _fill(cover, points, 255)
            _fill(parts, points, part, cv2.LINE_8)
        for side in (-0.6, 0.6):
            middle = np.array([0.5 + side * long, 0.5 + tall]) * TILE
            for canvas, value, line in ((cover, 255, cv2.LINE_AA), (parts, 3, cv2.LINE_8)):
                cv2.circle(canvas, _fixed(middle), int(self._wheel * TILE * 16), value, -1, line, shift=4)
        return cover, parts


class _Frame(_Drawn):
    """Thin parts: a polygon of rods, or a ring with spokes."""

    PARTS = 1

    def __init__(self, rng: Rng, turn_chance: float, paint: _Paint) -> None:
        super().__init__(rng, turn_chance, paint)
        self._points = rng.uniform(0.1, 0.9, (int(rng.integers(3, 7)), 2))
        self._width = rng.uniform(0.02, 0.06)
        self._ring = rng.random() < 0.4

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        cover = np.zeros((TILE, TILE), np.uint8)
        thick = max(2, round(self._width * TILE))
        if self._ring:
            middle = _fixed(np.array([0.5, 0.5]) * TILE)
            cv2.circle(cover, middle, int(0.38 * TILE * 16), 255, thick, cv2.LINE_AA, shift=4)
        bent = self._points + [
            [self._wave(i, time) * 0.5, self._wave(i + 5, time) * 0.5] for i in range(len(self._points))
        ]
        cv2.polylines(
            cover, [np.round(bent * TILE * 16).astype(np.int32)], True, 255, thick, cv2.LINE_AA, shift=4
        )
        return cover, np.zeros_like(cover)


class _Strung(_Drawn):
    """A load that hangs from a canopy by strings: thin lines between solid parts."""

    PARTS = 3

    def __init__(self, rng: Rng, turn_chance: float, paint: _Paint) -> None:
        super().__init__(rng, turn_chance, paint)
        self._canopy = rng.uniform(0.25, 0.44), rng.uniform(0.08, 0.16)
        self._load = rng.uniform(0.04, 0.1), rng.uniform(0.04, 0.12)
        self._strings = np.sort(rng.uniform(-0.95, 0.95, int(rng.integers(2, 7))))
        self._thick = int(rng.integers(2, 5))

    def shape(self, time: float) -> tuple[ByteArray, ByteArray]:
        cover = np.zeros((TILE, TILE), np.uint8)
        parts = np.zeros((TILE, TILE), np.uint8)
        wide, tall = self._canopy
        top = np.array([0.5, 0.2])
        load = np.array([0.5 + 2 * self._wave(0, time), 0.8])
        for place in self._strings:
            string = np.array([top + np.array([place * wide, 0.0]), load]) * TILE
            _line(cover, parts, string, self._thick / TILE, 2)
        angles = np.linspace(math.pi, math.tau, 40)
        arc = np.stack([np.cos(angles) * wide, np.sin(angles) * tall * (1 + self._wave(1, time))], axis=1)
        for canvas, value, line in ((cover, 255, cv2.LINE_AA), (parts, 0, cv2.LINE_8)):
            _fill(canvas, (top + arc) * TILE, value, line)
        _oval(cover, parts, load, self._load, 0, 1)
        return cover, parts


class _Photographed:
    """A thing cut out of a photograph. It sways like something soft, and it may turn and show a back."""

    def __init__(self, rng: Rng, turn_chance: float, cut: CutOut, back: ByteArray) -> None:
        """back: (S, S, 3), what the other side of the thing is painted with."""
        rows, columns = np.nonzero(cut.mask)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        picture, mask = cut.picture[top:bottom, left:right], cut.mask[top:bottom, left:right] * np.uint8(255)
        # within the tile a little room is left, because it sways
        scale = 0.86 * TILE / max(mask.shape)
        stretch = math.exp(rng.uniform(-0.25, 0.25))
        size = (
            max(2, round(mask.shape[1] * scale * min(stretch, 1))),
            max(2, round(mask.shape[0] * scale * min(1 / stretch, 1))),
        )
        self._cover, self._colours = np.zeros((TILE, TILE), np.uint8), np.zeros((TILE, TILE, 3), np.uint8)
        x, y = (TILE - size[0]) // 2, (TILE - size[1]) // 2
        flip = rng.random() < 0.5
        for canvas, one in ((self._cover, mask), (self._colours, picture)):
            small = cv2.resize(one, size, interpolation=cv2.INTER_AREA)
            canvas[y : y + size[1], x : x + size[0]] = small[:, ::-1] if flip else small
        self._strength, self._phase = rng.uniform(0, 0.025) * TILE, rng.uniform(0, math.tau, 2)
        self._waves, self._pace = rng.uniform(2, 7, 2), rng.uniform(0.1, 0.7)
        self._turns = rng.random() < turn_chance
        self._turn_speed, self._turn_start = _turn_of(rng)
        share = np.float32(rng.uniform(0.4, 1.0))  # a back has something of the front, as a cat's has
        front = self._colours[:, ::-1].astype(np.float32)
        self._back = np.asarray(front + (back - front) * share, np.uint8)

    def drawn(self, time: float) -> tuple[ByteArray, ByteArray]:
        """Coverage (S, S) in 255ths and colours (S, S, 3) at a time in frames."""
        rows, columns = _GRID
        x = columns * TILE + self._strength * np.sin(
            self._waves[0] * rows + self._phase[0] + self._pace * time
        )
        y = rows * TILE + self._strength * np.sin(
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


# ---- drawing ---------------------------------------------------------------------------------


def warped(
    picture: ByteArray, matrix: Matrix, height: int, width: int, *, border: int = cv2.BORDER_CONSTANT
) -> ByteArray:
    """A picture taken through a (2, 3) matrix."""
    warped = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(warped, np.uint8)


def _line(cover: ByteArray, parts: ByteArray, line: npt.NDArray[np.float64], width: float, part: int) -> None:
    """Draws a broken line into coverage and part numbers."""
    points = [np.round(line * 16).astype(np.int32)]
    thick = max(1, round(width * TILE))
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
    axes = int(size[0] * TILE * 16), int(size[1] * TILE * 16)
    for canvas, value, line in ((cover, 255, cv2.LINE_AA), (parts, part, cv2.LINE_8)):
        cv2.ellipse(canvas, _fixed(middle * TILE), axes, lean, 0, 360, value, -1, line, shift=4)


def _fill(canvas: ByteArray, outline: npt.NDArray[np.float64], value: int, line: int = cv2.LINE_AA) -> None:
    cv2.fillPoly(canvas, [np.round(outline * 16).astype(np.int32)], value, line, shift=4)


def _fixed(point: npt.NDArray[np.float64]) -> tuple[int, int]:
    """A point in 16ths of a pixel, as OpenCV's drawing takes it."""
    return round(float(point[0]) * 16), round(float(point[1]) * 16)
