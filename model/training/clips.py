"""Training clips: stills warped into synthetic clips, and frames drawn from videos (paper section 3.5).

Every sample is a pure function of (sources, options, seed, index), so a resumed run has the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.davis import ANNOTATION_FOLDER, PICTURE_FOLDER, find_sequences
from model.data.pictures import PICTURE_SUFFIXES, read_labels, read_picture
from model.network.config import STRIDE
from model.training import augment
from model.training.augment import Generator


@dataclass(frozen=True)
class ClipSource:
    """One video (several frames) or one still (a single frame) with a label image for each frame."""

    name: str
    pictures: tuple[Path, ...]
    labels: tuple[Path, ...]
    parts: bool = False
    """Labels are parts of one whole (clothing tags): the whole, or some parts, become objects."""

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.pictures)

    def frame(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (3, H, W) and labels (H, W) of one frame."""
        labels = torch.from_numpy(read_labels(self.labels[index])).long()
        return read_picture(self.pictures[index]), labels


@dataclass(frozen=True, eq=False)
class LoadedSource:
    """A source in memory: picture (3, H, W) in [0, 1] and labels (H, W) of each frame."""

    name: str
    frames: tuple[tuple[Tensor, Tensor], ...]
    parts: bool = False

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def frame(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (3, H, W) and labels (H, W) of one frame."""
        return self.frames[index]


Source = ClipSource | LoadedSource


class Clip(NamedTuple):
    """A training sample.

    pictures (T, 3, H, W) float in [0, 1]; labels (T, H, W) int64, 0 background and 1..K objects; objects: K
    or less.
    """

    pictures: Tensor
    labels: Tensor
    objects: int


@dataclass(frozen=True)
class ClipOptions:
    """How samples are drawn. Sizes in pixels; probabilities in [0, 1]."""

    size: int = 320
    """Height of a clip."""
    wide: float = 1.0
    """Width of a clip over its height; the width is rounded to whole positions of the network."""
    frames: int = 3
    max_objects: int = 2
    still_share: float = 0.5
    max_skip: int = 10
    pastes: int = 1
    """The most objects put in front; each has `paste_chance`, if the one before was put."""
    paste_chance: float = 0.5
    paste_size: tuple[float, float] = (0.25, 0.8)
    """Share of a clip's height that the longer side of a pasted object covers."""
    paste_is_object: float = 0.6
    paste_same_chance: float = 0.35
    """Share of pastes that show the clip's own source again: similar objects must be distinguished by
    place."""
    paste_late_chance: float = 0.0
    """Share of pastes without a label that are not in the first frame: new things in a shot are not part of
    the object."""
    flicker_chance: float = 0.0
    """Share of clips whose background changes its brightness over time, as water does."""
    region_chance: float = 0.25
    """Share of stills whose object is a random region of similar colour, so that the mask counts and not
    saliency."""
    blur_chance: float = 0.1
    scale: tuple[float, float] = (0.55, 1.15)
    """Share of the source's short side that a crop covers."""
    still_motion: float = 1.0
    """Strength of the synthetic motion between the frames of a still."""
    reverse_chance: float = 0.5

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a clip in pixels."""
        return self.size, self.size if self.wide == 1 else round(self.size * self.wide / STRIDE) * STRIDE


def davis_sources(root: Path, *, leave_out: Sequence[str] = (), only: Sequence[str] = ()) -> list[ClipSource]:
    """Videos in DAVIS or YouTube-VOS layout (`model.data.davis.find_sequences`); their annotated frames.

    Raises:
        FileNotFoundError: if there are no pictures or no annotations, or if a video of `only` does not exist.
        ValueError: if an annotation has no picture.
    """
    sources = []
    for sequence in find_sequences(root, only):
        if not sequence.pictures:
            raise FileNotFoundError(
                f"{root}: no pictures of {sequence.name}. Training needs {PICTURE_FOLDER} and "
                f"{ANNOTATION_FOLDER}; give the root of a DAVIS-style data set."
            )
        if sequence.name not in leave_out:
            frames = sequence.annotated_frames
            pictures = tuple(sequence.pictures[frame] for frame in frames)
            annotations = tuple(sequence.annotations[frame] for frame in frames)
            sources.append(ClipSource(sequence.name, pictures, annotations))
    return sources


def still_sources(root: Path) -> list[ClipSource]:
    """Stills in a folder with `images/` and `masks/` (one object) or `labels/` (parts of one object).

    Files with equal stems belong together.

    Raises:
        FileNotFoundError: if the folders do not exist.
    """
    parts = (root / "labels").is_dir()
    masks = root / ("labels" if parts else "masks")
    if not masks.is_dir() or not (root / "images").is_dir():
        raise FileNotFoundError(f"{root}: no images and masks (or labels) folders")
    by_stem = {p.stem: p for p in (root / "images").iterdir() if p.suffix.lower() in PICTURE_SUFFIXES}
    return [
        ClipSource(f"{root.name}/{p.stem}", (by_stem[p.stem],), (p,), parts)
        for p in sorted(masks.glob("*.png"))
        if p.stem in by_stem
    ]


@dataclass
class ClipDataset:
    """Random training clips by index, from videos and stills.

    Args:
        videos, stills: the sources.
        options: how samples are drawn.
        seed: of the whole run.
    """

    videos: Sequence[Source]
    stills: Sequence[Sequence[Source]]
    """One list per still set; a set is drawn by `still_weights`."""
    options: ClipOptions = field(default_factory=ClipOptions)
    seed: int = 0
    still_weights: Sequence[float] = ()

    def with_options(self, **changes: object) -> ClipDataset:
        """The data set with some options changed, e.g. the skip of the curriculum."""
        return replace(self, options=replace(self.options, **changes))  # type: ignore[arg-type]

    def sample(self, index: int) -> Clip:
        """The clip of one index; the same for the same seed, options and sources."""
        rng = np.random.default_rng((self.seed, index))
        for _ in range(20):
            clip = self._try_sample(rng)
            if clip is not None:
                return clip
        raise RuntimeError("no object in 20 samples: are the masks of the training data empty?")

    def _try_sample(self, rng: Generator) -> Clip | None:
        options = self.options
        source = self._choose(rng)
        pictures, labels = self._draw(rng, source, fill=True)
        for _ in range(options.pastes):
            if rng.random() >= options.paste_chance:
                break
            again = rng.random() < options.paste_same_chance
            pictures, labels = self._paste(rng, pictures, labels, source if again else self._choose(rng))
        if rng.random() < options.flicker_chance:
            pictures = augment.flicker(pictures, labels == 0, rng)
        labels = _compact(labels, options.max_objects)
        objects = int(labels[0].max())
        if objects == 0 or min(int((labels[0] == k).sum()) for k in range(1, objects + 1)) < 64:
            return None
        pictures = augment.colour_jitter(pictures, rng)
        if rng.random() < options.blur_chance:
            pictures = augment.motion_blur(pictures, rng)
        return Clip(pictures, labels, objects)

    def _choose(self, rng: Generator) -> Source:
        if not self.videos or (self.stills and rng.random() < self.options.still_share):
            weights = np.array(self.still_weights or [len(s) for s in self.stills], dtype=np.float64)
            group = self.stills[int(rng.choice(len(self.stills), p=weights / weights.sum()))]
            return group[int(rng.integers(len(group)))]
        return self.videos[int(rng.integers(len(self.videos)))]

    def _draw(self, rng: Generator, source: Source, *, fill: bool) -> tuple[Tensor, Tensor]:
        """Frames (T, 3, S, S) and labels (T, S, S) of one source.

        `fill`: the crop covers a large part of the source. Otherwise the object is placed anywhere at any
        size, to be pasted.
        """
        options = self.options
        indices = _frame_indices(rng, source.count, options)
        loaded = {i: source.frame(i) for i in set(indices)}
        still = source.count == 1
        if still and fill and rng.random() < options.region_chance:
            picture = loaded[indices[0]][0]
            loaded = {indices[0]: (picture, _random_region(rng, picture))}
            chosen = None
        else:
            chosen = _choose_parts(rng, loaded[indices[0]][1]) if source.parts else None
        height, width = loaded[indices[0]][0].shape[-2:]
        centre, cover = self._placement(rng, loaded[indices[0]][1] > 0, fill=fill)
        aspect = float(np.exp(rng.uniform(-0.1, 0.1)))
        flip = bool(rng.random() < 0.5)
        angle = float(rng.normal(0, 6 if fill else 15))
        motion = options.still_motion if still else 0.12
        drift = rng.normal(0, 0.05 * motion, size=2)
        # Beyond the source's border a crop shows its mirror image. If the object does not touch the border,
        # its mirror
        # image is another, similar object; if it does, the mirror image continues it.
        mapped = {i: _map_labels(label, chosen) for i, (_, label) in loaded.items()}
        cut_off = fill and any(_touches_border(label) for label in mapped.values())
        pictures, labels = [], []
        for step, i in enumerate(indices):
            picture = loaded[i][0]
            matrix_centre = centre + (drift * step + rng.normal(0, 0.04 * motion, size=2)) * cover
            zoom = float(np.exp(rng.normal(0, 0.09 * motion)))
            matrix = augment.affine_matrix(
                centre=(float(matrix_centre[0]), float(matrix_centre[1])),
                size=(cover * options.wide * zoom * aspect, cover * zoom / aspect),
                source_size=(picture.shape[1], picture.shape[2]),
                angle=angle + float(rng.normal(0, 9 * motion)),
                shear=float(rng.normal(0, 0.06 * motion)),
                flip=flip,
            )
            grid = augment.affine_grid(matrix, *options.shape)
            if still:
                strength = 0.035 * options.still_motion
                grid = grid + augment.thin_plate_offsets(rng, strength, *options.shape) * cover / min(
                    height, width
                )
            warped, warped_label = augment.warp(picture, mapped[i], grid, mirror=fill, mirror_labels=cut_off)
            pictures.append(warped)
            labels.append(warped_label)
        return torch.stack(pictures), torch.stack(labels)

    def _placement(
        self, rng: Generator, first: Tensor, *, fill: bool
    ) -> tuple[npt.NDArray[np.float64], float]:
        """The place of a crop on the first frame: its centre (x, y) and its height, in pixels of the source.

        Args:
            first: (H, W) bool, the object there.
            fill: as in `_draw`.
        """
        options = self.options
        height, width = first.shape
        where = first.nonzero()
        if not fill and len(where):
            middle = where.float().mean(dim=0)
            rng.uniform(*options.scale)
            extent = float((where.max(dim=0).values - where.min(dim=0).values).max()) + 1
            cover = extent / rng.uniform(*options.paste_size)
            centre = np.array([float(middle[1]), float(middle[0])]) + rng.uniform(-0.4, 0.4, size=2) * cover
            return centre, cover
        cover = rng.uniform(*options.scale) * min(height, width)
        target = (
            where[int(rng.integers(len(where)))].float()
            if len(where)
            else torch.tensor([height / 2, width / 2])
        )
        # anywhere in the picture, if that pixel of the object is inside the crop
        centre = np.array([float(target[1]), float(target[0])]) + rng.uniform(-0.4, 0.4, size=2) * cover
        # keep most of the crop inside the picture, so that little of it is mirrored border
        sides = np.array([cover * options.wide, cover])
        low = np.minimum(sides * 0.45, np.array([width, height]) / 2)
        return np.clip(centre, low, np.array([width, height]) - low), cover

    def _paste(
        self, rng: Generator, pictures: Tensor, labels: Tensor, source: Source
    ) -> tuple[Tensor, Tensor]:
        """Puts a source's object in front: as a further object, or without a label."""
        other_pictures, other_labels = self._draw(rng, source, fill=False)
        mask = other_labels > 0
        label = int(labels.max()) + 1 if rng.random() < self.options.paste_is_object else 0
        if label == 0 and rng.random() < self.options.paste_late_chance:
            mask[: int(rng.integers(1, max(len(mask), 2)))] = False
        alpha = augment.soften(mask).unsqueeze(1)
        pictures = pictures * (1 - alpha) + other_pictures * alpha
        return pictures, torch.where(mask, torch.full_like(labels, label), labels)


def _frame_indices(rng: Generator, count: int, options: ClipOptions) -> list[int]:
    """Ascending frame numbers with random gaps of up to `max_skip` frames (paper section 3.5)."""
    if count == 1:
        return [0] * options.frames
    gaps = rng.integers(1, options.max_skip + 2, size=options.frames - 1)
    while gaps.sum() > count - 1:
        largest = int(gaps.argmax())
        if gaps[largest] == 1:
            return [min(i, count - 1) for i in range(options.frames)]
        gaps[largest] -= 1
    start = int(rng.integers(count - gaps.sum()))
    indices = [start, *(start + int(g) for g in np.cumsum(gaps))]
    return indices[::-1] if rng.random() < options.reverse_chance else indices


def _choose_parts(rng: Generator, labels: Tensor) -> np.ndarray:
    """A table from part label to object label: all parts as one object, or up to two parts as objects."""
    table = np.zeros(256, dtype=np.int64)
    present = np.unique(labels.numpy())
    present = present[present > 0]
    if rng.random() < 0.6 or len(present) == 0:
        table[1:] = 1
    else:
        for number, part in enumerate(rng.permutation(present)[:2], start=1):
            table[part] = number
    return table


def _random_region(rng: Generator, picture: Tensor) -> Tensor:
    """Labels (H, W) of one random region: pixels near a random one in colour and place, 0.5 to 15 % of the
    picture."""
    height, width = picture.shape[-2:]
    shrink = 64 / min(height, width)
    size = (round(height * shrink), round(width * shrink))
    small = F.interpolate(picture.unsqueeze(0), size, mode="bilinear", antialias=True)[0]
    y, x = torch.meshgrid(torch.arange(size[0]) / 64, torch.arange(size[1]) / 64, indexing="ij")
    features = torch.cat([small * float(rng.uniform(1, 3)), 2 * torch.stack([y, x])])  # (5, h, w)
    row, column = int(rng.integers(size[0])), int(rng.integers(size[1]))
    distance = (features - features[:, row : row + 1, column : column + 1]).square().sum(dim=0)
    share = float(np.exp(rng.uniform(np.log(0.005), np.log(0.15))))
    # in units of the threshold, so that the enlarged contour is where the distance crosses it
    inside = 1 - distance / distance.quantile(share).clamp(min=1e-6)
    return (F.interpolate(inside[None, None], (height, width), mode="bicubic")[0, 0] > 0).long()


def _touches_border(labels: Tensor) -> bool:
    """Whether an object in labels (H, W) reaches the border of the picture."""
    return any(bool(side.any()) for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]))


def _map_labels(labels: Tensor, table: np.ndarray | None) -> Tensor:
    return labels if table is None else torch.from_numpy(table)[labels]


def _compact(labels: Tensor, max_objects: int) -> Tensor:
    """Renumbers labels visible in the first frame to 1..K.

    K is at most `max_objects`; the objects that were pasted last are kept.
    """
    counts = torch.bincount(labels[0].flatten(), minlength=int(labels.max()) + 1)
    present = [label for label in counts.nonzero().flatten().tolist() if label > 0][-max_objects:]
    table = torch.zeros_like(counts)
    for number, label in enumerate(present, start=1):
        table[label] = number
    return table[labels]
