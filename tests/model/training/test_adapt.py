"""Adaptation to keys changes only the decoder, gives the same bits for the same seed, and learns."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from model.training.adapt import (
    MOST_OBJECTS_PER_CLIP,
    AdaptOptions,
    AdaptStep,
    KeyClips,
    KeyPicture,
    NothingToAdaptError,
    adapt,
    adapted_names,
    with_adaptation,
)
from model.training.trainer import clip_losses, collate, propagate_clip
from model.weights_file import load_network

HEIGHT, WIDTH = 64, 96
OPTIONS = AdaptOptions(steps=2, crop=48)


@pytest.fixture(scope="module")
def network() -> SpaceTimeMemoryNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SpaceTimeMemoryNetwork(network_config("stm-lite")).eval()


def box(left: int, top: int, side: int = 24) -> Tensor:
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[top : top + side, left : left + side] = 1
    return mask


def key(**masks: Tensor) -> KeyPicture:
    """A grey ramp on which each object is a brighter box."""
    picture = torch.linspace(0.1, 0.4, WIDTH).expand(3, HEIGHT, WIDTH).clone()
    for number, mask in enumerate(masks.values()):
        picture[number % 3] += 0.5 * mask
    return KeyPicture(picture, masks)


def test_only_the_chosen_parts_change(network: SpaceTimeMemoryNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors = adapt(network, [key(a=box(30, 20))], OPTIONS)
    assert tuple(tensors) == adapted_names(network, ("decoder",))
    assert all(name.startswith("decoder.") for name in tensors)
    assert any(not torch.equal(tensors[name], before[name]) for name in tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    adapted = with_adaptation(network, tensors).state_dict()
    assert all(torch.equal(adapted[name], before[name]) for name in before if name not in tensors)


def test_values_and_keys_can_be_adapted_too(network: SpaceTimeMemoryNetwork) -> None:
    options = replace(OPTIONS, parts=("decoder", "values", "keys"))
    tensors = adapt(network, [key(a=box(30, 20))], options)
    for layer in ("memory_key_value.value", "query_key_value.key"):
        assert not torch.equal(tensors[f"{layer}.weight"], network.state_dict()[f"{layer}.weight"])
    assert not any("encoder" in name for name in tensors)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(network: SpaceTimeMemoryNetwork) -> None:
    keys = [key(a=box(30, 20)), key(a=box(40, 24))]
    first, again = adapt(network, keys, OPTIONS), adapt(network, keys, OPTIONS)
    other = adapt(network, keys, replace(OPTIONS, seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def enlarged(given: KeyPicture) -> KeyPicture:
    """The same key at twice the size. Smaller crops have too few positions for a meaningful loss."""
    masks = {name: F.interpolate(m[None, None], scale_factor=2)[0, 0] for name, m in given.masks.items()}
    return KeyPicture(F.interpolate(given.picture[None], scale_factor=2, mode="bilinear")[0], masks)


@pytest.mark.slow
def test_it_learns_what_the_keys_show() -> None:
    network, _ = load_network()
    options = replace(OPTIONS, crop=96, steps=24, learning_rate=5e-4)
    keys = [enlarged(key(a=box(30, 20)))]
    clips = KeyClips(keys, options)
    unseen = collate([clips.sample(1000 + number) for number in range(12)])

    def loss(one: SpaceTimeMemoryNetwork) -> float:
        with torch.no_grad():
            return float(clip_losses(propagate_clip(one, unseen), unseen, 1.0).total)

    assert loss(with_adaptation(network, adapt(network, keys, options))) < 0.7 * loss(network)


def test_it_stops_when_told(network: SpaceTimeMemoryNetwork) -> None:
    steps: list[AdaptStep] = []

    def after_step(step: AdaptStep) -> bool:
        steps.append(step)
        return len(steps) < 2

    adapt(network, [key(a=box(30, 20))], replace(OPTIONS, steps=5), after_step=after_step)
    assert [step.step for step in steps] == [1, 2]


def test_two_keys_give_real_pairs_both_ways() -> None:
    left, right = key(a=box(4, 20)), key(a=box(68, 20))
    clips = KeyClips([left, right], replace(OPTIONS, real_share=1.0, paste_chance=0.0, clips=1))
    sampled = [clips.sample(index) for index in range(12)]
    assert {len(clip.pictures) for clip in sampled} == {2}
    single = KeyClips([left], replace(OPTIONS, real_share=1.0))
    assert len(single.sample(0).pictures) == 3  # one key has no partner


def test_a_step_is_real_or_synthetic_by_the_share() -> None:
    keys = [key(a=box(30, 20)), key(a=box(40, 24))]
    clips = KeyClips(keys, replace(OPTIONS, real_share=0.25))
    lengths = [{len(clips.sample(2 * step + number).pictures) for number in range(2)} for step in range(8)]
    assert all(len(of_step) == 1 for of_step in lengths)
    assert lengths.count({2}) == 2


def test_a_pair_shows_only_objects_that_both_keys_give() -> None:
    both = key(a=box(30, 20), b=box(60, 30))
    clips = KeyClips([both, key(a=box(34, 20))], replace(OPTIONS, real_share=1.0, paste_chance=0.0))
    assert {clips.sample(index).objects for index in range(8)} == {1}


def test_objects_beyond_the_most_of_one_clip_are_learnt_from_too() -> None:
    small = {f"o{number}": box(2 + 14 * number, 2, 12) for number in range(MOST_OBJECTS_PER_CLIP)}
    many = key(**small, large=box(40, 20, 40))
    clips = KeyClips([many], replace(OPTIONS, paste_chance=0.0, motion=0.0))
    sampled = [clips.sample(index) for index in range(30)]
    assert max(clip.objects for clip in sampled) <= MOST_OBJECTS_PER_CLIP
    lit = [int((clip.labels[0] > 0).sum()) for clip in sampled]
    assert max(lit) > 3 * 12**2 * 1.25**2 * 1.2  # more than all small ones together, at their largest
    assert min(lit) < 3 * 12**2


@pytest.mark.parametrize("mask", [box(0, 0, 0), box(30, 20, 2)], ids=["empty", "tiny"])
def test_keys_that_teach_nothing_are_refused(network: SpaceTimeMemoryNetwork, mask: Tensor) -> None:
    with pytest.raises(NothingToAdaptError):
        adapt(network, [key(a=mask)], OPTIONS)


def test_tensors_of_another_network_are_refused(network: SpaceTimeMemoryNetwork) -> None:
    with pytest.raises(ValueError, match=r"decoder\.predict\.bias"):
        with_adaptation(network, {"decoder.predict.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="nowhere"):
        with_adaptation(network, {"nowhere": torch.zeros(3)})


@pytest.mark.parametrize("through_memory", [True, False])
def test_a_frozen_memory_encoder_keeps_nothing_for_the_backward_pass(
    network: SpaceTimeMemoryNetwork, through_memory: bool
) -> None:
    learner = copy.deepcopy(network).requires_grad_(False)
    learner.decoder.requires_grad_(True)
    kept: list[bool] = []
    learner.memory_encoder.register_forward_hook(lambda *call: kept.append(call[2].requires_grad))
    batch = collate([KeyClips([key(a=box(30, 20))], OPTIONS).sample(0)])
    propagate_clip(learner, batch, through_memory=through_memory)
    assert kept == [False, through_memory]  # of the given mask, and of the first output


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"crop": 16}, {"parts": ()}, {"parts": ("trunk",)}]
)
def test_options_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="adapt"):
        AdaptOptions(**wrong)  # type: ignore[arg-type]
