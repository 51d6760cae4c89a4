"""Training clips: stills warped into synthetic clips, and frames drawn from videos (paper section 3.5).

Every sample is a pure function of (sources, options, seed, index), so a resumed run has the same data.
OpenCV does the work, on bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from model.data.davis import ANNOTATION_FOLDER, PICTURE_FOLDER, find_sequences
from model.data.pictures import PICTURE_SUFFIXES, Labels, Picture, read_labels, read_picture_bytes
from model.network.config import STRIDE
from model.training import augment
from model.training.augment import Generator
from model.training.edge_clips import make_clip
from model.training.synthetic_clips import HELD_OUT, SceneOptions, synthetic_clip

_SMALLEST = 64
"""Pixels of each object that the first frame of a clip shows at least."""

_SOFT_SEEDS = 2**40
"""Seeds of the clips of `ClipOptions.soft_share` are below this."""
_SOFT_KINDS = {
    "pelt": 0.2,
    "dense fur": 0.1,
    "fur": 0.2,
    "wires": 0.15,
    "motion blur": 0.15,
    "slow blur": 0.1,
    "defocus": 0.05,
    "gauze": 0.05,
}

Meaning = Literal["objects", "parts", "instances"]
"""What labels mean. Of `objects`, every label is an object. `parts` are those of one whole (clothing tags):
the whole, or some parts, become objects. Of `instances`, things of one kind, some become objects and the
others are look-alikes."""


@dataclass(frozen=True)
class ClipSource:
    """One video (several frames) or one still (a single frame) with a label image for each frame."""

    name: str
    pictures: tuple[Path, ...]
    labels: tuple[Path, ...]
    meaning: Meaning = "objects"

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.pictures)

    def frame(self, index: int) -> tuple[Picture, Labels]:
        """Picture (H, W, 3) and labels (H, W) of one frame, bytes."""
        return read_picture_bytes(self.pictures[index]), read_labels(self.labels[index])


@dataclass(frozen=True, eq=False)
class LoadedSource:
    """The same from memory: picture (H, W, 3) and labels (H, W) of each frame, bytes."""

    name: str
    frames: tuple[tuple[Picture, Labels], ...]
    meaning: Meaning = "objects"

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def frame(self, index: int) -> tuple[Picture, Labels]:
        """Picture (H, W, 3) and labels (H, W) of one frame, bytes."""
        return self.frames[index]


Source = ClipSource | LoadedSource


class Clip(NamedTuple):
    """A training sample.

    pictures (T, H, W, 3) and labels (T, H, W), bytes: 0 background and 1..K objects; objects: K, or less.
    """

    pictures: Picture
    labels: Labels
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
    made_up_share: float = 0.0
    """Share of clips that are made up (`model.training.synthetic_clips`); `still_share` is of the others."""
    soft_share: float = 0.0
    """Share of the made-up clips that show fur, wires, motion blur and the like
    (`model.training.edge_clips`); their labels are alpha cut at one half."""
    scene: SceneOptions = field(default_factory=SceneOptions)
    """What made-up clips show; their size, frames and objects are those of this class."""
    worn_chance: float = 0.0
    """Share of the stills with labelled parts of which the whole, less one part, is an object and that part
    another, as a bag and who carries it."""
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


def still_sources(root: Path, *, instances: bool = False, only: Sequence[str] = ()) -> list[ClipSource]:
    """Stills in a folder with `images/` and `masks/` (one object) or `labels/`, by equal stems.

    Args:
        instances: the labels are several things of one kind; otherwise they are parts of one thing.
        only: patterns of stems (`cat_*`), for a folder whose pictures have several licences; all if empty.

    Raises:
        FileNotFoundError: if the folders do not exist, or if nothing fits the patterns.
    """
    labelled = (root / "labels").is_dir()
    meaning: Meaning = "instances" if instances else "parts" if labelled else "objects"
    masks = root / ("labels" if labelled else "masks")
    if not masks.is_dir() or not (root / "images").is_dir():
        raise FileNotFoundError(f"{root}: no images and masks (or labels) folders")
    by_stem = {p.stem: p for p in (root / "images").iterdir() if p.suffix.lower() in PICTURE_SUFFIXES}
    found = [
        ClipSource(f"{root.name}/{p.stem}", (by_stem[p.stem],), (p,), meaning)
        for p in sorted(masks.glob("*.png"))
        if p.stem in by_stem and (not only or any(fnmatchcase(p.stem, pattern) for pattern in only))
    ]
    if only and not found:
        raise FileNotFoundError(f"{root}: no picture is called {' or '.join(only)}")
    return found


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
        """The same data with some options changed, e.g. the skip of the curriculum."""
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
        if options.made_up_share and rng.random() < options.made_up_share:
            return self._made_up(rng)
        source = self._choose(rng)
        pictures, labels = self._draw(rng, source)
        for _ in range(options.pastes):
            if rng.random() >= options.paste_chance:
                break
            again = rng.random() < options.paste_same_chance
            self._paste(rng, pictures, labels, source if again else self._choose(rng))
        if rng.random() < options.flicker_chance:
            pictures = augment.flicker(pictures, labels == 0, rng)
        labels = _compact(labels, options.max_objects)
        objects = int(labels[0].max())
        if objects == 0 or np.bincount(labels[0].ravel())[1:].min() < _SMALLEST:
            return None
        pictures = augment.colour_jitter(pictures, rng)
        if rng.random() < options.blur_chance:
            pictures = augment.motion_blur(pictures, rng)
        return Clip(pictures, labels, objects)

    def _made_up(self, rng: Generator) -> Clip | None:
        """A made-up clip. Its textures and some of its things come from the stills."""
        options = self.options
        if options.soft_share and rng.random() < options.soft_share:
            return self._soft(rng)
        height, width = options.shape
        scene = replace(
            options.scene,
            height=height,
            width=width,
            frames=options.frames,
            most_objects=options.max_objects,
        )
        files = [one for group in self.stills for one in group if isinstance(one, ClipSource)]
        made = synthetic_clip(
            int(rng.integers(HELD_OUT.start)),
            scene,
            pictures=[one.pictures[0] for one in files],
            cut_outs=[(one.pictures[0], one.labels[0]) for one in files if one.meaning != "parts"],
        )
        labels = _compact(made.labels, options.max_objects)
        objects = int(labels[0].max())
        if np.bincount(labels[0].ravel())[1:].min() < _SMALLEST:
            return None
        return Clip(augment.colour_jitter(made.pictures, rng), labels, objects)

    def _soft(self, rng: Generator) -> Clip | None:
        """A clip of the edge refiner's training. If it has fewer frames than a clip, it goes back again."""
        height, width = self.options.shape
        files = [one.pictures[0] for group in self.stills for one in group if isinstance(one, ClipSource)]
        made = make_clip(int(rng.integers(_SOFT_SEEDS)), files, _SOFT_KINDS)
        there, back = range(len(made.plate)), range(len(made.plate) - 2, 0, -1)
        frames = np.resize([*there, *back], self.options.frames)
        pictures = np.stack(
            [cv2.resize(made.plate[i], (width, height), interpolation=cv2.INTER_AREA) for i in frames]
        )
        labels = np.zeros(pictures.shape[:3], np.uint8)
        for label in range(made.alpha.shape[1], 0, -1):
            for step, i in enumerate(frames):
                alpha = cv2.resize(made.alpha[i, label - 1], (width, height), interpolation=cv2.INTER_AREA)
                labels[step][alpha > 127] = label
        labels = _compact(labels, self.options.max_objects)
        objects = int(labels[0].max())
        if objects == 0 or np.bincount(labels[0].ravel())[1:].min() < _SMALLEST:
            return None
        return Clip(augment.colour_jitter(pictures, rng), labels, objects)

    def _choose(self, rng: Generator) -> Source:
        if not self.videos or (self.stills and rng.random() < self.options.still_share):
            weights = np.array(self.still_weights or [len(s) for s in self.stills], dtype=np.float64)
            group = self.stills[int(rng.choice(len(self.stills), p=weights / weights.sum()))]
            return group[int(rng.integers(len(group)))]
        return self.videos[int(rng.integers(len(self.videos)))]

    def _draw(self, rng: Generator, source: Source) -> tuple[Picture, Labels]:
        """Frames (T, H, W, 3) and labels (T, H, W) of one source; they show a good part of it."""
        shape = self.options.shape
        frames, ways = self._frames(rng, source, fill=True)
        # Beyond the source's border a crop shows its mirror image. If the object does not touch the border,
        # its mirror image is another, similar object. If it does, the mirror image continues it.
        cut_off = any(_touches_border(labels) for _, labels in frames)
        pictures = np.empty((len(frames), *shape, 3), np.uint8)
        labels = np.empty((len(frames), *shape), np.uint8)
        for step, ((picture, marked), way) in enumerate(zip(frames, ways, strict=True)):
            pictures[step] = augment.warp(picture, way, shape, mirror=True)
            labels[step] = augment.warp_labels(marked, way, shape, mirror=cut_off)
        return pictures, labels

    def _paste(self, rng: Generator, pictures: Picture, labels: Labels, source: Source) -> None:
        """Puts a source's object in front, anywhere at any size: as a further object, or as a passer-by that
        only covers."""
        options = self.options
        frames, ways = self._frames(rng, source, fill=False)
        label = int(labels.max()) + 1 if rng.random() < options.paste_is_object else 0
        late = label == 0 and rng.random() < options.paste_late_chance
        first = int(rng.integers(1, max(len(frames), 2))) if late else 0
        for step in range(first, len(frames)):
            picture, marked = frames[step]
            mask = augment.warp_labels(marked, ways[step], options.shape, mirror=False) > 0
            left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
            if width == 0:
                continue
            left, top = max(left - 1, 0), max(top - 1, 0)
            part = np.s_[top : top + height + 2, left : left + width + 2]
            where = mask[part]
            way = augment.part_of(ways[step], left, top, where.shape)
            before = augment.warp(picture, way, where.shape, mirror=False).astype(np.float32)
            behind = pictures[step][part]
            alpha = augment.soften(where)[..., None]
            behind[...] = behind + (before - behind) * alpha + np.float32(0.5)
            labels[step][part][where] = label

    def _frames(
        self, rng: Generator, source: Source, *, fill: bool
    ) -> tuple[list[tuple[Picture, Labels]], list[augment.Way]]:
        """The frames of a draw as the source has them, and the way of each from the clip to the source.

        `fill`: the crop covers a good part of the source; else the object lies anywhere at any size.
        """
        options = self.options
        indices = _frame_indices(rng, source.count, options)
        loaded = {i: source.frame(i) for i in set(indices)}
        still = source.count == 1
        picture, first = loaded[indices[0]]
        if still and fill and rng.random() < options.region_chance:
            loaded = {indices[0]: (picture, _random_region(rng, picture))}
        else:
            table = _chosen_labels(rng, first, source.meaning, options)
            if table is not None:
                loaded = {i: (one, _through(table, labels)) for i, (one, labels) in loaded.items()}
        frame = _FrameDraw(rng, options, loaded[indices[0]][1], still=still, fill=fill)
        return [loaded[i] for i in indices], [frame.way(step) for step in range(len(indices))]


class _FrameDraw:
    """Where the frames of one draw lie on their source: a common place, and a little change for each."""

    def __init__(
        self,
        rng: Generator,
        options: ClipOptions,
        first: Labels,
        *,
        still: bool,
        fill: bool,
    ) -> None:
        self._rng, self._options, self._still = rng, options, still
        self._source = first.shape
        self._centre, self._cover = _placement(rng, options, first > 0, fill=fill)
        self._aspect = float(np.exp(rng.uniform(-0.1, 0.1)))
        self._flip = bool(rng.random() < 0.5)
        self._angle = float(rng.normal(0, 6 if fill else 15))
        self._motion = options.still_motion if still else 0.12
        self._drift = rng.normal(0, 0.05 * self._motion, size=2)

    def way(self, step: int) -> augment.Way:
        """From the pixels of the frame of this number to those of the source."""
        rng, options, motion, cover = self._rng, self._options, self._motion, self._cover
        centre = self._centre + (self._drift * step + rng.normal(0, 0.04 * motion, size=2)) * cover
        zoom = float(np.exp(rng.normal(0, 0.09 * motion)))
        matrix = augment.affine_matrix(
            centre=(float(centre[0]), float(centre[1])),
            size=(cover * options.wide * zoom * self._aspect, cover * zoom / self._aspect),
            shape=options.shape,
            angle=self._angle + float(rng.normal(0, 9 * motion)),
            shear=float(rng.normal(0, 0.06 * motion)),
            flip=self._flip,
        )
        if not self._still:
            return matrix
        maps = augment.affine_maps(matrix, options.shape)
        x, y = augment.thin_plate_offsets(rng, 0.035 * options.still_motion, options.shape)
        height, width = self._source
        unit = np.float32(cover / min(height, width) / 2)
        return augment.Maps(maps.x + x * (unit * width), maps.y + y * (unit * height))


def _placement(
    rng: Generator, options: ClipOptions, first: npt.NDArray[np.bool_], *, fill: bool
) -> tuple[npt.NDArray[np.float64], float]:
    """Where a crop lies on the first frame: its centre (x, y) and its height, in pixels of the source.

    Args:
        first: (H, W), the object there.
        fill: as in `ClipDataset._frames`.
    """
    height, width = first.shape
    where = np.flatnonzero(first)
    if not fill and len(where):
        moments = cv2.moments(first.astype(np.uint8), binaryImage=True)
        middle = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
        rng.uniform(*options.scale)
        extent = float(max(cv2.boundingRect(first.astype(np.uint8))[2:]))
        cover = extent / rng.uniform(*options.paste_size)
        return middle + rng.uniform(-0.4, 0.4, size=2) * cover, cover
    cover = rng.uniform(*options.scale) * min(height, width)
    target = np.array([width / 2, height / 2])
    if len(where):
        row, column = divmod(int(where[int(rng.integers(len(where)))]), width)
        target = np.array([float(column), float(row)])
    # anywhere in the picture as long as that pixel of the object is inside the crop
    centre = target + rng.uniform(-0.4, 0.4, size=2) * cover
    # keep most of the crop inside the picture, so that little of it is mirrored border
    sides = np.array([cover * options.wide, cover])
    low = np.minimum(sides * 0.45, np.array([width, height]) / 2)
    return np.clip(centre, low, np.array([width, height]) - low), cover


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


def _chosen_labels(
    rng: Generator, labels: Labels, meaning: Meaning, options: ClipOptions
) -> npt.NDArray[np.uint8] | None:
    """A table (256,) from label to object, or None where labels are the objects.

    Of parts, all become one object, or up to two of them one each, or one of them an object and all others
    another. Of instances, some become objects.
    """
    if meaning == "objects":
        return None
    table = np.zeros(256, np.uint8)
    present = np.unique(labels)
    present = present[present > 0]
    if meaning == "parts" and options.worn_chance and rng.random() < options.worn_chance and len(present) > 1:
        table[present] = 1
        table[rng.choice(present)] = 2
        return table
    if meaning == "parts" and (rng.random() < 0.6 or len(present) == 0):
        table[1:] = 1
        return table
    count = 2 if meaning == "parts" else int(rng.integers(1, options.max_objects + 1))
    for number, label in enumerate(rng.permutation(present)[:count], start=1):
        table[label] = number
    return table


def _random_region(rng: Generator, picture: Picture) -> Labels:
    """Labels (H, W) of one random region: pixels near a random one in colour and place, 0.5 to 15 % of the
    picture."""
    height, width = picture.shape[:2]
    shrink = 64 / min(height, width)
    rows, columns = round(height * shrink), round(width * shrink)
    small = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    y, x = np.meshgrid(np.arange(rows) / 64, np.arange(columns) / 64, indexing="ij")
    features = np.concatenate([small * rng.uniform(1, 3), 2 * np.stack([y, x], axis=-1)], axis=-1)
    row, column = int(rng.integers(rows)), int(rng.integers(columns))
    distance = np.square(features - features[row, column]).sum(axis=-1)
    share = float(np.exp(rng.uniform(np.log(0.005), np.log(0.15))))
    # in units of the threshold, so that the enlarged contour is where the distance crosses it
    inside = (1 - distance / max(float(np.quantile(distance, share)), 1e-6)).astype(np.float32)
    large = cv2.resize(inside, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large > 0, np.uint8)


def _touches_border(labels: Labels) -> bool:
    """Whether an object in labels (H, W) reaches the border of the picture."""
    return any(bool(side.any()) for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]))


def _compact(labels: Labels, max_objects: int) -> Labels:
    """Renumbers labels visible in the first frame to 1..K.

    K is at most `max_objects`; the objects that were pasted last are kept.
    """
    present = [label for label in np.flatnonzero(np.bincount(labels[0].ravel())) if label > 0][-max_objects:]
    table = np.zeros(256, np.uint8)
    for number, label in enumerate(present, start=1):
        table[label] = number
    return _through(table, labels)


def _through(table: npt.NDArray[np.uint8], labels: Labels) -> Labels:
    """table (256,) at each of the labels, of any shape."""
    flat = np.ascontiguousarray(labels).reshape(-1, labels.shape[-1])
    return np.asarray(cv2.LUT(flat, table), np.uint8).reshape(labels.shape)
