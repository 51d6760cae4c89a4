"""The colour of a pixel says on which side it is, as far as the two sides differ."""

from __future__ import annotations

import numpy as np

from model.inference.colour_likelihood import BINS, colours_of, likelihood, likelihood_of
from model.inference.guided_filter import FloatArray

RED, GREEN, BLUE = np.eye(3, dtype=np.float32) * np.float32(0.8)


def square() -> FloatArray:
    mask = np.zeros((120, 120), np.float32)
    mask[30:90, 30:90] = 1
    return mask


def scene(front: FloatArray, back: FloatArray) -> FloatArray:
    """(3, 120, 120)."""
    mask = square()
    picture: FloatArray = front[:, None, None] * mask + back[:, None, None] * (1 - mask)
    return picture.astype(np.float32)


def test_a_colour_of_one_side_tells_it_and_a_colour_of_both_or_of_none_does_not() -> None:
    picture = scene(RED, BLUE)
    own = colours_of(picture, square())
    seen = np.stack([RED, BLUE, GREEN])[:, :, None, None]
    found = [float(likelihood(one, own, ())[0, 0]) for one in seen]
    assert found[0] > 0.99 and found[1] < 0.01 and found[2] == 0.5
    same = colours_of(scene(RED, RED), square())
    assert abs(float(likelihood(seen[0], same, ())[0, 0]) - 0.5) < 1e-3


def test_a_key_tells_colours_that_the_frame_itself_mistakes() -> None:
    lost = square()
    lost[30:90, 60:90] = 0  # the network lost the right half
    picture = scene(RED, BLUE)
    picture[:, 30:90, 60:90] = GREEN[:, None, None]
    by_frame = likelihood(picture, colours_of(picture, lost), ())
    by_key = likelihood(picture, colours_of(picture, lost), (colours_of(picture, square()),))
    assert by_frame[60, 80] < 0.1
    assert by_key[60, 80] > by_frame[60, 80] + 0.3


def test_pixels_beside_the_contour_and_far_from_it_are_not_counted() -> None:
    picture = scene(RED, BLUE)
    picture[:, 30:33, 30:90] = GREEN[:, None, None]  # inside, within three pixels
    picture[:, 119] = GREEN[:, None]  # far outside: 30 rows below the square are near
    picture = np.pad(picture, ((0, 0), (0, 40), (0, 0)), mode="edge")
    mask = np.pad(square(), ((0, 40), (0, 0)))
    inside, outside = colours_of(picture, mask)
    green = int(0.8 * BINS) * BINS
    assert inside[green] == 0
    assert 0 < outside[green] < 0.1
    assert abs(inside.sum() - 1) < 1e-5 and abs(outside.sum() - 1) < 1e-5


def test_in_one_step_it_is_the_same() -> None:
    rng = np.random.default_rng(0)
    picture = np.clip(scene(RED, BLUE) + rng.normal(0, 0.2, (3, 120, 120)), 0, 1).astype(np.float32)
    keys = (colours_of(scene(RED, GREEN), square()),)
    expected = likelihood(picture, colours_of(picture, square()), keys)
    assert (likelihood_of(picture, square(), keys) == expected).all()
    assert expected.std() > 0.1


def test_an_empty_object_tells_nothing() -> None:
    picture = scene(RED, BLUE)
    empty = colours_of(picture, np.zeros((120, 120), np.float32))
    assert not empty.any()
    assert (likelihood(picture, empty, (empty,)) == 0.5).all()
