"""What the edge refiner is told of several keys."""

from __future__ import annotations

import numpy as np
import pytest

from stm_plugin.propagation.edge_evidence import softness_of_keys
from stm_plugin.propagation.fusion import PassAtFrame, fuse
from stm_plugin.windows import FloatArray


def area(pixels: int) -> FloatArray:
    """(20, 20) with an object of so many pixels."""
    plane = np.zeros(400, np.float32)
    plane[:pixels] = 1.0
    return plane.reshape(20, 20)


def test_the_softness_of_a_frame_follows_the_keys_whose_passes_count_there() -> None:
    assert softness_of_keys([0.2, 1.0], [0.5, 0.5]) == pytest.approx(0.6)
    assert softness_of_keys([0.2, 1.0], [0.9, 0.1]) == pytest.approx(0.28)


def test_a_key_that_is_mostly_hidden_does_not_soften_the_frames_of_one_that_shows_all() -> None:
    passes = [PassAtFrame(area(200), 10, 200.0), PassAtFrame(area(60), -10, 60.0)]
    assert softness_of_keys([0.3, 0.9], fuse(passes).shares) == pytest.approx(0.3, abs=0.02)


def test_a_mask_that_is_drawn_hard_does_not_harden_the_frames_of_a_soft_one() -> None:
    assert softness_of_keys([0.02, 0.5], [0.9, 0.1]) == 0.5


def test_hard_keys_alone_are_hard_and_no_key_has_no_softness() -> None:
    assert softness_of_keys([0.02, 0.05], [0.5, 0.5]) == 0.05
    assert softness_of_keys([], []) == 0.0
