"""Training: exact resume, one loss whatever the number of processes, and a network that learns."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.inference.fast_network import FastNetwork
from model.network.memory import MemoryRule
from model.training.clips import (
    ClipDataset,
    ClipOptions,
    LoadedSource,
    davis_sources,
    still_sources,
)
from model.training.trainer import (
    EDGE_RADIUS,
    Batch,
    Trainer,
    TrainingConfig,
    clip_losses,
    collate,
    max_skip_at,
    near_contours,
    propagate_clip,
)
from tests.reference.samples import first_masks, lively_network, texture

SIZE = 64


@pytest.fixture
def still_folder(tmp_path: Path) -> Path:
    """A still set of one bright ellipse on noise per picture."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    y, x = np.mgrid[:96, :128]
    for number in range(4):
        mask = ((x - 50 - 8 * number) / 24) ** 2 + ((y - 48) / 18) ** 2 < 1
        picture = rng.integers(0, 90, (96, 128, 3))
        picture[mask] += np.array([150, 60 + 30 * number, 40])
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    return tmp_path


def small_config(steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch=2,
        clip=ClipOptions(size=SIZE, still_share=1.0, paste_chance=0.3),
        warmup=2,
        bf16=False,
        checkpoint_every=2,
    )


def dataset(folder: Path, config: TrainingConfig) -> ClipDataset:
    return ClipDataset([], [still_sources(folder)], config.clip, seed=config.seed)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits_as_an_undisturbed_one(
    still_folder: Path, tmp_path: Path
) -> None:
    config = small_config(4)
    whole = Trainer(tmp_path / "whole", config, dataset(still_folder, config), workers=0)
    whole.run()

    class Interrupted(Exception):
        pass

    def interrupt(trainer: Trainer, _: object) -> None:
        if trainer.step == 3:
            raise Interrupted

    broken = Trainer(tmp_path / "broken", config, dataset(still_folder, config), workers=0)
    with pytest.raises(Interrupted):
        broken.run(interrupt)
    resumed = Trainer(tmp_path / "broken", config, dataset(still_folder, config), workers=0)
    assert resumed.step == 2
    resumed.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
        assert torch.equal(whole.average[name], resumed.average[name]), name


def test_gradient_accumulation_takes_the_same_step(still_folder: Path, tmp_path: Path) -> None:
    config = small_config(1)
    plain = Trainer(tmp_path / "plain", config, dataset(still_folder, config), workers=0)
    parts = Trainer(
        tmp_path / "parts", replace(config, accumulate=2), dataset(still_folder, config), workers=0
    )
    plain.run()
    parts.run()
    for name, value in plain.network.state_dict().items():
        assert torch.allclose(value, parts.network.state_dict()[name], atol=2e-5), name


@pytest.mark.slow
def test_the_loss_falls_on_a_clip_seen_again(still_folder: Path, tmp_path: Path) -> None:
    config = replace(small_config(12), learning_rate=1e-3, trunk_learning_rate=1e-3, jaccard_weight=0.5)
    trainer = Trainer(tmp_path / "run", config, dataset(still_folder, config), workers=0)
    batch = next(trainer._batches())

    def loss() -> float:
        with torch.no_grad():
            return float(clip_losses(propagate_clip(trainer.network, batch), batch, 0.5).total)

    before = loss()
    for _ in range(12):
        trainer._train_step(batch)
    assert loss() < 0.8 * before


def test_a_clip_is_read_in_training_as_a_pass_reads_it() -> None:
    frames, objects = 5, 2
    network = lively_network("stm-lite")
    pictures = texture(2)[:frames, :, :48, :80]
    masks = (first_masks()[:objects, :48, :80] > 0.5).float()
    masks[1] *= 1 - masks[0]
    labels = (masks * torch.tensor([1.0, 2.0])[:, None, None]).sum(dim=0).long().expand(frames, -1, -1)
    with torch.no_grad():
        got = propagate_clip(network, Batch(pictures[None], labels[None], torch.tensor([objects])))[0].exp()
    engine = FastNetwork(network)
    entry = engine.encode_memory(pictures[0], masks)
    bank = engine.new_bank(MemoryRule.parse("every:1"), entry)
    bank.write(0, entry)
    for step in range(1, frames):
        expected = engine.segment(engine.encode_query(pictures[step]), bank)
        torch.testing.assert_close(got[step - 1], expected, rtol=0, atol=1e-4)
        bank.write(step, engine.encode_memory(pictures[step], expected[1:]))
    assert network.config.previous_frame_cap < 1


def test_only_the_parts_that_shall_learn_change_and_a_resumed_run_keeps_to_them(
    still_folder: Path, tmp_path: Path
) -> None:
    learn = ("decoder.", "memory_key_value.value.")
    config = replace(small_config(2), learn=learn, edge_weight=1.0)
    trainer = Trainer(tmp_path / "run", config, dataset(still_folder, config), workers=0)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.run()
    longer = Trainer(
        tmp_path / "run", replace(config, steps=3, learn=()), dataset(still_folder, config), workers=0
    )
    assert longer.step == 2
    longer.run()
    for name, value in longer.network.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith(learn)), name


def test_a_part_that_the_network_has_not_is_named(still_folder: Path, tmp_path: Path) -> None:
    config = replace(small_config(1), learn=("decodr.",))
    with pytest.raises(ValueError, match=r"decodr\..*decoder\."):
        Trainer(tmp_path / "run", config, dataset(still_folder, config), workers=0)


def test_pixels_near_a_contour_are_those_within_its_radius() -> None:
    labels = torch.zeros(1, 20, 20, dtype=torch.int64)
    labels[:, :, 10:] = 2
    expected = torch.zeros(20, dtype=torch.bool)
    expected[10 - EDGE_RADIUS : 10 + EDGE_RADIUS] = True
    assert torch.equal(near_contours(labels), expected.expand(1, 20, 20))


def test_the_weight_of_edges_adds_the_cross_entropy_near_contours_once_more(
    still_folder: Path, tmp_path: Path
) -> None:
    config = small_config(1)
    trainer = Trainer(tmp_path / "run", config, dataset(still_folder, config), workers=0)
    batch = next(trainer._batches())
    with torch.no_grad():
        predicted = propagate_clip(trainer.network, batch)
    plain, weighted = (clip_losses(predicted, batch, 0.0, weight).total for weight in (0.0, 2.0))
    truth = batch.labels[:, 1:].unsqueeze(2)
    each = -predicted.gather(2, truth).squeeze(2)  # (B, T-1, H, W)
    near = near_contours(batch.labels[:, 1:].flatten(0, 1)).reshape(each.shape)
    assert 0 < near.float().mean() < 1
    assert torch.allclose(weighted, plain + 2 * (each * near).mean(), atol=1e-6)


def test_samples_are_pure_functions_of_seed_and_index(still_folder: Path) -> None:
    config = small_config(1)
    first, again = dataset(still_folder, config).sample(5), dataset(still_folder, config).sample(5)
    other = replace(dataset(still_folder, config), seed=1).sample(5)
    assert np.array_equal(first.pictures, again.pictures) and np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.pictures, other.pictures)
    assert first.pictures.shape == (3, SIZE, SIZE, 3) and int(first.labels.max()) == first.objects >= 1


@pytest.mark.parametrize("cut_off", [False, True])
def test_the_mirror_image_of_an_object_is_another_unless_the_border_cuts_the_object(cut_off: bool) -> None:
    labels = np.zeros((96, 96), np.uint8)
    labels[40:56, 0 if cut_off else 4 : 30] = 1
    picture = np.repeat(labels[..., None] * np.uint8(150) + np.uint8(50), 3, axis=-1)
    options = ClipOptions(
        size=96, wide=2.0, frames=1, scale=(1.0, 1.0), paste_chance=0.0, region_chance=0.0, blur_chance=0.0
    )
    clips = ClipDataset([], [[LoadedSource("box", ((picture, labels),))]], options)
    seen = unlabelled = 0
    for number in range(12):
        clip = clips.sample(number)
        assert clip.pictures.shape[1:3] == clip.labels.shape[1:] == (96, 192)
        grey = clip.pictures[0].mean(axis=-1)
        shown = grey > np.median(grey) + 50
        seen += int(shown.sum())
        unlabelled += int((shown & (clip.labels[0] == 0)).sum())
    assert (unlabelled / seen < 0.1) == cut_off


def test_clips_come_through_a_worker_to_half_of_a_byte(still_folder: Path, tmp_path: Path) -> None:
    config = small_config(1)
    clips = dataset(still_folder, config)
    pictures, labels, objects = collate([clips.sample(0), clips.sample(1)])
    for workers in (0, 1):
        (batch,) = Trainer(tmp_path / str(workers), config, clips, workers=workers)._batches()
        assert (batch.pictures - pictures).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(batch.labels, labels) and torch.equal(batch.objects, objects)


def test_the_skip_grows_as_the_curriculum_says() -> None:
    config = replace(small_config(100), skip_curriculum=(0, 25))
    skips = [max_skip_at(config, step) for step in range(100)]
    assert skips[0] == 0 and skips[75] == 25 == skips[-1] and skips == sorted(skips)


def test_the_real_training_data_gives_clips_with_objects(shared_data: Path) -> None:
    videos = davis_sources(shared_data / "davis2016_train", leave_out=["bus"])
    stills = [still_sources(shared_data / "stills" / name) for name in ("clothing", "horses")]
    assert len(videos) == 29 and "bus" not in {v.name for v in videos}
    stills.append(still_sources(shared_data / "stills" / "duts"))
    stills.append(still_sources(shared_data / "stills" / "instances", instances=True))
    assert len(stills[2]) == 3400 and len(stills[3]) == 815, "pictures in WebP are found"
    clips = [ClipDataset(videos, stills, ClipOptions(size=SIZE)).sample(i) for i in range(12)]
    assert {c.objects for c in clips} <= {1, 2}
    assert all((c.labels[0] > 0).any() and np.ptp(c.pictures) > 30 for c in clips)


@pytest.mark.slow
def test_two_processes_take_the_same_step_as_one(still_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import torch
            import torch.distributed as dist
            from pathlib import Path
            from tests.model.training.test_trainer import dataset, small_config
            from model.training.trainer import Trainer
            torch.set_num_threads(1)
            dist.init_process_group("gloo")
            config = small_config(2)
            runs, stills = Path({str(tmp_path)!r}), Path({str(still_folder)!r})
            trainer = Trainer(runs / "two", config, dataset(stills, config), workers=0)
            seen = []
            trainer.run(lambda t, losses: seen.append(losses.total))
            if trainer.rank == 0:
                state = trainer.network.state_dict()
                torch.save({{"losses": torch.stack(seen), "state": state}}, runs / "two.pt")
            dist.destroy_process_group()
            """
        )
    )
    root = Path(__file__).parents[3]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        cwd=root,
        env=_environment(root),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    config, losses = small_config(2), []
    one = Trainer(tmp_path / "one", config, dataset(still_folder, config), workers=0)
    one.run(lambda trainer, given: losses.append(given.total))
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert torch.allclose(torch.stack(losses), two["losses"], atol=1e-5)
    for name, value in one.network.state_dict().items():
        assert torch.allclose(value, two["state"][name], atol=2e-5), name


def _environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_used_only_where_the_processor_has_it(
    has: bool, still_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has})
    config = replace(small_config(1), bf16=True)
    trainer = Trainer(tmp_path / "run", config, dataset(still_folder, config), workers=0)
    assert trainer.bf16 == has
    assert trainer.config.bf16, "the run may go on where the processor has it"
