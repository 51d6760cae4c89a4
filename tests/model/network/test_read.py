"""The streamed read gives the softmax-weighted sum for all scores and any order of the memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from model.network.read import _parts, _read_parts, _StreamedSoftmax, space_time_read
from model.network.stm import read_dense

OBJECTS, KEYS, VALUES, POSITIONS = 2, 8, 6, 40
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def memory_with_scores(frames: int, loudest: int, size: float) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A query (KEYS, POSITIONS) and memory frames; one of them has scores of about `size`."""
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(KEYS, POSITIONS, generator=generator)
    frames_: list[tuple[Tensor, Tensor]] = []
    for frame in range(frames):
        keys = torch.randn(OBJECTS, POSITIONS, KEYS, generator=generator)
        if frame == loudest:
            keys = keys + size * query.T / query.norm(dim=0)[:, None] ** 2 * KEYS**0.5
        frames_.append((keys, torch.randn(OBJECTS, VALUES, POSITIONS, generator=generator)))
    return query, frames_


def whole_softmax(query: Tensor, memory: list[tuple[Tensor, Tensor]]) -> Tensor:
    keys = torch.cat([keys for keys, _ in memory], dim=1).double()
    values = torch.cat([values for _, values in memory], dim=2).double()
    weights = (keys @ (query.double() / KEYS**0.5)).softmax(dim=1)
    result: Tensor = values @ weights
    return result


@pytest.mark.parametrize("block_elements", [7 * POSITIONS, None])
@pytest.mark.parametrize("loudest", [0, 2, 4])
@pytest.mark.parametrize("size", [0.0, 60.0, 200.0, 1000.0])
def test_scores_of_any_size_in_any_frame_are_read_right(
    size: float, loudest: int, block_elements: int | None
) -> None:
    query, memory = memory_with_scores(5, loudest, size)
    got = space_time_read(query, memory, block_elements=block_elements)
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), whole_softmax(query, memory), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_values_of_half_precision_do_not_overflow(precision: torch.dtype) -> None:
    query, memory = memory_with_scores(5, 0, 300.0)
    halves = [(keys, values.to(precision)) for keys, values in memory]
    got = space_time_read(query, halves)
    torch.testing.assert_close(got.double(), whole_softmax(query, memory), rtol=0.05, atol=0.05)


def test_positions_that_are_nothing_like_the_query_cost_no_denormal_numbers() -> None:
    query = torch.full((KEYS, POSITIONS), 10.0)
    like, unlike = torch.full((1, POSITIONS, KEYS), 1.0), torch.full((1, POSITIONS, KEYS), -2.0)
    nothing, something = torch.zeros(1, VALUES, POSITIONS), torch.full((1, VALUES, POSITIONS), 1e-3)
    got = space_time_read(query, [(unlike, something), (like, nothing)])  # scores of -57 and 28
    assert (unlike[0] @ query / KEYS**0.5 - like[0] @ query / KEYS**0.5).exp().max() * 1e-3 < SMALLEST_NORMAL
    assert ((got == 0) | (got > SMALLEST_NORMAL)).all()
    assert got.max() < 1e-20


def test_frames_of_several_sizes_are_read_together() -> None:
    query, memory = memory_with_scores(3, 1, 5.0)
    memory[0] = memory[0][0][:, :7], memory[0][1][:, :, :7]
    got = space_time_read(query, memory, block_elements=11 * POSITIONS)
    torch.testing.assert_close(got.double(), whole_softmax(query, memory), rtol=1e-5, atol=1e-5)


def test_any_number_of_query_positions_is_read() -> None:
    query, memory = memory_with_scores(3, 1, 5.0)
    for positions in (1, 7, POSITIONS - 1, POSITIONS):
        part = query[:, :positions]
        torch.testing.assert_close(
            space_time_read(part, memory).double(), whole_softmax(part, memory), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("block_elements", [1, 7 * POSITIONS, None])
@pytest.mark.parametrize("loudest", [0, 3, 4])
@pytest.mark.parametrize("size", [0.0, 60.0, 1000.0])
def test_the_previous_frame_gives_its_share_at_most(
    size: float, loudest: int, block_elements: int | None
) -> None:
    query, memory = memory_with_scores(5, loudest, size)
    for share in (0.0, 0.3, 1.0):
        got = space_time_read(
            query,
            memory[:-1],
            previous=memory[-1],
            previous_frame_cap=share,
            block_elements=block_elements,
        )
        expected = share * whole_softmax(query, memory) + (1 - share) * whole_softmax(query, memory[:-1])
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("largest", [7, 10 * POSITIONS])
def test_all_objects_at_once_as_on_a_card_are_read_the_same(share: float, largest: int) -> None:
    query, memory = memory_with_scores(5, 3, 60.0)
    parts = _parts(memory[1:-1], memory[:1], 0.4, memory[-1], share)
    got = _read_parts(_StreamedSoftmax(query / KEYS**0.5, hopeful=False), parts, largest)
    expected = space_time_read(
        query,
        memory[1:-1],
        keys=memory[:1],
        key_weight=0.4,
        previous=memory[-1],
        previous_frame_cap=share,
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize("loudest", [0, 3, 5])
@pytest.mark.parametrize("size", [0.0, 60.0, 1000.0])
def test_keys_give_their_share_at_least(size: float, loudest: int, keys: int) -> None:
    query, memory = memory_with_scores(6, loudest, size)
    for share in (0.0, 0.3, 1.0):
        got = space_time_read(
            query,
            memory[keys:-1],
            keys=memory[:keys],
            key_weight=share,
            previous=memory[-1],
            previous_frame_cap=0.4,
        )
        rest = share * whole_softmax(query, memory[:keys]) + (1 - share) * whole_softmax(query, memory[:-1])
        expected = 0.4 * whole_softmax(query, memory) + 0.6 * rest
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_keys_are_frames_like_others_beside_a_previous_frame_without_a_bound() -> None:
    query, memory = memory_with_scores(4, 3, 20.0)
    read = partial(space_time_read, query, keys=memory[:1], key_weight=0.5)
    whole = space_time_read(query, memory)
    assert torch.equal(read(memory[1:]), whole)
    assert torch.equal(read(memory[1:-1], previous=memory[-1]), whole)
    alone = read([], previous=memory[-1], previous_frame_cap=0.5)
    expected = 0.5 * whole_softmax(query, [memory[0], memory[-1]]) + 0.5 * whole_softmax(query, memory[:1])
    torch.testing.assert_close(alone.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_previous_frame_without_a_bound_is_a_frame_like_others() -> None:
    query, memory = memory_with_scores(4, 3, 20.0)
    assert torch.equal(
        space_time_read(query, memory[:-1], previous=memory[-1]), space_time_read(query, memory)
    )
    alone = space_time_read(query, [], previous=memory[-1], previous_frame_cap=0.5)
    assert torch.equal(alone, space_time_read(query, memory[-1:]))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    query, memory = memory_with_scores(2, 0, 1.0)
    with pytest.raises(ValueError, match=r"share of .* is not in"):
        space_time_read(query, memory[:-1], previous=memory[-1], previous_frame_cap=share)
    with pytest.raises(ValueError, match=r"share of .* for keys is not in"):
        space_time_read(query, memory[:-1], keys=memory[-1:], key_weight=share)


def test_an_empty_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="the memory is empty"):
        space_time_read(torch.zeros(KEYS, POSITIONS), [])


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_training_reads_the_same(share: float, frames: int) -> None:
    query, memory = memory_with_scores(frames, frames // 2, 20.0)
    keys, values = (torch.stack(parts, dim=1) for parts in zip(*memory, strict=True))
    got = read_dense(
        query.reshape(1, KEYS, 5, 8),
        keys.transpose(2, 3).reshape(1, OBJECTS, frames, KEYS, 5, 8),
        values.reshape(1, OBJECTS, frames, VALUES, 5, 8),
        previous_frame_cap=share,
        key_weight=0.3,
    )
    expected = space_time_read(
        query,
        memory[1:-1],
        keys=memory[: min(1, frames - 1)],
        key_weight=0.3,
        previous=memory[-1],
        previous_frame_cap=share,
    )
    torch.testing.assert_close(got[0].flatten(2), expected, rtol=1e-4, atol=1e-4)


def test_training_computes_with_no_denormal_numbers() -> None:
    query, memory = memory_with_scores(3, 1, 1000.0)
    keys, values = (torch.stack(parts, dim=1) for parts in zip(*memory, strict=True))
    keys = keys.transpose(2, 3).reshape(1, OBJECTS, 3, KEYS, 5, 8).requires_grad_()
    read = read_dense(
        query.reshape(1, KEYS, 5, 8),
        keys,
        values.reshape(1, OBJECTS, 3, VALUES, 5, 8),
        previous_frame_cap=0.5,
        key_weight=0.3,
    )
    (gradient,) = torch.autograd.grad(read.mean(), keys)
    assert ((gradient == 0) | (gradient.abs() > SMALLEST_NORMAL)).all()
