"""What the edge refiner is told of several keys."""

from __future__ import annotations

from stm_plugin.propagation.edge_evidence import softness_of_keys


def test_a_blurred_key_does_not_soften_the_frames_of_a_sharp_one() -> None:
    assert softness_of_keys([0.34, 0.84]) == 0.34


def test_a_mask_that_is_drawn_hard_does_not_harden_the_frames_of_a_soft_one() -> None:
    assert softness_of_keys([0.02, 0.5]) == 0.5


def test_hard_keys_alone_are_hard_and_no_key_has_no_softness() -> None:
    assert softness_of_keys([0.02, 0.05]) == 0.05
    assert softness_of_keys([]) == 0.0
