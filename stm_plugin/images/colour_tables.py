"""A colour conversion as tables and a matrix, as a graphics card computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stm_plugin.windows import FloatArray

_SAMPLES = 4096
_LOWEST, _HIGHEST = -0.25, 4.0
"""Sampled values of a channel: below and far above what a camera's curve is made for."""
_HUGE = 1e30
_SEED = 1


@dataclass(frozen=True, eq=False)
class ColourTables:
    """A conversion: the curve for each channel, then the matrix, then the display.

    Attributes:
        curve: float32 (65536,), finite, by the bits of a half float.
        is_plain: the curve changes no finite value, so that floats need no look-up.
        matrix: (3, 3), rows give R, G, B; None for none.
        shown: float32 (65536,), the displayed value by the bits of a half float; None where values are only
            clipped to [0, 1].
    """

    curve: FloatArray
    is_plain: bool
    matrix: FloatArray | None
    shown: FloatArray | None


def curve_and_matrix(
    convert: Callable[[FloatArray], FloatArray], halves: FloatArray, shown: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray] | None:
    """A conversion as a curve for each channel and a matrix behind it, found by samples, checked by others.

    Args:
        convert: (1, n, 3) -> (1, n, 3), float32.
        halves: (65536,), the value of every half float, finite.
        shown: what is displayed of converted values, in [0, 1].

    Returns:
        The curve (65536,) by the bits of a half float and the matrix (3, 3); None where the conversion is
        another one: what is displayed would differ by more than half of 1/1024.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        grey = convert(np.repeat(halves[None, :, None], 3, axis=2))[0, :, 1]
        curve = np.clip(np.nan_to_num(grey), -_HUGE, _HUGE).astype(np.float32)
        random = np.random.default_rng(_SEED)
        samples = random.uniform(_LOWEST, _HIGHEST, (2, _SAMPLES, 3)) * random.random((2, _SAMPLES, 1))
        rounded = samples.astype(np.float16)
        bent = curve[rounded.view(np.uint16)].astype(np.float64)
        results = convert(rounded.astype(np.float32)).astype(np.float64)
        matrix = np.linalg.lstsq(bent[0], results[0], rcond=None)[0].T.astype(np.float32)
        made = (bent[1] @ matrix.T.astype(np.float64)).astype(np.float32)
        difference = np.abs(shown(made[None]) - shown(results[1][None].astype(np.float32))).max()
    if not np.isfinite(matrix).all() or not difference < 1 / 2048:
        return None
    return curve, np.ascontiguousarray(matrix)
