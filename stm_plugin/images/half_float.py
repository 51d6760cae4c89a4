"""Conversion between half floats and floats, in a sixth of numpy's time and in the calling thread."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]

_BLOCK_VALUES = 32_000
"""Converted together where torch would use further threads: so few that it stays in this one."""


def to_half(values: FloatArray) -> HalfArray:
    """A new array of the same shape, each value rounded to the nearest half; above 65519 it is Inf.

    >>> to_half(np.float32([0.1, 70000.0]))
    array([0.1, inf], dtype=float16)
    """
    result = np.empty(values.shape, np.float16)
    convert(np.ascontiguousarray(values), result)
    return result


def to_float(values: HalfArray) -> FloatArray:
    """A new array of the same shape and values; exact."""
    result = np.empty(values.shape, np.float32)
    convert(np.ascontiguousarray(values), result)
    return result


def convert(values: npt.NDArray[Any], result: npt.NDArray[Any]) -> None:
    """Write values into an array of another float type, both C-contiguous and of one shape."""
    if values.shape != result.shape:
        raise ValueError(f"{values.shape} does not fit into {result.shape}")
    import torch  # colour names this module, and a look at the colour spaces must not wait for torch

    source = torch.from_numpy(values if values.flags.writeable else values.copy()).view(-1)
    target = torch.from_numpy(result).view(-1)
    if torch.get_num_threads() == 1:
        target.copy_(source)
        return
    for start in range(0, source.numel(), _BLOCK_VALUES):
        target[start : start + _BLOCK_VALUES].copy_(source[start : start + _BLOCK_VALUES])
