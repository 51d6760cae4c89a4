"""The space-time memory read with a streaming softmax: exact, without the (T*H*W) x (H*W) matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BLOCK_ELEMENTS = 4_000_000
"""Largest number of scores held at once per object (16 MB in fp32): large enough to keep the matrix products
busy."""


def space_time_read(
    query_key: Tensor, memory: Iterable[tuple[Tensor, Tensor]], *, block_elements: int = BLOCK_ELEMENTS
) -> Tensor:
    """For each query position the softmax-weighted sum of all memory values (paper section 3.2, equations 1
    and 2).

    The softmax over all space-time positions is accumulated block by block with a running maximum and sum, so
    the result does not depend on how the memory is cut into blocks (up to rounding).

    Args:
        query_key: (Ck, N) for N query positions, any float type.
        memory: pairs of keys (K, P, Ck) in fp32 and values (K, Cv, P), for instance one pair per memory
            frame. Scores are computed in fp32; the weighted sum in the values' type, accumulated in fp32.
        block_elements: bound on scores held at once per object.

    Returns:
        (K, Cv, N) in fp32, without the query's own value.

    Raises:
        ValueError: if the memory is empty.
    """
    query = query_key.float() / query_key.shape[0] ** 0.5  # (Ck, N)
    positions = query.shape[1]
    largest_block = max(block_elements // positions, 1)
    maximum: Tensor | None = None
    total = result = query  # replaced with the first block
    for keys, values in memory:
        for start in range(0, keys.shape[1], largest_block):
            block = slice(start, start + largest_block)
            scores = keys[:, block] @ query  # (K, p, N)
            block_maximum = scores.amax(dim=1, keepdim=True)  # (K, 1, N)
            if maximum is None:
                maximum = block_maximum
                weights = scores.sub_(maximum).exp_()
                total = weights.sum(dim=1, keepdim=True)
                result = (values[:, :, block] @ weights.to(values.dtype)).float()  # (K, Cv, N)
                continue
            new_maximum = torch.maximum(maximum, block_maximum)
            shrink = (maximum - new_maximum).exp_()
            maximum = new_maximum
            weights = scores.sub_(maximum).exp_()
            total = total.mul_(shrink).add_(weights.sum(dim=1, keepdim=True))
            result.mul_(shrink)
            if values.dtype == torch.float32:
                result.baddbmm_(values[:, :, block], weights)
            else:
                result.add_(values[:, :, block] @ weights.to(values.dtype))
    if maximum is None:
        raise ValueError("the memory is empty: write the key's entry before reading")
    normalised: Tensor = result / total
    return normalised


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
