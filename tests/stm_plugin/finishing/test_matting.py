"""Alpha is carried along like colours, from where it is certain."""

from __future__ import annotations

import numpy as np
import pytest

from stm_plugin.finishing import matting
from stm_plugin.finishing.matting import matted
from stm_plugin.windows import FloatArray

SIDE = 96


def striped() -> tuple[FloatArray, FloatArray]:
    """A picture (3, h, w) of bars in front of a gradient, and its alpha (h, w)."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    alpha = np.clip(np.abs((columns + rows / 3) % 24 - 12) - 5.5, 0, 1).astype(np.float32)
    alpha[:, :8], alpha[:, -8:] = 1, 0
    front, back = np.array([0.8, 0.5, 0.2]), np.stack([0.2 + rows / 300, 0.3 + columns / 300, 0.4 + 0 * rows])
    picture = alpha * front[:, None, None] + (1 - alpha) * back
    return np.asarray(picture, np.float32), alpha


def test_alpha_that_is_off_by_two_pixels_finds_the_colours() -> None:
    picture, alpha = striped()
    prior = np.roll(alpha, 2, axis=1)
    found = matted(picture, prior, np.full_like(alpha, 0.03))
    before, after = (float(np.square(one - alpha).mean()) for one in (prior, found))
    assert after < 0.5 * before
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1


def test_where_the_weight_is_one_the_prior_stays() -> None:
    picture, alpha = striped()
    prior = np.clip(alpha + 0.2, 0, 1)
    assert (matted(picture, prior, np.ones_like(alpha)) == prior).all()
    weight = np.ones_like(alpha)
    weight[20:40, 20:40] = 0.01
    found = matted(picture, prior, weight)
    assert (found[:16] == prior[:16]).all() and (found[20:40, 20:40] != prior[20:40, 20:40]).any()


def test_the_laplacian_is_that_of_the_paper() -> None:
    """Against the sum over windows, written down plainly."""
    rng = np.random.default_rng(5)
    height, width = 6, 7
    picture = rng.random((3, height, width)).astype(np.float32)
    values = rng.random((height, width)).astype(np.float32)
    expected = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            window = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            colours = picture[:, *window].reshape(3, -1).astype(np.float64)
            one = values[window].reshape(-1).astype(np.float64)
            centred = colours - colours.mean(1, keepdims=True)
            covariance = centred @ centred.T / one.size + matting.FLAT * np.eye(3)
            slopes = np.linalg.solve(covariance, centred @ (one - one.mean()) / one.size)
            fitted = one.mean() + slopes @ centred
            expected[window] += (one - fitted).reshape(expected[window].shape)
    assert np.allclose(matting._Laplacian(picture).times(values), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (33, 5)])
def test_small_pictures_have_alpha_too(shape: tuple[int, int]) -> None:
    picture = np.full((3, *shape), 0.5, np.float32)
    found = matted(picture, np.full(shape, 0.3, np.float32), np.full(shape, 0.01, np.float32))
    assert found.shape == shape and np.allclose(found, 0.3, atol=1e-3)
