"""The edge refiner, its training data and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.inference.edges import FastRefiner
from model.inference.fast_network import Precision
from model.inference.guided_filter import filtered_by
from model.network.edges import (
    FILTERS,
    FLAT,
    INPUTS,
    SOFTEST,
    EdgeRefiner,
    edge_config,
    guided,
    softness_of,
)
from model.training import edge_clips
from model.training.edge_clips import FRAMES, WORKING_SIDE, make_clip
from model.training.edge_losses import edge_loss
from model.training.edge_pool import PooledClip, pool_file, read_pooled, write_pooled
from model.training.edge_recipe import EdgeMaterial, train_edges
from model.training.edge_samples import CROP, make_sample
from model.training.edge_trainer import EdgeTrainer, EdgeTraining, rate_at
from model.weights_file import Manifest, WeightsFileError, load_refiner, save_network

NEWER = ("dense fur", "pelt", "slow blur")


def clip_of_kind(kind: str) -> edge_clips.EdgeClip:
    """The first clip of a kind."""
    shares = edge_clips.SHARES if kind in edge_clips.SHARES else edge_clips.SOFTER
    for seed in range(200):
        if edge_clips.kind_of(seed, shares) == kind:
            return make_clip(seed, (), shares)
    raise AssertionError(f"no {kind} among 200 clips")


def coarse_of(clip: edge_clips.EdgeClip) -> npt.NDArray[np.uint16]:
    """(F, K, h, w) in 65535ths: masks cut at a half, the best that a network could give."""
    step = clip.plate.shape[1] / WORKING_SIDE
    places = ((np.arange(WORKING_SIDE) + 0.5) * step).astype(int)
    small = clip.alpha[:, :, places][..., places]
    return (small > 127).astype(np.uint16) * np.uint16(65535)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clips on disk."""
    folder = tmp_path_factory.mktemp("pool")
    for seed in (1, 2):
        clip = make_clip(seed)
        write_pooled(
            pool_file(folder, seed),
            PooledClip(clip.plate, clip.alpha[:, 0], coarse_of(clip), False, clip.kind, clip.scale),
        )
    return sorted(folder.glob("*.npz"))


def test_a_clip_depends_on_its_seed_alone() -> None:
    one, same, other = make_clip(3), make_clip(3), make_clip(4)
    assert (one.plate == same.plate).all() and (one.alpha == same.alpha).all()
    assert one.plate.shape != other.plate.shape or (one.plate != other.plate).any()


@pytest.mark.parametrize(
    "kind", ["fur", "wires", "solid", "defocus", "half defocus", "motion blur", "gauze", "assembly", *NEWER]
)
def test_every_kind_of_clip_shows_its_object_and_says_where_it_is_soft(kind: str) -> None:
    clip = clip_of_kind(kind)
    side = round(WORKING_SIDE * clip.scale)
    assert clip.plate.shape == (FRAMES, side, side, 3) and clip.alpha.shape[2:] == (side, side)
    alpha = clip.alpha[0, 0]
    covered, soft = np.count_nonzero(alpha > 127), np.count_nonzero((alpha > 5) & (alpha < 250))
    assert covered > 100 and (alpha == 0).any()
    outline = max(1.0, covered**0.5)
    assert soft > (20 if kind in ("defocus", "motion blur", "gauze", "dense fur") else 2) * outline


def test_what_stands_in_front_hides_the_object_and_changes_nothing_else() -> None:
    hides = 0
    for seed in range(4):
        alone, behind = (
            make_clip(seed, shares={"solid": 1.0}),
            make_clip(seed, shares={"solid": 1.0}, in_front=1),
        )
        assert (behind.alpha <= alone.alpha).all()
        hides += int(np.count_nonzero(behind.alpha < alone.alpha))
        # beside what stands in front, the picture is the same up to grain and the encoding
        same = np.abs(behind.plate.astype(int) - alone.plate).max(-1) <= 24
        assert same.mean() > 0.3
    assert hides > 1000


def test_a_clip_is_its_object_over_its_background_in_linear_light() -> None:
    clip = clip_of_kind("defocus")
    whole = edge_clips.decoded(clip.plate[0])
    inside = whole[clip.alpha[0, 0] == 255]
    assert inside.size and np.isfinite(whole).all() and whole.min() >= 0 and whole.max() <= 1
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    back = np.round(edge_clips.encoded(edge_clips.decoded(codes)) * 255)
    assert (back == codes).all()


def test_the_softness_of_a_key_is_the_width_of_its_ramps() -> None:
    columns = torch.arange(128.0)
    for width in (5.0, 8.0, 12.0):
        ramp = ((columns - 40) / width).clamp(0, 1).expand(96, 128)
        assert softness_of(ramp) == pytest.approx(width / SOFTEST, rel=0.15)
    assert softness_of(torch.zeros(32, 32)) == 0.0
    assert softness_of((columns > 60).float().expand(96, 128)) == 0.0


def test_the_filter_finds_alpha_that_follows_the_colours() -> None:
    generator = torch.Generator().manual_seed(1)
    alpha = torch.rand(1, 24, 24, generator=generator)
    alpha = torch.nn.functional.interpolate(alpha[None], size=(96, 96), mode="bilinear")[0]
    front, back = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.1, 0.3, 0.4])
    picture = alpha[:, None] * front.view(1, 3, 1, 1) + (1 - alpha[:, None]) * back.view(1, 3, 1, 1)
    coarse = (alpha > 0.5).float()
    found = guided(picture, coarse, 32)
    assert (found - alpha).square().mean() < 0.35 * (coarse - alpha).square().mean()
    flat = guided(torch.full_like(picture, 0.5), alpha, 12)
    assert flat.std() < 0.5 * alpha.std(), "a picture without colours says nothing about where an edge is"


@pytest.mark.parametrize("radius", FILTERS)
def test_the_filter_by_running_sums_is_the_filter(radius: int) -> None:
    rng = np.random.default_rng(radius)
    picture = rng.random((3, 64, 104), np.float32)
    values = np.clip(picture.mean(0) * 2 - 0.5, 0, 1).astype(np.float32)
    expected = guided(torch.from_numpy(picture)[None], torch.from_numpy(values)[None], radius)[0]
    (found,) = filtered_by(picture, values, (radius,), FLAT)
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_an_untrained_refiner_is_halfway_between_the_probability_and_the_filter() -> None:
    refiner = EdgeRefiner(edge_config("edges-lite")).eval()
    inputs = torch.rand(1, INPUTS, 64, 64)
    with torch.inference_mode():
        alpha, soft = refiner(inputs)
        filtered = guided(inputs[:, :3], inputs[:, 3], 32)
    assert torch.allclose(alpha, (inputs[:, 3] + filtered) / 2, atol=1e-5) and (soft == 0).all()


def trained_refiner() -> EdgeRefiner:
    """A refiner that changes what it is given."""
    torch.manual_seed(3)
    refiner = EdgeRefiner(edge_config("edges-lite")).eval()
    torch.nn.init.normal_(refiner.predict.weight, std=0.02)
    return refiner


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_the_fast_refiner_gives_what_the_plain_one_gives(precision: Precision, tolerance: float) -> None:
    refiner = trained_refiner()
    inputs = np.random.default_rng(0).random((INPUTS, 120, 152), np.float32)
    with torch.inference_mode():
        alpha, soft = refiner(torch.from_numpy(inputs)[None])
    found = FastRefiner(refiner, precision=precision).refine(inputs)
    assert np.abs(found[0] - alpha[0].clamp(0, 1).numpy()).max() < tolerance
    assert np.abs(found[1] - soft[0].sigmoid().numpy()).max() < tolerance


def test_no_earlier_picture_changes_a_bit() -> None:
    refiner, rng = trained_refiner(), np.random.default_rng(0)
    small, large = (rng.random((INPUTS, side, 2 * side), np.float32) for side in (24, 200))
    fresh, used = FastRefiner(refiner), FastRefiner(refiner)
    used.refine(small)
    for found, expected in zip(used.refine(large), fresh.refine(large), strict=True):
        assert np.array_equal(found, expected)


def test_the_refiner_gives_the_same_bits_whatever_the_number_of_threads() -> None:
    refiner = trained_refiner()
    inputs = np.random.default_rng(0).random((INPUTS, 120, 152), np.float32)
    fast, threads = FastRefiner(refiner), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(fast.refine(inputs))
    finally:
        torch.set_num_threads(threads)
    for alpha, soft in found[1:]:
        assert (alpha == found[0][0]).all() and (soft == found[0][1]).all()


def test_a_sample_depends_on_its_index_alone_and_its_truth_fits_its_picture(pool: list[Path]) -> None:
    one, same = make_sample(pool, 0, 11), make_sample(pool, 0, 11)
    assert torch.equal(one.inputs, same.inputs) and torch.equal(one.alpha, same.alpha)
    assert one.inputs.shape == (2, INPUTS, CROP, CROP) and one.alpha.shape == (2, CROP, CROP)
    assert not torch.equal(one.inputs, make_sample(pool, 0, 12).inputs)
    errors = []
    for index in range(12):
        sample = make_sample(pool, 1, index)
        errors.append(float((sample.inputs[:, 3] - sample.alpha).abs().mean()))
    assert max(errors) < 0.5 and min(errors) < 0.1  # turned and cut together


def test_the_loss_is_least_at_the_truth_and_counts_a_wobble() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    truth = (0.5 - (torch.hypot(rows - 32, columns - 32) - 16) / 8).clamp(0, 1).expand(1, 2, 64, 64)
    soft = torch.where((truth > 0.02) & (truth < 0.98), 9.0, -9.0)
    coarse = (truth > 0.5).float()
    known = torch.ones_like(truth)
    best, _ = edge_loss(truth, soft, truth, coarse, known)
    cut, _ = edge_loss(coarse, soft, truth, coarse, known)
    both = torch.stack([truth[:, 0] + 0.05, truth[:, 1] + 0.05], 1)
    wobbling = torch.stack([truth[:, 0] + 0.05, truth[:, 1] - 0.05], 1)
    assert best < cut
    changes = [edge_loss(one, soft, truth, coarse, known)[1]["change"] for one in (both, wobbling)]
    assert changes[0] < changes[1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(pool: list[Path], tmp_path: Path) -> None:
    options = EdgeTraining(steps=6, batch=2, warmup=2, save_every=3)
    whole = EdgeTrainer(tmp_path / "whole", options, lambda: pool)
    whole.run()
    EdgeTrainer(tmp_path / "part", options, lambda: pool).run(until=3)
    resumed = EdgeTrainer(tmp_path / "part", options, lambda: pool)
    assert resumed.step == 3
    resumed.run()
    for name, tensor in whole.mean.state_dict().items():
        assert torch.equal(tensor, resumed.mean.state_dict()[name]), name
    for name, tensor in whole.refiner.state_dict().items():
        assert torch.equal(tensor, resumed.refiner.state_dict()[name]), name


@pytest.mark.slow
def test_the_recipe_makes_clips_with_the_network_and_writes_weights(tmp_path: Path) -> None:
    seen: list[int] = []
    manifest = Manifest("mine", "", "in house", ("clips",))
    options = EdgeTraining(steps=2, batch=1, warmup=1)
    written = train_edges(
        tmp_path, options, manifest, EdgeMaterial(clips=2), start="edges-lite", on_clip=seen.append
    )
    refiner, read = load_refiner(tmp_path / "edges.safetensors")
    assert seen == [1, 2] and read.sha256 == written.sha256 and read.licence == "in house"
    shipped = load_refiner()[0].state_dict()
    assert any(not torch.equal(one, shipped[name]) for name, one in refiner.state_dict().items())
    clip = read_pooled(pool_file(tmp_path / "clips", 0))
    truth = clip.alpha[-1, :: clip.alpha.shape[1] // WORKING_SIDE, :: clip.alpha.shape[1] // WORKING_SIDE]
    assert clip.coarse.shape[2:] == (WORKING_SIDE, WORKING_SIDE) and truth.any()


def test_the_rate_rises_and_falls() -> None:
    options = EdgeTraining(steps=100, warmup=10)
    rates = [rate_at(step, options) for step in range(101)]
    assert rates[0] < rates[5] < rates[10] == pytest.approx(options.rate, rel=0.01)
    assert rates[-1] == pytest.approx(0.01 * options.rate, rel=0.01)


def test_the_shipped_refiner_says_what_it_is_and_is_small() -> None:
    from model.weights_file import DEFAULT_EDGES, find_edges

    _, manifest = load_refiner()
    assert manifest.architecture == DEFAULT_EDGES and "commercial" in manifest.licence and manifest.data
    assert find_edges(DEFAULT_EDGES).stat().st_size < 4 << 20


def test_weights_of_a_refiner_are_refused_where_they_are_not_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    refiner = EdgeRefiner(edge_config("edges-lite"))
    save_network(refiner, Manifest("mine", "edges-huge", "in house"), path)
    with pytest.raises(WeightsFileError, match="unknown edge refiner 'edges-huge'"):
        load_refiner(path)
    with pytest.raises(WeightsFileError, match="nowhere"):
        load_refiner("nowhere")
    with torch.no_grad():
        refiner.predict.bias.fill_(float("nan"))  # type: ignore[union-attr]
    save_network(refiner, Manifest("mine", "edges-lite", "in house"), path)
    with pytest.raises(WeightsFileError, match="not numbers"):
        load_refiner(path)


def test_a_pooled_clip_comes_back_as_it_was(tmp_path: Path) -> None:
    clip = make_clip(5)
    written = PooledClip(clip.plate, clip.alpha[:, 0], coarse_of(clip), True, clip.kind, clip.scale)
    write_pooled(tmp_path / "clip.npz", written)
    read = read_pooled(tmp_path / "clip.npz")
    assert (read.plate == written.plate).all() and (read.coarse == written.coarse).all()
    assert (read.soft_key, read.kind, read.scale) == (True, clip.kind, clip.scale)
