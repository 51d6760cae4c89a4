"""A run that travels to another machine: data, start and configuration in one file; the results in another.

A graphics card may be available for minutes only. `pack` puts all that a run needs into a small tar file,
`train_for` trains from it within a given time, `collect` unpacks the result.
"""

from __future__ import annotations

import bisect
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from model.data.davis import ANNOTATION_FOLDER, PICTURE_FOLDER
from model.training.clips import ClipSource, davis_sources, still_sources
from model.training.curves import LOG_FILE, write_curves
from model.training.processes import agreed, is_first
from model.training.recipe import initial_state, training_clips
from model.training.trainer import (
    CHECKPOINT_FILE,
    Losses,
    Trainer,
    TrainingConfig,
    continued_config,
    saved_config,
)

LIMIT = 60 * 2**20
"""Bytes of an archive at most, unless the caller says otherwise."""
RESULT = "result.tar"

_CONFIG, _START, _DATA = "config.json", "start.pt", "data"
_CURVE_POINTS = 40
"""Lines of the table of curves, about."""
_SAMPLED = 25
"""Every so many pictures are encoded to find the quality."""
_MEASURED_STEPS, _IGNORED_STEPS = 12, 4
_RESERVED_SHARE = 0.06
"""Of the time, for what is written at the end and for steps that take longer than measured."""


_LARGEST_HEADER = 1600
"""Bytes of a picture and its labels in a tar file besides their contents: headers, and room up to 512."""


class Steps(NamedTuple):
    """Of videos every `video`-th frame is packed (skips count packed frames), of stills every `still`-th."""

    video: int = 1
    still: int = 1


class Fidelity(NamedTuple):
    """How pictures are packed. short_side: the largest, in pixels; quality: of WebP, 0 to 100."""

    short_side: int
    quality: int


FIDELITIES = tuple(
    Fidelity(*one)
    for one in (
        *((384, quality) for quality in (90, 80, 70, 60, 50)),
        *((320, quality) for quality in (60, 50, 40)),
        *((256, quality) for quality in (50, 40, 30)),
    )
)
"""What is tried, best first; each takes less room than the one before."""


class ArchiveTooLargeError(ValueError):
    """The data does not fit into an archive at any quality."""


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote: the number of pictures, their fidelity, and the size of the archive in bytes."""

    pictures: int
    fidelity: Fidelity
    size: int


def pack(
    config: TrainingConfig,
    archive: Path,
    *,
    run: Path | None = None,
    limit: int = LIMIT,
    steps: Steps | None = None,
) -> Packed:
    """Writes an archive with all that a run needs.

    Args:
        config: of the run; its folders are read.
        archive: file to write.
        run: a begun run that is to go on there; else the run begins from `config.start`.
        limit: bytes of the archive at most.
        steps: which part of the data is packed; all if None.

    Raises:
        ArchiveTooLargeError: if the data does not fit.
        FileNotFoundError: if a folder of the data is not there.
        ValueError: for training data that cannot be used.
    """
    training_clips(config)  # refuses what cannot be trained on
    start = _start(config, run)
    groups = _groups(config, steps or Steps())
    sources = [(name, source) for name, group in groups for source in group]
    count = sum(source.count for _, source in sources)
    labels = sum(path.stat().st_size for _, source in sources for path in source.labels)
    room = limit - len(start) - labels - _LARGEST_HEADER * count
    first = _fitting([path for _, source in sources for path in source.pictures], room)
    config = _relocated(config, groups)
    for fidelity in FIDELITIES[first:]:
        with tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=archive.parent) as folder:
            unfinished = Path(folder) / archive.name
            _write_archive(unfinished, config, start, sources, fidelity)
            size = unfinished.stat().st_size
            if size <= limit:
                unfinished.replace(archive)
                return Packed(count, fidelity, size)
    raise ArchiveTooLargeError(
        f"The data of this run does not fit into {limit / 2**20:.0f} MiB, even at the lowest quality. "
        "Leave a folder out, take fewer pictures (--video-step, --still-step), or allow a larger archive."
    )


def _write_archive(
    path: Path,
    config: TrainingConfig,
    start: bytes,
    sources: Sequence[tuple[str, ClipSource]],
    fidelity: Fidelity,
) -> None:
    with tarfile.open(path, "w") as tar:
        _add(tar, _CONFIG, json.dumps(config.to_dict(), indent=2).encode())
        _add(tar, _START, start)
        for name, source in sources:
            for place, content in _files(name, source, fidelity):
                _add(tar, place, content)


def is_packed(path: Path) -> bool:
    """Whether a file is an archive from `pack`."""
    return _holds(path, {_CONFIG, _START})


def packed_config(archive: Path) -> TrainingConfig:
    """The configuration in an archive from `pack`."""
    with _opened(archive) as tar:
        stream = tar.extractfile(_CONFIG)
        if stream is None:
            raise ValueError(f"{archive} is no packed run: its {_CONFIG} is no file")
        return TrainingConfig.from_dict(json.load(stream))


def is_result(path: Path) -> bool:
    """Whether a file is a result from `train_for`."""
    return _holds(path, {CHECKPOINT_FILE})


def _holds(path: Path, names: set[str]) -> bool:
    try:
        with tarfile.open(path) as tar:
            return names <= set(tar.getnames())
    except (tarfile.TarError, OSError):
        return False


def train_for(
    archive: Path,
    run: Path,
    minutes: float,
    *,
    device: str = "cpu",
    workers: int = 1,
    progress: Callable[[Trainer, Losses], None] | None = None,
) -> Path:
    """Trains from an archive, ends within a time, and writes what is to be brought home.

    A few steps are timed first. They say how many steps fit, and with that how the learning rate falls.
    Under `torchrun` the first process decides for all, and only it writes the results.

    Args:
        archive: from `pack`.
        run: a new folder.
        minutes: for everything, counted from the call.
        device: a torch device name.
        workers: processes that build samples.
        progress: called after every step.

    Returns:
        the file with the results, `RUN/result.tar`; it exists in the first process only.

    Raises:
        FileExistsError: if the folder holds a run already.
        ValueError: if the time is too short for a few steps, or the archive is none of ours.
    """
    began = time.monotonic()
    if (run / CHECKPOINT_FILE).exists():
        raise FileExistsError(f"{run} holds a run already; give a new folder")
    config, state = _unpack(archive, run)
    seconds = _seconds_a_step(run / "measured", config, state, device, workers)
    left = minutes * 60 * (1 - _RESERVED_SHARE) - (time.monotonic() - began)
    steps = int(agreed(left / seconds, device))
    if steps < _MEASURED_STEPS:
        raise ValueError(
            f"{minutes:g} minutes are too short: a step takes {seconds:.1f} s here, and {left:.0f} s are left"
        )
    config = replace(config, steps=steps, checkpoint_every=max(1, steps // 10))
    trainer = _trainer(run, config, state, device, workers)
    deadline = began + minutes * 60 * (1 - _RESERVED_SHARE / 3)

    class OutOfTime(Exception):
        pass

    def after_step(trainer: Trainer, losses: Losses) -> None:
        if progress is not None:
            progress(trainer, losses)
        if agreed(time.monotonic() > deadline, device):
            raise OutOfTime

    try:
        trainer.run(after_step)
    except OutOfTime:
        trainer.save()
    return _write_result(run) if is_first() else run / RESULT


def collect(result: Path, run: Path) -> None:
    """Unpacks a result into a run's folder and draws its curves. It can be exported or continued from there.

    Raises:
        FileExistsError: if the folder holds a run already.
        ValueError: if the file is no result, or is damaged; nothing is left in the folder.
    """
    if (run / CHECKPOINT_FILE).exists():
        raise FileExistsError(f"{run} holds a run already; give a new folder")
    _extract(result, run, {CHECKPOINT_FILE}, f"no result of a run: it holds no {CHECKPOINT_FILE}")
    if (run / LOG_FILE).is_file():
        config = saved_config(run)
        write_curves(run, max(1, (config.steps if config else 0) // _CURVE_POINTS))


def _start(config: TrainingConfig, run: Path | None) -> bytes:
    """The state dict that the run starts from, as a file of torch."""
    if run is not None:
        checkpoint = torch.load(run / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
        state = checkpoint["average"]
    else:
        state = initial_state(config)
    stream = io.BytesIO()
    torch.save({name: _smallest(tensor) for name, tensor in state.items()}, stream)
    return stream.getvalue()


def _smallest(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in half precision where nothing is lost, as in weights that shipped so."""
    half = tensor.half()
    return half if tensor.is_floating_point() and torch.equal(half.to(tensor.dtype), tensor) else tensor


def _groups(config: TrainingConfig, steps: Steps) -> list[tuple[str, Sequence[ClipSource]]]:
    """The sources by the folder that they get in the archive."""
    videos = [
        (
            f"{_DATA}/videos-{number}",
            [
                replace(one, pictures=one.pictures[:: steps.video], labels=one.labels[:: steps.video])
                for one in davis_sources(Path(root))
                if one.name not in config.leave_out
            ],
        )
        for number, root in enumerate(config.videos)
    ]
    stills = [
        (f"{_DATA}/stills-{number}", still_sources(Path(root), only=config.only)[:: steps.still])
        for number, root in enumerate(config.stills)
    ]
    instances = [
        (f"{_DATA}/instances-{number}", still_sources(Path(root), instances=True, only=config.only))
        for number, root in enumerate(config.instances)
    ]
    return [*videos, *stills, *instances]


def _relocated(config: TrainingConfig, groups: Sequence[tuple[str, object]]) -> TrainingConfig:
    """The configuration with the folders of the archive. What is left out is not in it, so nothing is."""
    names = [name for name, _ in groups]

    def of(kind: str) -> tuple[str, ...]:
        return tuple(name for name in names if name.startswith(f"{_DATA}/{kind}-"))

    return replace(
        config,
        videos=of("videos"),
        stills=of("stills"),
        instances=of("instances"),
        leave_out=(),
        start=_START,
    )


def _files(folder: str, source: ClipSource, fidelity: Fidelity) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a source's files in the archive."""
    for picture, labels in zip(source.pictures, source.labels, strict=True):
        if folder.startswith(f"{_DATA}/videos"):
            places = f"{PICTURE_FOLDER}/{source.name}", f"{ANNOTATION_FOLDER}/{source.name}"
        else:
            places = "images", labels.parent.name
        content, marked = _encoded(picture, labels, fidelity)
        yield f"{folder}/{places[0]}/{picture.stem}.webp", content
        yield f"{folder}/{places[1]}/{labels.stem}.png", marked


def _encoded(picture: Path, labels: Path | None, fidelity: Fidelity) -> tuple[bytes, bytes]:
    """A picture as WebP and its labels as PNG, both no larger than the fidelity's short side."""
    stream, marked = io.BytesIO(), io.BytesIO()
    with Image.open(picture) as image:
        size = _size(image.size, fidelity.short_side)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(
            stream, "WEBP", quality=fidelity.quality
        )
    if labels is not None:
        with Image.open(labels) as image:
            image.resize(size, Image.Resampling.NEAREST).save(marked, "PNG", optimize=True)
    return stream.getvalue(), marked.getvalue()


def _size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    share = min(1.0, short_side / min(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _fitting(pictures: Sequence[Path], room: int) -> int:
    """The first of `FIDELITIES` at which all pictures take about `room` bytes, by a sample of them."""
    sample = pictures[::_SAMPLED]

    def fits(fidelity: Fidelity) -> bool:
        mean = sum(len(_encoded(path, None, fidelity)[0]) for path in sample) / max(len(sample), 1)
        return mean * len(pictures) < room

    return bisect.bisect_left(FIDELITIES, True, key=fits)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """An archive. ValueError where it cannot be read, or would write outside of a run's folder."""
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError) as error:
        fault = str(error).splitlines()[0].rstrip(":")
        raise ValueError(
            f"{archive} is damaged, or was made by another program ({fault}); copy it again"
        ) from error


def _extract(archive: Path, run: Path, needed: set[str], fault: str) -> None:
    """Puts all files of an archive into a folder, or none. ValueError, with the fault, where needed ones are
    missing."""
    run.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".stm-", dir=run) as folder:
        with _opened(archive) as tar:
            if needed - {one.name for one in tar if one.isfile()}:
                raise ValueError(f"{archive} is {fault}")
            tar.extractall(folder, filter="data")
        for path in Path(folder).iterdir():
            path.replace(run / path.name)


def _unpack(archive: Path, run: Path) -> tuple[TrainingConfig, dict[str, torch.Tensor]]:
    _extract(archive, run, {_CONFIG, _START}, f"no packed run: it holds no {_CONFIG} and {_START}")
    config = TrainingConfig.from_dict(json.loads((run / _CONFIG).read_text(encoding="utf-8")))
    state = torch.load(run / _START, map_location="cpu", weights_only=True)
    state = {name: one.float() if one.is_floating_point() else one for name, one in state.items()}

    def here(folders: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(run / folder) for folder in folders)

    config = replace(
        config,
        videos=here(config.videos),
        stills=here(config.stills),
        instances=here(config.instances),
        start=str(run / _START),
    )
    return config, state


def _trainer(
    folder: Path, config: TrainingConfig, state: dict[str, torch.Tensor], device: str, workers: int
) -> Trainer:
    config = continued_config(folder, config)
    return Trainer(folder, config, training_clips(config), initial=state, device=device, workers=workers)


def _seconds_a_step(
    folder: Path, config: TrainingConfig, state: dict[str, torch.Tensor], device: str, workers: int
) -> float:
    """The mean time of a step here, after the first few."""
    ended: list[float] = []
    short = replace(config, steps=_MEASURED_STEPS, checkpoint_every=10 * _MEASURED_STEPS)
    _trainer(folder, short, state, device, workers).run(
        lambda trainer, losses: ended.append(time.monotonic())
    )
    return (ended[-1] - ended[_IGNORED_STEPS - 1]) / (_MEASURED_STEPS - _IGNORED_STEPS)


def _write_result(run: Path) -> Path:
    """Puts the checkpoint, the curves and the configuration of a run into one file."""
    result = run / RESULT
    with tarfile.open(result, "w") as tar:
        for path in (
            run / CHECKPOINT_FILE,
            run / _CONFIG,
            *sorted(run.glob("*.csv")),
            *sorted(run.glob("*.png")),
        ):
            tar.add(path, arcname=path.name)
    return result
