"""The weights of a query's read (paper figure 5), drawn over the frames in memory.

`capture` runs a network up to one frame of a video and keeps the memory that this frame read; `read_from`
returns the weights of some of its positions over all space-time positions; `draw` shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from model.data.davis import VideoSequence, entering_masks
from model.data.pictures import read_picture
from model.evaluation.evaluate import (
    NetworkSegmenter,
    Progress,
    picture_path,
    working_picture,
    write_table,
)
from model.evaluation.metrics import BoolArray, contour
from model.network.config import STRIDE
from model.network.read import read_weights
from model.network.stm import Padding, pad, padding_to_stride, unpad

Point = tuple[float, float]
"""x and y in pixels of the picture file, from its top left corner."""


@dataclass(frozen=True)
class SeenFrame:
    """A frame at working size: its name, picture (3, h, w) in [0, 1], and the object's mask (h, w)."""

    name: str
    picture: Tensor
    mask: BoolArray


@dataclass(frozen=True)
class CapturedRead:
    """The query and the memory of one frame of a video, for one object.

    Args:
        query: the frame.
        label: of the object.
        query_key: (Ck, H/16, W/16) of the padded picture.
        memory: the frames in memory, in order.
        memory_keys: (P, Ck) of each, P = H/16 * W/16.
        scale: pixels of a working picture per pixel of the file.
        last_frame_cap: the largest share read from the last frame in memory
            (`model.network.read.read_weights`).
        key_weight: of the rest, the share that is read from the first frame alone.
    """

    query: SeenFrame
    label: int
    query_key: Tensor
    memory: tuple[SeenFrame, ...]
    memory_keys: tuple[Tensor, ...]
    scale: float
    last_frame_cap: float = 1.0
    key_weight: float = 0.0

    @property
    def padding(self) -> Padding:
        return padding_to_stride(*self.query.mask.shape)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the positions."""
        return self.query_key.shape[1], self.query_key.shape[2]

    def position(self, point: Point) -> int:
        """The number of the position (row by row) in which a point lies.

        Raises:
            ValueError: if the point is outside the picture.
        """
        height, width = self.query.mask.shape
        x, y = point[0] * self.scale, point[1] * self.scale
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"point {point[0]:g},{point[1]:g} is outside the picture of {width / self.scale:.0f} x "
                f"{height / self.scale:.0f} pixels."
            )
        row, column = int(y + self.padding.top) // STRIDE, int(x + self.padding.left) // STRIDE
        return row * self.grid[1] + column

    def object_positions(self) -> list[int]:
        """The positions that the object covers by half or more; if there is none, the one that it covers
        most.

        Raises:
            ValueError: if the object is not seen on the frame.
        """
        if not self.query.mask.any():
            raise ValueError(
                f"frame {self.query.name}: nothing was found of object {self.label}. "
                "Choose another frame, or give a point."
            )
        mask = torch.from_numpy(self.query.mask).float()[None, None]
        covered = F.avg_pool2d(pad(mask, self.padding), STRIDE).flatten()
        inside = (covered >= 0.5).nonzero().flatten().tolist()
        return inside or [int(covered.argmax())]

    def inner_point(self) -> Point:
        """The point inside the object that is farthest from its border.

        Raises:
            ValueError: as `object_positions`.
        """
        self.object_positions()
        inside = torch.from_numpy(self.query.mask).float()[None, None]
        while True:
            smaller = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1)), 3, stride=1)  # one pixel less on every side
            if not smaller.any():
                break
            inside = smaller
        y, x = inside[0, 0].nonzero()[0].tolist()
        return (x + 0.5) / self.scale, (y + 0.5) / self.scale


def capture(
    sequence: VideoSequence,
    segmenter: NetworkSegmenter,
    frame: str,
    label: int | None = None,
    *,
    progress: Progress | None = None,
) -> CapturedRead:
    """Runs a network from a sequence's first annotated frame to the given one, and keeps the memory that it
    reads.

    Args:
        sequence: pictures, and the masks on which its objects enter.
        segmenter: the network and its memory rule.
        frame: the query's name.
        label: of the object; the lowest one if None.
        progress: called after every frame.

    Raises:
        ValueError: if the frame reads nothing (it is not after the first one), or the object is not in
            memory.
    """
    given = entering_masks(sequence)
    start = min(given)
    names = _frames_up_to(sequence, start, frame)
    paths = [picture_path(sequence, name) for name in names]
    entering, masks = {number - start: mask for number, mask in given.items()}, []
    for step in islice(segmenter.steps(map(read_picture, paths), entering), len(names)):
        masks.append(step.labels)
        if progress is not None:
            progress(sequence.name, len(masks), len(names))
    groups = {each: group for group in step.groups for each in group.labels}
    label = min(groups) if label is None else label
    if label not in groups or step.query is None:
        raise ValueError(
            f"{sequence.name}: object {label} is not in memory on frame {frame}; in memory: "
            f"{', '.join(map(str, sorted(groups)))}."
        )
    group = groups[label]
    bank, mine = group.bank, group.labels.index(label)

    def seen(number: int) -> SeenFrame:
        picture = working_picture(read_picture(paths[number]), segmenter.short_side)
        mask = torch.from_numpy(masks[number] == label).float()[None, None]
        mask = F.interpolate(mask, picture.shape[-2:], mode="area")[0, 0] >= 0.5
        return SeenFrame(names[number], picture, mask.numpy())

    query = seen(len(names) - 1)
    return CapturedRead(
        query=query,
        label=label,
        query_key=step.query.features.key[0],
        memory=tuple(seen(group.first + number) for number in bank.steps),
        memory_keys=tuple(keys[mine].clone() for keys, _ in bank.blocks()),
        last_frame_cap=segmenter.engine.previous_frame_caps(step.query, bank)[mine],
        key_weight=segmenter.engine.key_weight,
        scale=query.picture.shape[-1] / masks[-1].shape[-1],
    )


def _frames_up_to(sequence: VideoSequence, start: int, frame: str) -> Sequence[str]:
    """Names of the frames from number `start` to `frame`. ValueError where `frame` comes no later."""
    names = sequence.frames[start : sequence.frames.index(frame) + 1]
    if len(names) < 2:
        raise ValueError(
            f"{sequence.name}: frame {frame} reads nothing. The first one that does is "
            f"{sequence.frames[min(start + 1, len(sequence.frames) - 1)]}."
        )
    return names


@dataclass(frozen=True)
class Reading:
    """The mean weights of the read of some positions of the query.

    Args:
        name: of these positions, for people.
        positions: their numbers.
        weights: (T, H/16, W/16) over the memory's frames and positions; the sum is 1.
        point: of the position, if it is a single one.
    """

    name: str
    positions: tuple[int, ...]
    weights: Tensor
    point: Point | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each frame in memory."""
        return tuple(self.weights.sum(dim=(1, 2)).tolist())

    def top(self, frame: int) -> tuple[int, int, float]:
        """Row, column and weight of a frame's position with the greatest weight."""
        number = int(self.weights[frame].argmax())
        row, column = divmod(number, self.weights.shape[2])
        return row, column, float(self.weights[frame, row, column])


def read_from(read: CapturedRead, point: Point | None = None) -> Reading:
    """The weights of the read of a point of the query, or the mean over its whole object.

    Raises:
        ValueError: if the point is outside the picture, or if the object is not seen on the frame.
    """
    positions = read.object_positions() if point is None else [read.position(point)]
    queries = read.query_key.flatten(1)[:, positions]  # (Ck, N)
    keys = [keys[None] for keys in read.memory_keys]
    weights = read_weights(queries, keys, last_frame_cap=read.last_frame_cap, key_weight=read.key_weight)
    weights = weights[0].mean(dim=-1)  # (T, P)
    name = f"object {read.label}" if point is None else f"point {point[0]:.0f},{point[1]:.0f}"
    return Reading(name, tuple(positions), weights.reshape(-1, *read.grid).cpu(), point)


def write_reading(path: Path, read: CapturedRead, readings: Sequence[Reading]) -> Path:
    """Writes the share of every memory frame in each reading, and the position with most of it, as CSV.

    x and y are the middle of that position, in pixels of the picture file.
    """
    head = ("query", "frame", "share", "top x", "top y", "top weight")
    rows: list[tuple[object, ...]] = []
    for reading in readings:
        for number, (frame, share) in enumerate(zip(read.memory, reading.shares, strict=True)):
            row, column, weight = reading.top(number)
            x = ((column + 0.5) * STRIDE - read.padding.left) / read.scale
            y = ((row + 0.5) * STRIDE - read.padding.top) / read.scale
            rows.append((reading.name, frame.name, share, x, y, weight))
    return write_table(path, [head, *rows])


TILE_WIDTH = 320
"""Width of one frame in the figure, in pixels."""

MOST_COLUMNS = 5
"""Of memory frames beside the query."""

_CAPTION_HEIGHT = 22
_GAP = 6
_DIMMED = 0.45
_MARK_COLOUR = "#ff2020"
_OUTLINE_COLOUR = torch.tensor([0.2, 1.0, 0.4])
_HEAT_COLOURS = torch.tensor([[0.1, 0.0, 0.4], [0.8, 0.1, 0.4], [1.0, 0.6, 0.0], [1.0, 1.0, 0.6]])


def draw(read: CapturedRead, readings: Sequence[Reading]) -> Image.Image:
    """Figure 5: a block per reading with the query at the left, its positions marked in red, and the memory.

    Heat is the weight of each position relative to the greatest one of the reading. The text below each frame
    is its share of the whole weight. The object's outline is green.
    """
    height, width = read.query.mask.shape
    tile = (TILE_WIDTH, round(TILE_WIDTH * height / width))
    columns = min(len(read.memory), MOST_COLUMNS)
    lines = -(-len(read.memory) // columns)
    step_x, step_y = tile[0] + _GAP, tile[1] + _CAPTION_HEIGHT
    image = Image.new("RGB", (_GAP + (columns + 1) * step_x, _GAP + len(readings) * lines * step_y), "white")
    drawing = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)

    def place(picture: Tensor, caption: str, column: int, line: int) -> None:
        corner = (_GAP + column * step_x, _GAP + line * step_y)
        image.paste(_as_image(picture).resize(tile, Image.Resampling.LANCZOS), corner)
        drawing.text((corner[0], corner[1] + tile[1] + 3), caption, fill="black", font=font)

    for block, reading in enumerate(readings):
        place(_marked(read, reading), f"query {read.query.name}: {reading.name}", 0, block * lines)
        for number, (frame, share) in enumerate(zip(read.memory, reading.shares, strict=True)):
            heat = reading.weights[number] / reading.weights.max()
            caption = f"memory {frame.name}: {100 * share:.1f} %"
            line, column = divmod(number, columns)
            place(_heated(read, frame, heat), caption, 1 + column, block * lines + line)
    return image


def _marked(read: CapturedRead, reading: Reading) -> Tensor:
    """The query with its positions in red."""
    mark = torch.zeros(read.grid).flatten()
    mark[list(reading.positions)] = 1
    alpha = 0.6 * _to_picture(read, mark.reshape(read.grid), mode="nearest")
    red = torch.tensor([1.0, 0.1, 0.1])[:, None, None]
    return _outlined(read.query.picture, read.query.mask) * (1 - alpha) + red * alpha


def _heated(read: CapturedRead, frame: SeenFrame, heat: Tensor) -> Tensor:
    """A memory frame, dimmed, with heat (H/16, W/16) in [0, 1] over it."""
    heat = _to_picture(read, heat, mode="bilinear").sqrt()  # so that small weights are visible too
    place = heat * (len(_HEAT_COLOURS) - 1)
    low = place.floor().long().clamp(max=len(_HEAT_COLOURS) - 2)
    mix = (place - low)[..., None]
    colour = (_HEAT_COLOURS[low] * (1 - mix) + _HEAT_COLOURS[low + 1] * mix).permute(2, 0, 1)
    grey = frame.picture.mean(dim=0, keepdim=True).expand(3, -1, -1)
    dimmed = _outlined(_DIMMED * (0.5 * grey + 0.5 * frame.picture), frame.mask)
    return dimmed * (1 - heat) + colour * heat


def _to_picture(read: CapturedRead, values: Tensor, *, mode: str) -> Tensor:
    """Values (H/16, W/16) at the size of the working picture, without its padding."""
    large = F.interpolate(values[None, None], scale_factor=STRIDE, mode=mode)
    return unpad(large, read.padding)[0, 0]


def _outlined(picture: Tensor, mask: BoolArray) -> Tensor:
    outline = torch.from_numpy(contour(mask))
    return torch.where(outline, _OUTLINE_COLOUR[:, None, None], picture)


def _as_image(picture: Tensor) -> Image.Image:
    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array))
