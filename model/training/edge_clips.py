"""Clips with exactly known alpha, for the training of the edge refiner (`model.network.edges`).

A clip is an object that moves in front of a background: fur, hair and pelts, wires, solid shapes with hard
edges, objects of many parts, shapes out of focus (everywhere, or along a part of their outline), shapes
behind an open shutter, gauze and smoke. Something else may stand in front of it, sharp or out of focus.
Everything is composited in linear light and encoded as sRGB, with grain or without, as JPEG or not.
Textures come from noise, from patterns, from scikit-image's photographs (CC0 or public domain) and, if
given, from a folder of pictures. Where a folder `labels` beside that of the pictures says which pixels
are an object, clips also show the photographs themselves: their alpha is hard, and not known along its
outline. A clip depends on its seed only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from model.training.edge_pelt import pelt
from model.training.textures import (
    PHOTOGRAPHS,
    ByteArray,
    FloatArray,
    noise,
    pattern_share,
    photographs,
    read_bytes,
)

PHOTOGRAPH = "photograph"
"""The kind of clips that show a photograph with a mask that was drawn by hand."""
WORKING_SIDE = 256
"""Side of a clip in working pixels."""
FRAMES = 5
"""Frames of a clip; the first is its key."""
_CANVAS = 768
"""Side of the drawing canvas; the plate is reduced from it."""
_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
"""Plate pixels per working pixel."""
_SCALE_SHARES = (0.24, 0.24, 0.24, 0.2, 0.05, 0.03)
_SUB_FRAMES = 24
_FRONT_STREAM = 2
"""Of the random numbers for what stands in front: the rest of a clip does not depend on it."""


@dataclass(frozen=True, eq=False)
class EdgeClip:
    """A clip of F frames and K objects, the first of which is the one to be matted.

    Attributes:
        plate: (F, H, W, 3), sRGB.
        alpha: (F, K, H, W), the coverage in 255ths, exact before it is rounded.
        kind: of the object, for statistics. In a `PHOTOGRAPH` alpha is not known along its outline.
        scale: plate pixels per working pixel.
    """

    plate: ByteArray
    alpha: ByteArray
    kind: str
    scale: float


@dataclass(frozen=True, eq=False)
class _Layer:
    """An object on the canvas.

    Attributes:
        alpha: (S, S) in [0, 1].
        colour: (S, S, 3) in linear light, not premultiplied.
    """

    alpha: FloatArray
    colour: FloatArray


def make_clip(
    seed: int,
    pictures: Sequence[Path] = (),
    shares: Mapping[str, float] | None = None,
    in_front: float = 0.0,
) -> EdgeClip:
    """One clip.

    Args:
        pictures: more pictures for textures and backgrounds.
        shares: how often each kind is made; by default as `kind_of` has it.
        in_front: how often something else stands in front of the object; alpha is what is seen of the object.
    """
    rng = np.random.default_rng(seed)
    kind = _kind(rng, shares)
    textures = _Textures(rng, pictures)
    if kind == PHOTOGRAPH:
        found = _labelled(rng, pictures)
        if found is not None:
            return _photographed(rng, *found)
        kind = "assembly"
    layers = [_KINDS[kind](rng, textures)]
    if rng.random() < 0.25:  # another object behind it
        layers.append((_assembly if rng.random() < 0.4 else _solid)(rng, textures))
    speed = rng.uniform(*_SPEEDS.get(kind, _USUAL_SPEEDS))
    blur = kind in _SPEEDS or (kind != "defocus" and rng.random() < 0.15)
    moves = [_Motion(rng, speed if index == 0 else rng.uniform(0, 8)) for index in range(len(layers))]
    scale = float(rng.choice(_SCALES, p=_SCALE_SHARES))
    side = round(WORKING_SIDE * scale)
    lens = _Lens(rng, kind)
    background = _Background(rng, textures, side, again=_AGAIN.get(kind, 0.25))
    camera = _Camera(rng)
    front = _Front.drawn(np.random.default_rng([seed, _FRONT_STREAM]), pictures, in_front)
    plates, alphas = [], []
    for frame in range(FRAMES):
        seen = background.at(frame)
        coverage: list[FloatArray] = []
        for index in reversed(range(len(layers))):
            samples = _SUB_FRAMES if blur and index == 0 else 1
            alpha, premultiplied = _exposed(layers[index], moves[index], frame, samples)
            if index == 0:
                alpha, premultiplied = lens.through(alpha, premultiplied)
            alpha, premultiplied = _reduced(alpha, side), _reduced(premultiplied, side)
            through: FloatArray = np.float32(1) - alpha
            seen = premultiplied + seen * through[..., None]
            coverage = [alpha, *(one * through for one in coverage)]
        if front is not None:
            alpha, premultiplied = (_reduced(one, side) for one in front.at(frame))
            through = np.float32(1) - alpha
            seen = premultiplied + seen * through[..., None]
            coverage = [one * through for one in coverage]
        plates.append(camera.recorded(seen))
        alphas.append(np.stack([_as_bytes(one) for one in coverage]))
    return EdgeClip(np.stack(plates), np.stack(alphas), kind, scale)


def _labelled(rng: np.random.Generator, pictures: Sequence[Path]) -> tuple[ByteArray, ByteArray] | None:
    """A photograph (h, w, 3) and the mask (h, w) of one object in it, 0 or 1; None where there is none."""
    for path in (pictures[int(one)] for one in rng.integers(0, max(1, len(pictures)), 8 if pictures else 0)):
        labels = _labels_of(str(path))
        if labels is None:
            continue
        sizes = np.bincount(labels.reshape(-1), minlength=2)[1:] / labels.size
        fitting = np.flatnonzero((sizes > 0.015) & (sizes < 0.5))
        if fitting.size:
            chosen = int(fitting[rng.integers(fitting.size)]) + 1
            return read_bytes(str(path)), (labels == chosen).astype(np.uint8)
    return None


def _photographed(rng: np.random.Generator, picture: ByteArray, mask: ByteArray) -> EdgeClip:
    """A photograph that moves as a whole, with one object of it."""
    whole = np.dstack([decoded(picture), mask.astype(np.float32)])
    height, width = rng.uniform(0.75, 1.3) * _CANVAS, _CANVAS
    whole = cv2.resize(whole, (width, max(_CANVAS, round(height))), interpolation=cv2.INTER_CUBIC)
    top = int(rng.integers(0, whole.shape[0] - _CANVAS + 1))
    whole = np.ascontiguousarray(whole[top : top + _CANVAS])
    motion, camera = _Motion(rng, rng.uniform(0, 10)), _Camera(rng)
    plates, alphas = [], []
    for frame in range(FRAMES):
        across, down = motion.sources(frame, 1)
        seen = cv2.remap(whole, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        seen = np.asarray(cv2.resize(seen, (WORKING_SIDE, WORKING_SIDE), interpolation=cv2.INTER_AREA))
        plates.append(camera.recorded(np.clip(seen[..., :3], 0, 1)))
        alphas.append((seen[..., 3] > 0.5).astype(np.uint8)[None] * np.uint8(255))
    return EdgeClip(np.stack(plates), np.stack(alphas), PHOTOGRAPH, 1.0)


def kind_of(seed: int, shares: Mapping[str, float] | None = None) -> str:
    """The kind of object in the clip of a seed."""
    return _kind(np.random.default_rng(seed), shares)


def _kind(rng: np.random.Generator, shares: Mapping[str, float] | None) -> str:
    chosen = shares or SHARES
    return str(rng.choice(list(chosen), p=list(chosen.values())))


# ---- objects ---------------------------------------------------------------------------------


def _fur(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """A body with strands along its outline and on it: short dense fur to long thin hair."""
    outline = _outline(rng, rough=0.2)
    length, count = rng.uniform(12, 90), int(10 ** rng.uniform(2.7, 4.1))
    alpha = _filled(outline, soft=rng.uniform(0, 3) if rng.random() < 0.5 else rng.uniform(0, 0.3 * length))
    strands = _strands(rng, outline, count, length)
    shades, thin = 6, rng.random() < 0.6
    strength = int(rng.uniform(90, 255)) if thin else 255
    tint = rng.uniform(0.5, 1.6, shades)
    drawn = np.zeros(alpha.shape, np.uint8)
    shade = np.full(alpha.shape, 127, np.uint8)
    if rng.random() < 0.7:  # the body is as hairy as its outline, so that no seam is visible between them
        middle = outline.mean(0)
        for size in rng.uniform(0.2, 0.95, 5):
            inner = _strands(rng, ((outline - middle) * size + middle).astype(np.float32), count // 4, length)
            for index in range(shades):
                cv2.polylines(
                    shade, inner[index::shades], False, int(80 * tint[index]), 1, cv2.LINE_AA, shift=3
                )
    for index in range(shades):
        some = strands[index::shades]
        thickness = 1 if thin or index % 2 else 2
        cv2.polylines(drawn, some, False, strength, thickness, cv2.LINE_AA, shift=3)
        cv2.polylines(shade, some, False, int(80 * tint[index]), thickness, cv2.LINE_AA, shift=3)
    bare: FloatArray = np.float32(1) - drawn.astype(np.float32) / np.float32(255)
    alpha = np.float32(1) - (np.float32(1) - alpha) * bare
    return _Layer(alpha, textures.colour() * (shade.astype(np.float32) / np.float32(127))[..., None])


def _dense_fur(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """Thousands of strands thinner than a pixel: none is opaque, and many on each other are."""
    outline = _outline(rng, rough=rng.choice([0.03, 0.15]))
    length, count = rng.uniform(15, 110), int(10 ** rng.uniform(3.4, 4.2))
    middle, layers = outline.mean(0), 10
    bare: FloatArray = np.float32(1) - _filled(outline, soft=rng.uniform(0, 0.1 * length))
    shade = np.full(bare.shape, 1, np.float32)
    for _ in range(layers):
        strands = _strands(rng, outline, count // layers, length)
        size = rng.uniform(0.3, 0.97)
        strands += _strands(
            rng, ((outline - middle) * size + middle).astype(np.float32), count // 3 // layers, length
        )
        drawn = np.zeros(bare.shape, np.uint8)
        strength = int(rng.uniform(40, 200))
        cv2.polylines(drawn, strands, False, strength, 1, cv2.LINE_AA, shift=3)
        covered = drawn.astype(np.float32) / np.float32(255)
        bare = bare * (np.float32(1) - covered)
        shade += covered * (np.float32(rng.uniform(0.4, 1.6)) - shade)
    return _Layer(np.float32(1) - bare, textures.colour() * shade[..., None])


def _pelt(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """A body that consists of strands; often of about the colours that are behind it."""
    outline = _outline(rng, rough=rng.choice([0.03, 0.15, 0.3]))
    body = _filled(outline, soft=rng.uniform(0, 4))
    base = textures.colour() if rng.random() < 0.3 else textures.smooth()
    return _Layer(*pelt(rng, outline, body, base))


def _strands(
    rng: np.random.Generator, outline: FloatArray, count: int, length: float
) -> list[npt.NDArray[np.int32]]:
    """Curved strands that grow out of an outline (N, 2), as polylines in eighths of a pixel."""
    place = rng.integers(0, len(outline), count)
    root = outline[place] + rng.normal(0, 3 + 0.15 * length, (count, 2))
    along = np.roll(outline, -3, 0)[place] - np.roll(outline, 3, 0)[place]
    normal = np.stack([along[:, 1], -along[:, 0]], 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-6)
    patch = np.sin(place / len(outline) * math.tau * rng.integers(2, 9) + rng.uniform(0, 6, 1))  # locks
    angle = (
        np.arctan2(normal[:, 1], normal[:, 0]) + rng.normal(0, 0.35, count) + 0.5 * patch + rng.normal(0, 0.4)
    )
    bend = rng.normal(0, 0.5, count) + 0.4 * patch
    reach = length * rng.uniform(0.3, 1.2, count) * (0.7 + 0.3 * patch)
    steps = np.linspace(0, 1, 7)
    headings = angle[:, None] + bend[:, None] * steps * 2
    points = np.cumsum(
        np.stack([np.cos(headings), np.sin(headings)], -1) * (reach[:, None, None] / len(steps)), axis=1
    )
    lines = root[:, None] + points - points[:, :1]
    return [np.round(one * 8).astype(np.int32) for one in lines]


def _wires(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """Posts, cables and threads, sometimes a mesh."""
    drawn = np.zeros((_CANVAS, _CANVAS), np.uint8)
    for _ in range(int(rng.integers(2, 9))):
        ends = rng.uniform(-50, _CANVAS + 50, (2, 2))
        sag = rng.normal(0, 60, 2)
        t = np.linspace(0, 1, 24)[:, None]
        line = ends[0] * (1 - t) + ends[1] * t + sag * (4 * t * (1 - t))
        thickness = int(rng.choice([2, 3, 4, 6, 9, 14, 24]))
        cv2.polylines(
            drawn, [np.round(line * 8).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, shift=3
        )
    if rng.random() < 0.3:
        pitch, turn = int(rng.integers(24, 70)), rng.uniform(0, math.pi)
        mesh = np.zeros_like(drawn)
        for place in range(-_CANVAS, 2 * _CANVAS, pitch):
            for angle in (turn, turn + rng.uniform(1.2, 1.6)):
                c, s = math.cos(angle), math.sin(angle)
                middle = np.array(
                    [_CANVAS / 2 - s * (place - _CANVAS / 2), _CANVAS / 2 + c * (place - _CANVAS / 2)]
                )
                a, b = middle + 1200 * np.array([c, s]), middle - 1200 * np.array([c, s])
                line = np.round(np.stack([a, b]) * 8).astype(np.int32)
                cv2.polylines(mesh, [line], False, 255, int(rng.choice([1, 2, 3])), cv2.LINE_AA, shift=3)
        inside = _filled(_outline(rng, rough=0.1), soft=0)
        drawn = np.maximum(drawn, (mesh * inside).astype(np.uint8))
    return _Layer(drawn.astype(np.float32) / np.float32(255), textures.colour())


def _solid(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """A shape with a hard edge: round, angular, or with holes."""
    alpha = _filled(_outline(rng, rough=rng.choice([0.05, 0.25, 0.5])), soft=rng.uniform(0, 2.0))
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 3))):
            hole = _outline(rng, rough=0.1, size=rng.uniform(20, 70), middle=rng.uniform(250, 520, 2))
            alpha = alpha * (1 - _filled(hole, soft=1.0))
    if rng.random() < 0.35:  # a limb
        limb = np.zeros((_CANVAS, _CANVAS), np.uint8)
        ends = np.round(rng.uniform(150, 620, (3, 2)) * 8).astype(np.int32)
        cv2.polylines(limb, [ends], False, 255, int(rng.uniform(10, 60)), cv2.LINE_AA, shift=3)
        alpha = np.maximum(alpha, limb.astype(np.float32) / 255)
    return _Layer(alpha, textures.colour())


def _assembly(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """A thing of many hard parts: bodies, bars, slats and frames, each with its own colours, some with those
    of what is behind; with holes, and with lines inside that are no edges of it."""
    alpha = np.zeros((_CANVAS, _CANVAS), np.float32)
    colour = textures.part()
    softness = rng.uniform(0, 1.5)
    for index in range(int(rng.integers(2, 9))):
        inside = np.argwhere(alpha > 0.5)
        middle = inside[rng.integers(len(inside))][::-1] if len(inside) else rng.uniform(300, 470, 2)
        part = _body(rng, middle) if index == 0 or rng.random() < 0.3 else _thin_part(rng, middle)
        part = np.asarray(cv2.GaussianBlur(part, (0, 0), 0.4 + softness), np.float32)
        if index and rng.random() < 0.8:
            colour = colour + part[..., None] * (textures.part() - colour)
        alpha = np.maximum(alpha, part)
    for _ in range(int(rng.integers(0, 4))):
        hole = _outline(rng, rough=0.2, size=rng.uniform(10, 60), middle=rng.uniform(230, 540, 2))
        alpha = alpha * (1 - _filled(hole, soft=0.4 + softness))
    for _ in range(int(rng.integers(0, 12))):
        line = _bar(rng, rng.uniform(180, 590, 2), rng.uniform(2, 7))
        colour = colour + line[..., None] * (rng.uniform(0, 1, 3).astype(np.float32) ** 2 - colour)
    if rng.random() < 0.6:  # light and shade
        colour = colour * (0.3 + 1.3 * noise(rng, _CANVAS, _CANVAS, rng.uniform(80, 400)))[..., None]
    return _Layer(np.asarray(alpha, np.float32), np.asarray(colour, np.float32))


def _body(rng: np.random.Generator, middle: npt.NDArray[np.float64]) -> FloatArray:
    """(S, S): a shape, or a box."""
    size = rng.uniform(50, 190)
    if rng.random() < 0.5:
        return _filled(_outline(rng, rough=rng.choice([0.05, 0.3]), size=size, middle=middle), soft=0)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size * rng.uniform(0.4, 1.1, 2)
    turn = rng.normal(0, 0.4)
    spin = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return _filled((corners @ spin + middle).astype(np.float32), soft=0)


def _thin_part(rng: np.random.Generator, middle: npt.NDArray[np.float64]) -> FloatArray:
    """(S, S): a limb, slats beside each other, or a frame."""
    draw = rng.random()
    if draw < 0.45:
        return _bar(rng, middle, rng.uniform(6, 45))
    if draw < 0.75:
        return _slats(rng, middle)
    drawn = np.zeros((_CANVAS, _CANVAS), np.uint8)
    outline = _outline(rng, rough=0.1, size=rng.uniform(40, 150), middle=middle)
    _draw(drawn, np.concatenate([outline, outline[:1]]), rng.uniform(6, 30))
    return drawn.astype(np.float32) / np.float32(255)


def _slats(rng: np.random.Generator, middle: npt.NDArray[np.float64]) -> FloatArray:
    """(S, S): bars beside each other, held by one at either end."""
    count, pitch, thickness = int(rng.integers(3, 9)), rng.uniform(22, 70), rng.uniform(5, 22)
    angle, length = rng.uniform(0, math.pi), rng.uniform(60, 220)
    along = np.array([math.cos(angle), math.sin(angle)]) * length
    across = np.array([-along[1], along[0]]) / length * pitch
    drawn = np.zeros((_CANVAS, _CANVAS), np.uint8)
    for place in np.arange(count) - (count - 1) / 2:
        _draw(drawn, middle + np.stack([across * place - along, across * place + along]), thickness)
    half = across * (count - 1) / 2
    for end in (-along, along):
        _draw(drawn, middle + np.stack([end - half, end + half]), thickness)
    return drawn.astype(np.float32) / np.float32(255)


def _bar(rng: np.random.Generator, middle: npt.NDArray[np.float64], thickness: float) -> FloatArray:
    """(S, S): a bent line of some pixels through a point."""
    drawn = np.zeros((_CANVAS, _CANVAS), np.uint8)
    ends = middle + rng.normal(0, 130, (2, 2))
    _draw(drawn, np.stack([ends[0], middle, ends[1]]), thickness)
    return drawn.astype(np.float32) / np.float32(255)


def _draw(picture: ByteArray, points: npt.NDArray[np.floating], thickness: float) -> None:
    """Draws a line through points (N, 2), in place."""
    line = np.round(np.asarray(points) * 8).astype(np.int32)
    cv2.polylines(picture, [line], False, 255, max(1, round(thickness)), cv2.LINE_AA, shift=3)


def _half_defocused(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """A shape whose edge is hard on one side and soft on the other."""
    layer = _solid(rng, textures)
    radius = rng.uniform(6, 40)
    soft = cv2.GaussianBlur(layer.alpha, (0, 0), radius / 2)
    angle = rng.uniform(0, math.tau)
    rows, columns = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32) / _CANVAS - 0.5
    weight = np.clip(0.5 + 4 * (rows * math.sin(angle) + columns * math.cos(angle)), 0, 1)
    return _Layer(np.asarray(layer.alpha * (1 - weight) + soft * weight, np.float32), layer.colour)


def _gauze(rng: np.random.Generator, textures: _Textures) -> _Layer:
    """A solid part with semi-transparent smoke or cloth around it."""
    core = _filled(_outline(rng, rough=0.2, size=rng.uniform(60, 140)), soft=2.0)
    cloud = _filled(_outline(rng, rough=0.4), soft=rng.uniform(2, 60))
    smooth = noise(rng, _CANVAS, _CANVAS, rng.uniform(20, 120))
    veil = cloud * np.clip(rng.uniform(0.2, 0.7) + rng.uniform(0.2, 1.0) * (smooth - 0.5), 0, 1)
    return _Layer(np.asarray(1 - (1 - core) * (1 - veil), np.float32), textures.colour())


_Maker = Callable[[np.random.Generator, "_Textures"], _Layer]
_KINDS: dict[str, _Maker] = {
    "fur": _fur,
    "wires": _wires,
    "solid": _solid,
    "defocus": _solid,
    "half defocus": _half_defocused,
    "motion blur": _solid,
    "gauze": _gauze,
    "assembly": _assembly,
    PHOTOGRAPH: _assembly,
    "dense fur": _dense_fur,
    "slow blur": _solid,
    "pelt": _pelt,
}
SHARES: Mapping[str, float] = {
    "fur": 0.24,
    "wires": 0.03,
    "solid": 0.08,
    "defocus": 0.1,
    "half defocus": 0.05,
    "motion blur": 0.1,
    "gauze": 0.03,
    "assembly": 0.22,
    PHOTOGRAPH: 0.15,
}
"""How often each kind is made."""
SOFTER: Mapping[str, float] = {
    "pelt": 0.28,
    "dense fur": 0.1,
    "fur": 0.06,
    "wires": 0.02,
    "solid": 0.04,
    "defocus": 0.1,
    "half defocus": 0.04,
    "motion blur": 0.09,
    "slow blur": 0.05,
    "gauze": 0.02,
    "assembly": 0.1,
    PHOTOGRAPH: 0.1,
}
"""The same for the last part of a training: more of what is soft."""
_USUAL_SPEEDS = (0, 10)
_SPEEDS = {"motion blur": (15, 170), "slow blur": (4, 45)}
"""Canvas pixels a frame of what is blurred by its motion."""
_AGAIN = {"dense fur": 0.5, "pelt": 0.5}
"""How often the background is another part of the object's photograph."""


def _outline(
    rng: np.random.Generator,
    rough: float,
    size: float | None = None,
    middle: npt.NDArray[np.float64] | None = None,
) -> FloatArray:
    """A closed curve (N, 2) on the canvas: a circle bent by a few waves, or a polygon with round corners."""
    size = rng.uniform(110, 250) if size is None else size
    centre = rng.uniform(300, 470, 2) if middle is None else middle
    angles = np.linspace(0, math.tau, 400, endpoint=False)
    if rng.random() < 0.3:
        corners = np.sort(rng.uniform(0, math.tau, int(rng.integers(4, 9))))
        radius = np.interp(angles, corners, rng.uniform(0.5, 1.1, corners.size), period=math.tau)
    else:
        radius = np.ones_like(angles)
        for wave in range(1, 8):
            radius += rough / wave * rng.normal(0, 0.7) * np.sin(wave * angles + rng.uniform(0, math.tau))
    radius = np.clip(radius, 0.15, 1.7) * size
    stretch = rng.uniform(0.6, 1.3)
    x, y = centre[0] + radius * np.cos(angles) * stretch, centre[1] + radius * np.sin(angles)
    return np.stack([x, y], 1).astype(np.float32)


def _filled(outline: FloatArray, soft: float) -> FloatArray:
    """(S, S): the inside of an outline, with an edge of a Gaussian of `soft` pixels."""
    drawn = np.zeros((_CANVAS, _CANVAS), np.uint8)
    cv2.fillPoly(drawn, [np.round(outline * 8).astype(np.int32)], 255, cv2.LINE_AA, shift=3)
    alpha: FloatArray = drawn.astype(np.float32) / np.float32(255)
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), soft), np.float32) if soft > 0.4 else alpha


# ---- motion and camera -----------------------------------------------------------------------


class _Motion:
    """The position of an object over time: it moves, turns, grows and sways."""

    def __init__(self, rng: np.random.Generator, speed: float) -> None:
        angle = rng.uniform(0, math.tau)
        self._velocity = speed * np.array([math.cos(angle), math.sin(angle)])
        self._turn = rng.normal(0, 0.02) * min(3.0, 0.4 + speed / 12)
        self._growth = rng.normal(0, 0.008)
        self._sway, self._phase = rng.uniform(0, 5), rng.uniform(0, math.tau, 2)
        self._waves = rng.uniform(0.006, 0.025, 2)
        self._shutter = rng.uniform(0.4, 1.0)

    def times(self, frame: int, samples: int) -> FloatArray:
        """When the shutter is open, in frames."""
        return (frame + np.linspace(0, self._shutter, samples, endpoint=False)).astype(np.float32)

    def sources(self, time: float, step: int) -> tuple[FloatArray, FloatArray]:
        """(S, S) x and y of the source of each pixel of the canvas, or of every `step`-th pixel."""
        t = time - FRAMES / 2
        c, s = math.cos(self._turn * t), math.sin(self._turn * t)
        rows, columns = np.mgrid[0:_CANVAS:step, 0:_CANVAS:step].astype(np.float32) + np.float32(
            (step - 1) / 2
        )
        half = _CANVAS / 2
        x, y = (
            columns - np.float32(half + self._velocity[0] * t),
            rows - np.float32(half + self._velocity[1] * t),
        )
        grown = np.float32(1 / (1 + self._growth * t))
        across = (x * c + y * s) * grown + half
        down = (y * c - x * s) * grown + half
        if self._sway > 1:
            across += self._sway * np.sin(down * self._waves[0] + self._phase[0] + 0.9 * t)
            down += self._sway * np.sin(across * self._waves[1] + self._phase[1] + 1.1 * t)
        return across.astype(np.float32), down.astype(np.float32)


def _exposed(layer: _Layer, motion: _Motion, frame: int, samples: int) -> tuple[FloatArray, FloatArray]:
    """Alpha (S, S) and premultiplied colour (S, S, 3) of a frame: the mean over the open shutter.

    Blurred frames are drawn at half the size.
    """
    whole = np.dstack([layer.colour * layer.alpha[..., None], layer.alpha])
    step = 1 if samples == 1 else 2
    total = np.zeros((_CANVAS // step, _CANVAS // step, 4), np.float32)
    source = whole if step == 1 else cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    for time in motion.times(frame, samples):
        across, down = (
            np.float32(1 / step) * one - np.float32(0.5 - 0.5 / step)
            for one in motion.sources(float(time), step)
        )
        total += cv2.remap(source, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    total /= samples
    if step == 2:
        total = np.asarray(cv2.resize(total, (_CANVAS, _CANVAS), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.clip(total[..., 3], 0, 1), total[..., :3]


class _Lens:
    """Out of focus or not."""

    def __init__(self, rng: np.random.Generator, kind: str) -> None:
        self._radius = rng.uniform(3, 42) if kind == "defocus" else rng.choice([0, 0, 1.5, 3])

    def through(self, alpha: FloatArray, premultiplied: FloatArray) -> tuple[FloatArray, FloatArray]:
        if self._radius < 1:
            return alpha, premultiplied
        reach = math.ceil(self._radius)
        rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disc = np.clip(self._radius + 0.5 - np.hypot(rows, columns), 0, 1).astype(np.float32)
        disc /= disc.sum()
        return (
            np.clip(cv2.filter2D(alpha, -1, disc, borderType=cv2.BORDER_REFLECT), 0, 1).astype(np.float32),
            np.asarray(cv2.filter2D(premultiplied, -1, disc, borderType=cv2.BORDER_REFLECT), np.float32),
        )


class _Front:
    """What stands in front of the object and is no part of it: a pillar, a solid or a thing of many parts."""

    def __init__(self, rng: np.random.Generator, textures: _Textures) -> None:
        draw = rng.random()
        if draw < 0.5:  # a pillar, or a twig, across the picture
            angle, drawn = rng.uniform(0, math.pi), np.zeros((_CANVAS, _CANVAS), np.uint8)
            along = np.array([math.cos(angle), math.sin(angle)]) * 2 * _CANVAS
            middle = rng.uniform(200, 570, 2)
            _draw(drawn, np.stack([middle - along, middle + along]), rng.uniform(10, 140))
            self._layer = _Layer(drawn.astype(np.float32) / np.float32(255), textures.colour())
        else:
            self._layer = (_assembly if draw < 0.75 else _solid)(rng, textures)
        place = rng.uniform(-230, 230, 2)  # beside the object more often than over the middle of it
        if draw >= 0.5:
            matrix = np.array([[1, 0, place[0]], [0, 1, place[1]]], np.float64)
            shown = np.dstack([self._layer.colour, self._layer.alpha])
            shown = np.asarray(cv2.warpAffine(shown, matrix, (_CANVAS, _CANVAS)), np.float32)
            self._layer = _Layer(shown[..., 3], np.ascontiguousarray(shown[..., :3]))
        self._motion = _Motion(rng, rng.uniform(0, 60))
        self._lens = _Lens(rng, "defocus" if rng.random() < 0.6 else "solid")

    @classmethod
    def drawn(cls, rng: np.random.Generator, pictures: Sequence[Path], chance: float) -> _Front | None:
        """With this chance."""
        return cls(rng, _Textures(rng, pictures)) if rng.random() < chance else None

    def at(self, frame: int) -> tuple[FloatArray, FloatArray]:
        """Alpha (S, S) and premultiplied colour (S, S, 3)."""
        return self._lens.through(*_exposed(self._layer, self._motion, frame, 1))


class _Background:
    """The background, at plate size, in linear light: sharp or out of focus, still or moving."""

    def __init__(self, rng: np.random.Generator, textures: _Textures, side: int, again: float) -> None:
        """Args: again: how often it is another part of the object's photograph."""
        self._side = side
        picture = textures.picture(side + 64, again=again)
        for _ in range(int(rng.integers(0, 3)) if rng.random() < 0.5 else 0):  # what else stands there
            layer = (_assembly if rng.random() < 0.5 else _solid)(rng, textures)
            shown = np.dstack([layer.colour, layer.alpha]).astype(np.float32)
            shown = np.roll(shown, tuple(rng.integers(0, _CANVAS, 2)), (0, 1))
            shown = _reduced(shown, side + 64)
            picture = picture + shown[..., 3:] * (shown[..., :3] - picture)
        if rng.random() < 0.45:
            picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(1, 12)), np.float32)
        self._picture = picture * np.float32(rng.uniform(0.4, 1.4))
        self._start, self._speed = rng.uniform(20, 44, 2), rng.uniform(-4, 4, 2) * (rng.random() < 0.6)

    def at(self, frame: int) -> FloatArray:
        """(H, W, 3)."""
        x, y = self._start + self._speed * frame
        matrix = np.array([[1, 0, x], [0, 1, y]], np.float64)
        moved = cv2.warpAffine(
            self._picture, matrix, (self._side, self._side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        return np.asarray(moved, np.float32)


class _Camera:
    """Grain, encoding, JPEG."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._grain = rng.choice([0, 0, 0.008, 0.02]) * rng.uniform(0.5, 1.5)
        self._quality = int(rng.integers(80, 99)) if rng.random() < 0.6 else None
        self._subsampled = rng.random() < 0.7

    def recorded(self, linear: FloatArray) -> ByteArray:
        """(H, W, 3) linear light -> sRGB bytes."""
        if self._grain:
            grain = self._rng.standard_normal(linear.shape, np.float32)
            linear = linear + grain * np.float32(self._grain) * np.sqrt(np.clip(linear, 0.01, 1))
        picture = _as_bytes(encoded(linear))
        if self._quality is None:
            return picture
        sampling = (
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if self._subsampled else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        )
        options = [cv2.IMWRITE_JPEG_QUALITY, self._quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        _, written = cv2.imencode(".jpg", picture[..., ::-1], options)
        read = np.asarray(cv2.imdecode(written, cv2.IMREAD_COLOR), np.uint8)
        return np.ascontiguousarray(read[..., ::-1])


# ---- textures --------------------------------------------------------------------------------


class _Textures:
    """Colours for objects and backgrounds, in linear light."""

    def __init__(self, rng: np.random.Generator, pictures: Sequence[Path]) -> None:
        self._rng, self._pictures = rng, pictures
        self._last: str | None = None

    def part(self) -> FloatArray:
        """(S, S, 3) for a part of a thing."""
        draw = self._rng.random()
        if draw < 0.45:  # nearly plain
            plain = self._rng.uniform(0, 1, 3).astype(np.float32) ** 2
            smooth = noise(self._rng, _CANVAS, _CANVAS, 40)
            return np.asarray(plain * (0.85 + 0.3 * smooth)[..., None], np.float32)
        return self.picture(_CANVAS, again=0.4) * np.float32(self._rng.uniform(0.5, 1.3))

    def colour(self) -> FloatArray:
        """(S, S, 3) for an object: one texture, or parts with different ones."""
        colour = self._one_colour()
        if self._rng.random() < 0.55:
            for _ in range(int(self._rng.integers(1, 4))):
                smooth = noise(self._rng, _CANVAS, _CANVAS, self._rng.uniform(60, 400))
                part = smooth > self._rng.uniform(0.4, 0.65)
                edge = cv2.GaussianBlur(part.astype(np.float32), (0, 0), 1.0)[..., None]
                colour = np.asarray(colour * (1 - edge) + self._one_colour() * edge, np.float32)
        return colour

    def smooth(self) -> FloatArray:
        """(S, S, 3) for a pelt: the colours of a photograph without its details."""
        picture = cv2.resize(self.picture(_CANVAS), (48, 48), interpolation=cv2.INTER_AREA)
        blurred = cv2.GaussianBlur(picture, (0, 0), self._rng.uniform(1, 12))
        blurred = cv2.resize(blurred, (_CANVAS, _CANVAS), interpolation=cv2.INTER_LINEAR)
        return np.asarray(blurred * self._rng.uniform(0.7, 1.5), np.float32)

    def _one_colour(self) -> FloatArray:
        if self._rng.random() < 0.3:  # nearly plain
            plain = self._rng.uniform(0, 1, 3).astype(np.float32) ** 2
            smooth = noise(self._rng, _CANVAS, _CANVAS, 40)
            return np.asarray(plain * (0.85 + 0.3 * smooth)[..., None], np.float32)
        return self.picture(_CANVAS) * np.float32(self._rng.uniform(0.5, 1.3))

    def picture(self, side: int, again: float = 0.0) -> FloatArray:
        """(side, side, 3).

        Args:
            again: how often it is another part of the photograph that was used last.
        """
        if self._last is not None and again and self._rng.random() < again:
            return self._cut(read_bytes(self._last), side)
        draw = self._rng.random()
        if draw < 0.12:
            return self._pattern(side)
        if draw < 0.25:
            a, b = self._rng.uniform(0, 1, (2, 3)).astype(np.float32) ** 2
            smooth = noise(self._rng, side, side, self._rng.uniform(3, 150))[..., None]
            return np.asarray(a * smooth + b * (1 - smooth), np.float32)
        if self._pictures and draw < 0.6:
            path = str(self._pictures[int(self._rng.integers(len(self._pictures)))])
        else:
            path = str(photographs()[int(self._rng.integers(len(PHOTOGRAPHS)))])
        self._last = path
        return self._cut(read_bytes(path), side)

    def _cut(self, picture: ByteArray, side: int) -> FloatArray:
        """A part of a photograph, randomly turned, enlarged and tinted."""
        rng = self._rng
        height, width = picture.shape[:2]
        part = int(min(height, width) * rng.uniform(0.35, 1.0))
        y, x = int(rng.integers(0, height - part + 1)), int(rng.integers(0, width - part + 1))
        cut = np.rot90(picture[y : y + part, x : x + part], int(rng.integers(4)))
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        method = cv2.INTER_AREA if part > side else cv2.INTER_CUBIC
        resized = cv2.resize(np.ascontiguousarray(cut), (side, side), interpolation=method)
        tint = rng.uniform(0.7, 1.3, 3) if rng.random() < 0.5 else np.ones(3)
        return np.asarray(decoded(np.asarray(resized, np.uint8)) * tint, np.float32)

    def _pattern(self, side: int) -> FloatArray:
        """Stripes or squares, or a gradient."""
        share = pattern_share(self._rng, side, side, 160)
        a, b = self._rng.uniform(0, 1, (2, 3)) ** 2
        return np.asarray(share[..., None] * a + (1 - share[..., None]) * b, np.float32)


@lru_cache(maxsize=64)
def _labels_of(picture: str) -> ByteArray | None:
    """(h, w): the number of each pixel's object, by the picture beside; None where there is none."""
    path = Path(picture)
    labels = path.parent.parent / "labels" / f"{path.stem}.png"
    if not labels.is_file():
        return None
    with Image.open(labels) as found:  # a palette's numbers, not its colours
        return np.array(found.convert("P") if found.mode != "P" else found, np.uint8)


def decoded(picture: ByteArray) -> FloatArray:
    """sRGB bytes -> linear light."""
    return _DECODED[picture]


def encoded(linear: FloatArray) -> FloatArray:
    """Linear light -> sRGB in [0, 1]; values outside are clipped."""
    places = np.sqrt(np.clip(linear, 0, 1)) * np.float32(_ENCODED.size - 1)
    return _ENCODED[(places + np.float32(0.5)).astype(np.int32)]


def _curve(linear: npt.NDArray[np.float64]) -> FloatArray:
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    ).astype(np.float32)


_ENCODED: FloatArray = _curve(np.linspace(0, 1, 1 << 14) ** 2)
"""A table by the root of the linear value, so that dark values are fine enough."""
_CODES = np.arange(256) / 255.0
_DECODED: FloatArray = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4).astype(
    np.float32
)


def _reduced(values: FloatArray, side: int) -> FloatArray:
    """The canvas at plate size."""
    if values.shape[0] == side:
        return values
    return np.asarray(cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _as_bytes(values: FloatArray) -> ByteArray:
    return (np.clip(values, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
