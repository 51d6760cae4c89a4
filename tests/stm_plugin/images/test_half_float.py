"""Half floats and floats are converted exactly as by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from stm_plugin.images.half_float import convert, to_float, to_half

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_half_becomes_its_float_and_comes_back() -> None:
    floats = to_float(EVERY_HALF)
    np.testing.assert_array_equal(floats, EVERY_HALF.astype(np.float32))
    back = to_half(floats)
    numbers = ~np.isnan(EVERY_HALF)
    assert (back.view(np.uint16) == EVERY_HALF.view(np.uint16))[numbers].all() and np.isnan(
        back[~numbers]
    ).all()


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5, 2), (300, 301)])
def test_floats_are_rounded_to_the_nearest_half(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).normal(0, 2, shape).astype(np.float32)
    np.testing.assert_array_equal(to_half(values), values.astype(np.float16))
    assert to_half(values.T).shape == values.T.shape


def test_arrays_that_may_not_be_written_are_read_without_a_word() -> None:
    values = np.linspace(0, 1, 50, dtype=np.float32)
    values.flags.writeable = False
    np.testing.assert_array_equal(to_half(values), values.astype(np.float16))


def test_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        convert(np.zeros(4, np.float32), np.zeros(5, np.float16))
