"""The space-time memory read with a streaming softmax: exact, without the (T*H*W) x (H*W) matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ELEMENTS = 4_000_000
"""Largest number of scores at once per object (16 MB in fp32): enough to keep a graphics card busy."""

CPU_BLOCK_ELEMENTS = 600_000
"""The same on a CPU: scores fit into the processor's cache."""

CPU_BLOCK_ELEMENTS_HALF = 1_400_000
"""The same for values of half precision, whose products are fast compared with the other steps."""

CPU_GROUPS = 2
"""Parts of the query positions with separate products on a CPU: each of two threads computes one part from
scores to sums, instead of reading the results of the other. It does not depend on the number of threads, so
that a frame has the same bits in every process; with more threads the library divides the parts."""

SAFE_TOTAL = 1e30
"""Largest sum of a block's weights before the reference of the softmax is raised: far from overflow, even
multiplied by the values."""

LEAST_EXPONENT = -64.0
"""On a CPU no weight is smaller than exp of this, 2e-28 of the reference's: far below the last digit of the
sum. The weights of trained networks are often smaller, down to denormal numbers, which do not change the sum
and are a hundred times slower (three quarters of the time of `stm-lite`)."""


Block = tuple[Tensor, Tensor]
"""Keys (K, P, Ck) in fp32 and values (K, Cv, P) of P memory positions, for instance of one frame."""


def space_time_read(
    query_key: Tensor,
    memory: Iterable[Block],
    *,
    keys: Sequence[Block] = (),
    key_weight: float = 0.0,
    previous: Block | None = None,
    previous_frame_cap: float = 1.0,
    block_elements: int | None = None,
) -> Tensor:
    """The softmax-weighted sum of all memory values for each query position (paper section 3.2, equations 1,
    2).

    The softmax over all space-time positions is accumulated block by block relative to a running reference,
    so the result does not depend on how the memory is cut into blocks (up to rounding).

    With a `previous_frame_cap` s below 1 the result is s times the read of everything plus 1 - s times the
    read without the previous frame, so at most a share of s comes from that frame. With a `key_weight` k
    above 0 the second read is k times the read of the keys alone plus 1 - k times that of keys and memory.
    Neither is part of the paper.

    Args:
        query_key: (Ck, N) for N query positions, any float type.
        memory: blocks of keys and values. Scores are computed in fp32; the weighted sum in the values' type,
            accumulated in fp32.
        keys: further blocks, those of keys.
        key_weight: of the read without the previous frame, the share from keys alone, in [0, 1]; not used if
            there is neither a capped previous frame nor other memory.
        previous: a further block, the newest one, of the previous frame.
        previous_frame_cap: the largest share of a query position's read from it, in [0, 1].
        block_elements: most scores at once per object; by default a value for the device.

    Returns:
        (K, Cv, N) in fp32, without the query's own value.

    Raises:
        ValueError: if the memory is empty, or the share is outside its range.
    """
    if not 0 <= previous_frame_cap <= 1:
        raise ValueError(f"a previous frame's share of {previous_frame_cap} is not in [0, 1]")
    if not 0 <= key_weight <= 1:
        raise ValueError(f"a share of {key_weight} for keys is not in [0, 1]")
    query = query_key.float() / query_key.shape[0] ** 0.5  # (Ck, N)
    parts = _parts(list(memory), keys, key_weight, previous, previous_frame_cap)
    sample = parts[0].blocks[0][1]
    if query.device.type == "cpu":
        suits = CPU_BLOCK_ELEMENTS if sample.dtype == torch.float32 else CPU_BLOCK_ELEMENTS_HALF
        return _read_one_by_one(query, parts, block_elements or suits)
    softmax = _StreamedSoftmax(query, hopeful=False)
    return _read_parts(softmax, parts, max((block_elements or BLOCK_ELEMENTS) // query.shape[1], 1))


class _Part(NamedTuple):
    """Blocks that are added to a softmax, and the share of the softmax after them in the result."""

    blocks: list[Block]
    share: float


def _parts(
    memory: list[Block],
    keys: Sequence[Block],
    key_weight: float,
    previous: Block | None,
    previous_frame_cap: float,
) -> list[_Part]:
    """Newest first: it is most similar to the query, so its scores set a reference that seldom has to be
    raised."""
    memory, keys = memory[::-1], list(keys[::-1])
    if previous is None or previous_frame_cap == 1 or not (memory or keys):
        memory = [*([] if previous is None else [previous]), *memory, *keys]
        if not memory:
            raise ValueError("the memory is empty: write the key's entry before reading")
        return [_Part(memory, 1.0)]
    rest, newest = 1 - previous_frame_cap, _Part([previous], previous_frame_cap)
    if key_weight == 0 or not memory or not keys:
        return [_Part([*memory, *keys], rest), newest]
    return [_Part(keys, rest * key_weight), _Part(memory, rest * (1 - key_weight)), newest]


def _read_parts(softmax: _StreamedSoftmax, parts: list[_Part], largest: int) -> Tensor:
    """The sum of the softmax's results after each part, weighted by the shares."""
    results = []
    for part in parts:
        for keys, values in _blocks(part.blocks, largest):
            softmax.add(keys, values)
        results.append(softmax.result() if part.share == 1 else softmax.result().mul_(part.share))
    total = results[0]
    for result in results[1:]:
        total.add_(result)
    return total


def _read_one_by_one(query: Tensor, parts: list[_Part], block_elements: int) -> Tensor:
    """Object after object: the scores of one fit into the cache, those of several do not.

    query (Ck, N) scaled; result as in `space_time_read`.
    """
    positions = query.shape[1]
    groups = CPU_GROUPS if positions % CPU_GROUPS == 0 else 1
    grouped = query.view(-1, groups, positions // groups).transpose(0, 1).contiguous()  # (G, Ck, N / G)
    sample = parts[0].blocks[0][1]
    objects, channels = sample.shape[:2]
    result = query.new_empty(objects, channels, groups, positions // groups)

    def everywhere(block: Block, index: int) -> Block:
        """One object's keys (G, P, Ck) and values (G, Cv, P)."""
        keys, values = (x[index].expand(groups, -1, -1) for x in block)
        return keys, values

    for index, target in enumerate(result):
        softmax = _StreamedSoftmax(grouped, hopeful=sample.dtype != torch.float16)
        mine = [_Part([everywhere(block, index) for block in part.blocks], part.share) for part in parts]
        target.copy_(_read_parts(softmax, mine, max(block_elements // positions, 1)).transpose(0, 1))
    return result.flatten(2)


def _blocks(frames: Iterable[Block], largest: int) -> Iterator[Block]:
    """Each frame's keys and values, cut evenly into blocks of a largest number of positions."""
    for keys, values in frames:
        positions = keys.shape[1]
        size = -(-positions // -(-positions // largest))
        for start in range(0, positions, size):
            yield keys[:, start : start + size], values[:, :, start : start + size]


class _StreamedSoftmax:
    """Weighted sums under a softmax over blocks that come one by one.

    Weights are exp(score - reference); the reference of each query position is the largest score of the first
    block, raised when it must be.

    Args:
        query: (Ck, N), or (K, Ck, N) where each of K has its own positions; in fp32, scaled.
        hopeful: compute weights with the present reference, and again with a higher one in the rare case that
            they are too large. Otherwise find every block's largest scores first, which costs a further pass
            but needs no synchronisation with a graphics card.
    """

    def __init__(self, query: Tensor, *, hopeful: bool) -> None:
        self._query, self._hopeful = query, hopeful
        self._reference: Tensor | None = None  # (K, 1, N)
        self._total: Tensor  # (K, 1, N)
        self._sum: Tensor  # (K, Cv, N)

    def add(self, keys: Tensor, values: Tensor) -> None:
        """keys (K, p, Ck) in fp32 and values (K, Cv, p)."""
        scores = keys @ self._query  # (K, p, N)
        if self._reference is None:
            self._reference = scores.amax(dim=1, keepdim=True)
            weights = self._weights_of(scores)
            self._total = weights.sum(dim=1, keepdim=True)
            self._sum = (values @ weights.to(values.dtype)).float()
            return
        if not self._hopeful:
            self._raise_to(scores)
        weights = self._weights_of(scores)
        total = weights.sum(dim=1, keepdim=True)
        if self._hopeful and not bool(total.amax() <= SAFE_TOTAL):
            scores = keys @ self._query
            self._raise_to(scores)
            weights = self._weights_of(scores)
            total = weights.sum(dim=1, keepdim=True)
        self._total += total
        if values.dtype == torch.float32:
            self._sum.baddbmm_(values, weights)
        else:
            self._sum += values @ weights.to(values.dtype)

    def result(self) -> Tensor:
        """(K, Cv, N) in fp32. At least one block was added."""
        return self._sum / self._total

    def _weights_of(self, scores: Tensor) -> Tensor:
        """Weights (K, p, N), in the memory of the scores."""
        assert self._reference is not None
        scores.sub_(self._reference)
        if scores.device.type == "cpu":
            scores.clamp_(min=LEAST_EXPONENT)
        return scores.exp_()

    def _raise_to(self, scores: Tensor) -> None:
        """Raises the reference to higher scores (K, p, N)."""
        assert self._reference is not None
        reference = torch.maximum(self._reference, scores.amax(dim=1, keepdim=True))
        shrink = (self._reference - reference).exp_()
        self._reference = reference
        self._total *= shrink
        self._sum *= shrink


def read_weights(
    query_key: Tensor, memory_keys: Sequence[Tensor], *, last_frame_cap: float = 1.0, key_weight: float = 0.0
) -> Tensor:
    """The share of each memory position in the read of each query position: the softmax of `space_time_read`.

    For few query positions (paper figure 5), as all weights are in memory at once.

    Args:
        query_key: (Ck, N) for N query positions, any float type.
        memory_keys: keys (K, P, Ck) of each of T memory frames.
        last_frame_cap: the largest share from the last of them: `previous_frame_cap` if that is the previous
            frame of `space_time_read`.
        key_weight: as there; the first of them is the key.

    Returns:
        (K, T, P, N) in fp32, in [0, 1]; for each object and query position the sum over all T * P is 1.

    Raises:
        ValueError: if the memory is empty.
    """
    if not memory_keys:
        raise ValueError("the memory is empty: write the key's entry before reading")
    query = query_key.float() / query_key.shape[0] ** 0.5  # (Ck, N)
    scores = torch.stack([keys.float() @ query for keys in memory_keys], dim=1)  # (K, T, P, N)
    weights = scores.flatten(1, 2).softmax(dim=1).reshape(scores.shape)
    if last_frame_cap == 1 or len(memory_keys) == 1:
        return weights
    without = scores[:, :-1].flatten(1, 2).softmax(dim=1).reshape(scores[:, :-1].shape)
    without *= 1 - key_weight
    without[:, :1] += key_weight * scores[:, :1].softmax(dim=2)
    weights *= last_frame_cap
    weights[:, :-1] += (1 - last_frame_cap) * without
    return weights
