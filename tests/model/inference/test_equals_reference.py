"""The fast inference gives what the plain reference gives, frame after frame, for every memory rule."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.inference.fast_network import FastNetwork
from model.inference.prediction import merge_objects
from model.network.config import STRIDE, network_config
from model.network.memory import AREA_UNITS, MemoryEntry, MemoryRule, areas_of
from model.network.read import space_time_read
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import WeightsFileError, convert_published, load_network
from tests.reference.samples import (
    FRAMES,
    HEIGHT,
    OBJECTS,
    WIDTH,
    PlainModules,
    first_masks,
    lively_network,
    lively_reference,
    texture,
)
from tests.reference.stm import PlainNetwork, ReferenceSTM, propagate, read_memory

LARGE = pytest.param("stm-r50", marks=pytest.mark.slow)

TOLERANCE = 1e-4
RULES = ("first", "previous", "first+previous", "every:5", "every:2")
LARGE_RULES = ("first+previous", "every:5")  # one code keeps the memory of both networks


@pytest.fixture(scope="module")
def published() -> ReferenceSTM:
    return lively_reference()


@pytest.fixture(scope="module")
def published_file(published: ReferenceSTM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "STM_weights.pth"
    torch.save({f"module.{name}": tensor for name, tensor in published.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[PlainNetwork, FastNetwork]:
    """The plain network and the fast one, with the same weights."""
    if request.param == "stm-r50":
        published: ReferenceSTM = request.getfixturevalue("published")
        return published, FastNetwork(load_network(request.getfixturevalue("published_file"))[0])
    network = lively_network(request.param)
    return PlainModules(network), FastNetwork(network)


def propagate_fast(engine: FastNetwork, pictures: Tensor, masks: Tensor, rule: str) -> Iterator[Tensor]:
    entry = engine.encode_memory(pictures[0], masks)
    bank = engine.new_bank(MemoryRule.parse(rule), entry)
    bank.write(0, entry)
    for step, picture in enumerate(pictures[1:], start=1):
        probabilities = engine.segment(engine.encode_query(picture), bank)
        yield probabilities
        bank.write(step, engine.encode_memory(picture, probabilities[1:]))


@pytest.mark.parametrize(
    ("pair", "rule"),
    [
        *(pytest.param("stm-r50", rule, marks=pytest.mark.slow) for rule in LARGE_RULES),
        *(("stm-lite", rule) for rule in RULES),
    ],
    indirect=["pair"],
)
def test_chain_of_twenty_frames_equals_the_reference(
    pair: tuple[PlainNetwork, FastNetwork], rule: str
) -> None:
    plain, engine = pair
    pictures, masks = texture(1), first_masks()
    config = engine.network.config
    bounds = config.previous_frame_cap, config.key_weight, config.shrink_guard
    expected = torch.stack(list(propagate(plain, pictures, masks, rule, *bounds)))
    got = torch.stack(list(propagate_fast(engine, pictures, masks, rule)))
    assert expected.shape == (FRAMES - 1, OBJECTS + 1, HEIGHT, WIDTH)
    assert (expected - got).abs().max().item() <= TOLERANCE
    # The weights are random, but the comparison must not be an empty one: every label is seen, masks move.
    shares = F.one_hot(expected.argmax(dim=1), OBJECTS + 1).float().mean(dim=(0, 1, 2))
    assert shares.min() > 0.01
    assert (expected[0] - expected[-1]).abs().max() > 0.1


def test_the_papers_network_reads_as_the_paper_says_and_the_lite_one_bounds_the_previous_frame() -> None:
    assert network_config("stm-r50").previous_frame_cap == 1
    assert network_config("stm-lite").previous_frame_cap == 0.5
    assert network_config("stm-lite").key_weight == 0.3
    assert network_config("stm-lite").shrink_guard == 0.15


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_any_share_of_the_previous_frame_equals_the_reference(share: float) -> None:
    network = lively_network("stm-lite")
    pictures, masks = texture(1)[:9], first_masks()
    expected = torch.stack(list(propagate(PlainModules(network), pictures, masks, "every:3", share)))
    engine = FastNetwork(network, previous_frame_cap=share, key_weight=0.0, shrink_guard=1.0)
    got = torch.stack(list(propagate_fast(engine, pictures, masks, "every:3")))
    assert (expected - got).abs().max().item() <= TOLERANCE
    if share < 1:
        unbounded = torch.stack(list(propagate(PlainModules(network), pictures, masks, "every:3")))
        differences = (expected - unbounded).abs().amax(dim=(1, 2, 3))
        assert differences[0] <= TOLERANCE, "the first frame reads the key alone"
        assert differences[1] > 10 * TOLERANCE, "the next one reads a previous frame"


@pytest.mark.parametrize("limit", [0.05, 0.15])
def test_an_object_that_would_shrink_too_fast_is_read_without_the_bound(limit: float) -> None:
    network, rule = lively_network("stm-lite"), "every:3"
    pictures = F.interpolate(texture(1)[:6], scale_factor=2)
    pictures[3] *= 0.3  # one object grows in the dark, and shrinks again in the next frame
    masks = F.interpolate(first_masks()[None], scale_factor=2)[0]

    def reference(shrink_guard: float) -> Tensor:
        plain = PlainModules(network)
        return torch.stack(list(propagate(plain, pictures, masks, rule, 0.3, 0.5, shrink_guard)))

    engine = FastNetwork(network, previous_frame_cap=0.3, key_weight=0.5, shrink_guard=limit)
    got = torch.stack(list(propagate_fast(engine, pictures, masks, rule)))
    assert (reference(limit) - got).abs().max().item() <= TOLERANCE
    differences = (reference(1.0) - got).abs().amax(dim=(1, 2, 3))
    assert differences[:3].max() <= TOLERANCE
    assert (differences[3] > 10 * TOLERANCE) == (limit == 0.05)


def test_which_objects_are_read_without_the_bound_is_told_apart() -> None:
    engine = FastNetwork(lively_network("stm-lite"), previous_frame_cap=0.3)
    pictures, masks = texture(1)[:3], first_masks()
    entries = [engine.encode_memory(picture, masks) for picture in pictures[:2]]
    bank = engine.new_bank(MemoryRule.parse("every:5"), entries[0])
    bank.write(0, entries[0])
    query = engine.encode_query(pictures[2])
    assert engine.previous_frame_caps(query, bank) == [1.0] * OBJECTS, "the key may give all"
    bank.write(1, replace(entries[1], areas=torch.ones(OBJECTS, dtype=torch.int64)))
    assert engine.previous_frame_caps(query, bank) == [0.3] * OBJECTS
    bounded = engine.segment_alone(query, bank)
    assert torch.equal(engine.begin_segment(query, bank)(), engine.segment(query, bank)[1:])
    bank.write(1, replace(entries[1], areas=torch.tensor([1, 1 << 40, 1])))
    assert engine.previous_frame_caps(query, bank) == [0.3, 1.0, 0.3]
    got = engine.segment_alone(query, bank)
    assert torch.equal(engine.begin_segment(query, bank)(), engine.segment(query, bank)[1:])
    assert torch.equal(merge_objects(got), engine.segment(query, bank))
    assert torch.equal(got[[0, 2]], bounded[[0, 2]])
    engine.previous_frame_cap = 1.0
    assert torch.equal(got[1], engine.segment_alone(query, bank)[1])
    assert not torch.equal(got[1], bounded[1])


def test_a_loss_of_less_than_one_position_is_no_reason_to_read_without_the_bound() -> None:
    engine = FastNetwork(lively_network("stm-lite"), previous_frame_cap=0.3, shrink_guard=0.0)
    pictures, masks = texture(1)[:3], first_masks()
    entry = engine.encode_memory(pictures[0], masks)
    bank = engine.new_bank(MemoryRule.parse("every:5"), entry)
    bank.write(0, entry)
    bank.write(1, replace(entry, areas=torch.zeros(OBJECTS, dtype=torch.int64)))
    query = engine.encode_query(pictures[2])
    now = areas_of(engine.segment(query, bank)[1:])
    for more, shares in ((0, [0.3] * OBJECTS), (1, [1.0] * OBJECTS)):
        bank.write(1, replace(entry, areas=now + STRIDE * STRIDE * AREA_UNITS + more))
        assert engine.previous_frame_caps(query, bank) == shares


def test_areas_are_the_same_in_any_order() -> None:
    probabilities = torch.rand(2, 37, 53, generator=torch.Generator().manual_seed(1))
    areas = areas_of(probabilities)
    assert areas.dtype == torch.int64
    assert torch.equal(areas, areas_of(probabilities.flip(1, 2)))
    torch.testing.assert_close(areas / AREA_UNITS, probabilities.sum(dim=(1, 2)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("pair", ["stm-lite"], indirect=True)
def test_memory_rules_differ_in_what_they_give(pair: tuple[PlainNetwork, FastNetwork]) -> None:
    _, engine = pair
    pictures, masks = texture(1)[:9], first_masks()
    last = {rule: list(propagate_fast(engine, pictures, masks, rule))[-1] for rule in RULES}
    for a in RULES:
        for b in RULES:
            assert a == b or (last[a] - last[b]).abs().max() > 10 * TOLERANCE, f"{a} and {b} give the same"


@pytest.mark.parametrize("pair", [LARGE, "stm-lite"], indirect=True)
def test_objects_do_not_depend_on_their_order(pair: tuple[PlainNetwork, FastNetwork]) -> None:
    _, engine = pair
    pictures, masks = texture(1)[:4], first_masks()
    *_, straight = propagate_fast(engine, pictures, masks, "every:5")
    *_, turned = propagate_fast(engine, pictures, masks.flip(0), "every:5")
    assert (straight[1:] - turned[1:].flip(0)).abs().max() <= TOLERANCE


def random_memory(frames: int, positions: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            3 * torch.randn(OBJECTS, positions, 16, generator=generator),
            torch.randn(OBJECTS, 24, positions, generator=generator),
        )
        for _ in range(frames)
    ]


@pytest.mark.parametrize("block_elements", [1, 100, 7 * 12 * 5, 10**9])
def test_streamed_read_equals_the_matrix_of_the_paper(block_elements: int) -> None:
    memory = random_memory(frames=6, positions=7 * 12)
    query = 3 * torch.randn(16, 7, 12, generator=torch.Generator().manual_seed(4))
    got = space_time_read(query.flatten(1), memory, block_elements=block_elements)
    for index in range(OBJECTS):
        keys = torch.stack([keys[index].T.reshape(-1, 7, 12) for keys, _ in memory], dim=1)
        values = torch.stack([values[index].reshape(-1, 7, 12) for _, values in memory], dim=1)
        expected = read_memory(query, keys, values).flatten(1)
        assert (got[index] - expected).abs().max() <= 1e-5


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest number of elements that any operation gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements: int = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def largest_tensor_of_a_read(frames: int, positions: int, block_elements: int) -> int:
    query = torch.randn(16, positions, generator=torch.Generator().manual_seed(4))
    memory = random_memory(frames, positions)
    largest = LargestTensor()
    with largest:
        space_time_read(query, memory, block_elements=block_elements)
    return largest.elements


def test_read_never_holds_the_matrix_of_a_long_memory() -> None:
    positions, frames = 128, 40
    largest = largest_tensor_of_a_read(frames, positions, block_elements=10**9)
    assert largest <= OBJECTS * positions * positions  # one memory frame, of forty
    assert largest == largest_tensor_of_a_read(2, positions, block_elements=10**9)
    # Within a frame too, scores are bounded, and the result itself is the largest: (objects, 24, positions).
    bounded = largest_tensor_of_a_read(frames, positions, block_elements=16 * positions)
    assert bounded == OBJECTS * 24 * positions


def test_segmenting_holds_nothing_that_grows_with_the_memory() -> None:
    torch.manual_seed(7)
    engine = FastNetwork(SpaceTimeMemoryNetwork(network_config("stm-lite")))
    pictures, masks = texture(1), first_masks()

    def largest_with(stored: int) -> int:
        entry = engine.encode_memory(pictures[0], masks)
        bank = engine.new_bank(MemoryRule.parse("every:1"), entry, capacity=100)
        for step in range(stored):
            bank.write(step, entry)
        query = engine.encode_query(pictures[1])
        largest = LargestTensor()
        with largest:
            engine.segment(query, bank)
        return largest.elements

    assert largest_with(80) == largest_with(2)


def test_released_names_load_with_and_without_prefix(
    published: ReferenceSTM, published_file: Path, tmp_path: Path
) -> None:
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    loaded = {}
    for path in (tmp_path / "weights.pth", published_file):
        network, manifest = load_network(path)
        assert manifest.architecture == "stm-r50" and "non-commercial" in manifest.licence
        loaded[path] = network.state_dict()
    without, with_prefix = loaded.values()
    assert without.keys() == with_prefix.keys()
    for name, tensor in with_prefix.items():
        assert torch.equal(without[name], tensor)


def test_released_weights_convert_to_safetensors_without_loss(published_file: Path, tmp_path: Path) -> None:
    convert_published(published_file, tmp_path / "weights.safetensors")
    converted, manifest = load_network(tmp_path / "weights.safetensors")
    original, _ = load_network(published_file)
    assert manifest.architecture == "stm-r50"
    for name, tensor in original.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor)


def test_released_weights_with_a_missing_tensor_are_refused(published: ReferenceSTM, tmp_path: Path) -> None:
    state = published.state_dict()
    del state["Decoder.pred2.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsFileError, match=r"1 tensors missing.*predict"):
        load_network(tmp_path / "weights.pth")


class Malicious:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_inside_a_weights_file_is_never_run(tmp_path: Path, how: str) -> None:
    proof, path = tmp_path / "executed", tmp_path / "weights.pth"
    state = {"Encoder_Q.conv1.weight": torch.zeros(64, 3, 7, 7), "more": Malicious(proof)}
    if how == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(WeightsFileError, match="never run"):
        load_network(path)
    assert not proof.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert proof.exists()  # the file would have done it


def test_entries_and_queries_survive_a_cache() -> None:
    torch.manual_seed(7)
    engine = FastNetwork(SpaceTimeMemoryNetwork(network_config("stm-lite")))
    picture, masks = texture(1)[0], first_masks()
    entry, query = engine.encode_memory(picture, masks), engine.encode_query(picture)
    bank = engine.new_bank(MemoryRule.parse("first"), entry)
    bank.write(0, MemoryEntry(**entry.state()))
    again = type(query).from_state(query.state(), query.height, query.width)
    other = engine.new_bank(MemoryRule.parse("first"), entry)
    other.write(0, entry)
    assert torch.equal(engine.segment(query, bank), engine.segment(again, other))
