"""A packed run trains on another machine within a given time, and its weights are collected."""

from __future__ import annotations

import io
import itertools
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import model.training.archive as archive_room
from model.data.pictures import write_labels
from model.training.archive import (
    FIDELITIES,
    LIMIT,
    ArchiveTooLargeError,
    Steps,
    collect,
    pack,
    packed_config,
    train_for,
)
from model.training.clips import ClipOptions
from model.training.recipe import export, initial_state, read_config
from model.training.trainer import TrainingConfig, saved_config
from model.weights_file import Manifest, find_weights, load_network

SHAPE = (72, 96)


def write_sample(picture: Path, labels: Path, left: int) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:52, left : left + 36] = 1
    array = np.random.default_rng(left).integers(0, 80, (*SHAPE, 3)).astype(np.uint8)
    array[mask > 0] += np.array([150, 90, 20], np.uint8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(picture)
    write_labels(labels, mask)


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    """Two videos, one of which is left out, two stills, and two pictures of several things."""
    for name in ("bear", "bus"):
        for frame in range(3):
            picture, labels = (tmp_path / "videos" / kind / name for kind in ("JPEGImages", "Annotations"))
            write_sample(picture / f"{frame}.png", labels / f"{frame}.png", 10 + 6 * frame)
    for folder, marked in (("stills", "masks"), ("things", "labels")):
        for number in range(2):
            place = tmp_path / folder
            write_sample(
                place / "images" / f"{number}.png", place / marked / f"{number}.png", 10 + 8 * number
            )
    return TrainingConfig(
        batch=1,
        videos=(str(tmp_path / "videos"),),
        stills=(str(tmp_path / "stills"),),
        instances=(str(tmp_path / "things"),),
        leave_out=("bus",),
        bf16=False,
        clip=ClipOptions(size=32, frames=2),
    )


@pytest.mark.slow
def test_a_packed_run_trains_in_its_time_and_its_weights_come_home(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "away.tar"
    packed = pack(config, archive)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert packed.pictures == 3 + 2 + 2
    assert packed.size == archive.stat().st_size < LIMIT
    assert not any("bus" in name for name in names), "what is left out of training does not travel"
    # a clock that goes on by a second each time it is asked: what is tested is not this machine's speed
    monkeypatch.setattr(archive_room, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    result = train_for(archive, tmp_path / "there", minutes=0.75, workers=0)
    collect(result, tmp_path / "home")
    brought = saved_config(tmp_path / "home")
    assert brought is not None and brought.steps > 12
    manifest = Manifest("brought", "stm-lite", "in house", ("made up",), "a test")
    export(tmp_path / "home", manifest, tmp_path / "brought.safetensors")
    assert load_network(tmp_path / "brought.safetensors")[1].name == "brought"
    assert (tmp_path / "home" / "log.csv").read_text().count("\n") == brought.steps + 1
    assert (tmp_path / "home" / "curves.png").exists() and (tmp_path / "home" / "curves.csv").exists()
    with pytest.raises(FileExistsError, match="holds a run already"):
        collect(result, tmp_path / "home")
    again = replace(brought, stills=config.stills, videos=config.videos, instances=config.instances)
    assert read_config("video", run=tmp_path / "home", stills=config.stills).steps == again.steps


def test_an_archive_takes_the_best_fidelity_that_fits_and_fewer_frames_if_asked(
    config: TrainingConfig, tmp_path: Path
) -> None:
    best = pack(config, tmp_path / "best.tar")
    assert best.fidelity == FIDELITIES[0]
    room = best.size - 12_000
    smaller = pack(config, tmp_path / "smaller.tar", limit=room)
    assert FIDELITIES.index(smaller.fidelity) > 0 and smaller.size <= room
    thinned = pack(config, tmp_path / "thinned.tar", steps=Steps(video=2, still=2))
    assert thinned.pictures == best.pictures - 1 - 1
    with tarfile.open(tmp_path / "thinned.tar") as tar:
        frames = sorted(Path(name).stem for name in tar.getnames() if "bear" in name and "JPEG" in name)
    assert frames == ["0", "2"]


def test_weights_that_shipped_in_half_precision_travel_so_and_arrive_the_same(tmp_path: Path) -> None:
    config = TrainingConfig(start="stm-lite", clip=ClipOptions(made_up_share=1))
    size = pack(config, tmp_path / "away.tar").size
    assert size < 1.1 * find_weights("stm-lite").stat().st_size
    _, state = archive_room._unpack(tmp_path / "away.tar", tmp_path / "there")
    for name, tensor in initial_state(config).items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


def test_a_run_of_made_up_clips_alone_travels_without_pictures(tmp_path: Path) -> None:
    config = TrainingConfig(batch=1, clip=ClipOptions(size=32, frames=2, made_up_share=1))
    assert pack(config, tmp_path / "away.tar").pictures == 0
    assert packed_config(tmp_path / "away.tar").clip.made_up_share == 1


def test_what_does_not_fit_is_refused_before_anything_is_written(
    config: TrainingConfig, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveTooLargeError, match="does not fit into 1 MiB"):
        pack(config, tmp_path / "away.tar", limit=2**20)
    assert not (tmp_path / "away.tar").exists()


def test_too_short_a_time_and_foreign_files_are_refused(config: TrainingConfig, tmp_path: Path) -> None:
    pack(config, tmp_path / "away.tar")
    with pytest.raises(ValueError, match="too short: a step takes"):
        train_for(tmp_path / "away.tar", tmp_path / "there", minutes=0.001, workers=0)
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        tar.add(tmp_path / "videos", arcname="videos")
    with pytest.raises(ValueError, match="is no packed run"):
        train_for(tmp_path / "foreign.tar", tmp_path / "elsewhere", minutes=1)
    with pytest.raises(ValueError, match="is no result of a run"):
        collect(tmp_path / "foreign.tar", tmp_path / "home")


def tar_of(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A tar file of files (their bytes) and links (where they lead)."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("fault", ["outside", "link", "linked", "cut off", "no tar", "empty"])
def test_a_damaged_or_hostile_result_leaves_nothing_and_is_told_in_words(tmp_path: Path, fault: str) -> None:
    whole, result = ("checkpoint.pt", b"x" * 2000), tmp_path / "result.tar"
    if fault == "outside":
        tar_of(result, whole, ("../evil", b"e"))
    elif fault == "link":
        tar_of(result, whole, ("a", "/etc"), ("a/evil", b"e"))
    elif fault == "linked":
        tar_of(result, ("checkpoint.pt", "/etc/passwd"))
    elif fault == "cut off":
        result.write_bytes(tar_of(result, whole).read_bytes()[:1000])
    else:
        result.write_bytes(b"junk" * 1000 if fault == "no tar" else b"")
    with pytest.raises(ValueError, match=r"result\.tar is (damaged|no result)"):
        collect(result, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["result.tar", "run"]
