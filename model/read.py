"""The space-time memory read with a streaming softmax: exact, without the (T*H*W) x (H*W) matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

BLOCK_ELEMENTS = 4_000_000
"""Largest number of scores held at once per object (16 MB in fp32): large enough to keep the matrix products
of a graphics card busy."""

CPU_BLOCK_ELEMENTS = 600_000
"""The same on a CPU: scores stay in the processor's cache until they are used."""

CPU_BLOCK_ELEMENTS_OF_HALVES = 1_400_000
"""The same for values of half precision, whose products are quick beside the passes around them."""

CPU_GROUPS = 2
"""Parts of the query positions that are products of their own on a CPU: on two threads each stays with one of
them from scores to sums, instead of every thread fetching what the other has computed. It does not follow the
number of threads, so that a frame gives the same bits in every process; with more of them the library divides
the parts."""

SAFE_TOTAL = 1e30
"""A block's weights may sum up to this before the reference of the softmax is raised: far from overflow, even
times the values."""

LEAST_EXPONENT = -64.0
"""On a CPU no weight is smaller than exp of this, 2e-28 of the reference's: far less than a float's last
digit in the sum of all. What trained weights give is often far less, down to denormal numbers, which are no
more right and make a processor a hundred times slower (three quarters of the time of `stm-lite`)."""


def space_time_read(
    query_key: Tensor, memory: Iterable[tuple[Tensor, Tensor]], *, block_elements: int | None = None
) -> Tensor:
    """For each query position the softmax-weighted sum of all memory values (paper section 3.2, equations 1
    and 2).

    The softmax over all space-time positions is accumulated block by block relative to a running reference,
    so the result does not depend on how the memory is cut into blocks (up to rounding).

    Args:
        query_key: (Ck, N) for N query positions, any float type.
        memory: pairs of keys (K, P, Ck) in fp32 and values (K, Cv, P), for instance one pair per memory
            frame. Scores are computed in fp32; the weighted sum in the values' type, accumulated in fp32.
        block_elements: bound on scores held at once per object; by default what suits the device.

    Returns:
        (K, Cv, N) in fp32, without the query's own value.

    Raises:
        ValueError: if the memory is empty.
    """
    query = query_key.float() / query_key.shape[0] ** 0.5  # (Ck, N)
    frames = list(memory)
    if not frames:
        raise ValueError("the memory is empty: write the key's entry before reading")
    on_cpu = query.device.type == "cpu"
    # Newest first: what is most like the query gives the reference, which then seldom needs to be raised.
    frames.reverse()
    precision = frames[0][1].dtype
    if on_cpu:
        suits = CPU_BLOCK_ELEMENTS if precision == torch.float32 else CPU_BLOCK_ELEMENTS_OF_HALVES
        return _read_one_by_one(query, frames, block_elements or suits)
    softmax = _StreamedSoftmax(query, hopeful=False)
    for keys, values in _blocks(frames, max((block_elements or BLOCK_ELEMENTS) // query.shape[1], 1)):
        softmax.add(keys, values)
    return softmax.result()


def _read_one_by_one(query: Tensor, frames: list[tuple[Tensor, Tensor]], block_elements: int) -> Tensor:
    """Object after object: the scores of one fit into the cache, those of several do not.

    query (Ck, N) scaled; frames and result as in `space_time_read`.
    """
    positions = query.shape[1]
    groups = CPU_GROUPS if positions % CPU_GROUPS == 0 else 1
    grouped = query.view(-1, groups, positions // groups).transpose(0, 1).contiguous()  # (G, Ck, N / G)
    hopeful = frames[0][1].dtype != torch.float16
    objects, channels = frames[0][1].shape[:2]
    result = query.new_empty(objects, channels, groups, positions // groups)
    for index, target in enumerate(result):
        softmax = _StreamedSoftmax(grouped, hopeful=hopeful)
        seen = ((keys[index], values[index]) for keys, values in frames)  # (P, Ck) and (Cv, P)
        everywhere = ((keys.expand(groups, -1, -1), values.expand(groups, -1, -1)) for keys, values in seen)
        for keys, values in _blocks(everywhere, max(block_elements // positions, 1)):
            softmax.add(keys, values)
        target.copy_(softmax.result().transpose(0, 1))
    return result.flatten(2)


def _blocks(frames: Iterable[tuple[Tensor, Tensor]], largest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each frame's keys and values, cut evenly into blocks of at most so many positions."""
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
        query: (Ck, N), or (K, Ck, N) where each of K has positions of its own; in fp32, scaled.
        hopeful: weights are computed with the reference as it is, and again with a higher one in the rare
            case that they are too large; otherwise every block's largest scores are looked for first, which
            costs a further pass but lets a graphics card run ahead.
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
        return self._sum.div_(self._total)

    def _weights_of(self, scores: Tensor) -> Tensor:
        """Weights (K, p, N) in the place of the scores."""
        assert self._reference is not None
        scores.sub_(self._reference)
        if scores.device.type == "cpu":
            scores.clamp_(min=LEAST_EXPONENT)
        return scores.exp_()

    def _raise_to(self, scores: Tensor) -> None:
        """Takes the reference up to scores (K, p, N) that are higher."""
        assert self._reference is not None
        reference = torch.maximum(self._reference, scores.amax(dim=1, keepdim=True))
        shrink = (self._reference - reference).exp_()
        self._reference = reference
        self._total *= shrink
        self._sum *= shrink


def read_weights(query_key: Tensor, memory_keys: Sequence[Tensor]) -> Tensor:
    """How much each query position takes from each memory position: the softmax of `space_time_read`, kept.

    For a look at few query positions (paper figure 5): all weights are held at once.

    Args:
        query_key: (Ck, N) for N query positions, any float type.
        memory_keys: keys (K, P, Ck) of each of T memory frames.

    Returns:
        (K, T, P, N) in fp32, in [0, 1]; for each object and query position the sum over all T * P is 1.

    Raises:
        ValueError: if the memory is empty.
    """
    if not memory_keys:
        raise ValueError("the memory is empty: write the key's entry before reading")
    query = query_key.float() / query_key.shape[0] ** 0.5  # (Ck, N)
    scores = torch.stack([keys.float() @ query for keys in memory_keys], dim=1)  # (K, T, P, N)
    return scores.flatten(1, 2).softmax(dim=1).reshape(scores.shape)
