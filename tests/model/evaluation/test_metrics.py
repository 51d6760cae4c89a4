"""J and F by hand, and against an independent public implementation."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import model.evaluation.metrics
from model.data.pictures import read_labels
from model.evaluation.metrics import (
    BoolArray,
    contour,
    contour_accuracy,
    mean_statistics,
    region_similarity,
    statistics,
)


def square(top: int, left: int, size: int, shape: tuple[int, int] = (100, 100)) -> BoolArray:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def blobs(seed: int, height: int, width: int, objects: int) -> NDArray[np.uint8]:
    """A label picture (H, W) with ragged regions, some of which touch the border."""
    noise = torch.rand(1, objects + 1, 7, 9, generator=torch.Generator().manual_seed(seed))
    fine = torch.rand(1, objects + 1, height, width, generator=torch.Generator().manual_seed(seed + 1))
    smooth = F.interpolate(noise, (height, width), mode="bicubic", align_corners=False) + 0.1 * fine
    smooth[:, 0] += 0.2  # more background than any object
    return smooth[0].argmax(dim=0).numpy().astype(np.uint8)


def test_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(model.evaluation.metrics).failed == 0


def test_region_similarity_is_intersection_over_union() -> None:
    # 20 x 20 squares, ten rows apart: 200 in common, 600 in all.
    assert region_similarity(square(10, 10, 20), square(20, 10, 20)) == pytest.approx(1 / 3)


def test_two_empty_masks_agree() -> None:
    nothing = np.zeros((20, 30), dtype=bool)
    assert region_similarity(nothing, nothing) == 1
    assert contour_accuracy(nothing, nothing) == 1


def test_a_mask_where_none_should_be_scores_nothing() -> None:
    nothing = np.zeros((100, 100), dtype=bool)
    for truth, predicted in ((nothing, square(10, 10, 20)), (square(10, 10, 20), nothing)):
        assert region_similarity(truth, predicted) == 0
        assert contour_accuracy(truth, predicted) == 0


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        region_similarity(np.zeros((4, 5), dtype=bool), np.zeros((5, 4), dtype=bool))


def test_the_picture_border_is_no_contour() -> None:
    assert not contour(np.ones((5, 7), dtype=bool)).any()
    left_half = np.zeros((4, 6), dtype=bool)
    left_half[:, :3] = True
    assert contour(left_half).nonzero()[1].tolist() == [2] * 4


def test_contour_accuracy_forgives_what_lies_within_the_tolerance() -> None:
    # The diagonal of 100 x 100 is 141.4, of which 0.8 % rounds up to 2 pixels.
    truth = square(30, 30, 40)
    assert contour_accuracy(truth, square(32, 30, 40)) == 1
    assert contour_accuracy(truth, square(33, 30, 40)) < 1
    assert contour_accuracy(truth, square(33, 30, 40), tolerance=0.02) == 1


def test_contour_accuracy_by_hand() -> None:
    # Full-height bands, so that a contour is two columns of 100. Truth: columns 19 and 59. Predicted: 20
    # and 79. Within 2 pixels lies one column of each, so precision and recall are 1/2 both.
    truth, predicted = np.zeros((100, 100), dtype=bool), np.zeros((100, 100), dtype=bool)
    truth[:, 20:60] = True
    predicted[:, 21:80] = True
    assert contour_accuracy(truth, predicted) == pytest.approx(0.5)
    # One band against the half plane beyond column 19: precision 1, recall 1/2.
    half_plane = np.zeros((100, 100), dtype=bool)
    half_plane[:, 20:] = True
    assert contour_accuracy(truth, half_plane) == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_statistics_by_hand() -> None:
    # Nine frames: DAVIS's bin edges are frames 0, 2, 4, 6 and 8, both ends of a bin counted.
    result = statistics([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert result.mean == pytest.approx(0.5)
    assert result.recall == pytest.approx(4 / 9)  # exactly one half does not count
    assert result.decay == pytest.approx(0.8 - 0.2)


def test_decay_holds_for_more_frames_than_a_byte_counts() -> None:
    result = statistics([1.0] * 500 + [0.0] * 500)
    assert result.decay == 1


def test_statistics_of_one_frame() -> None:
    result = statistics([0.75])
    assert (result.mean, result.recall, result.decay) == (0.75, 1, 0)
    with pytest.raises(ValueError, match="no frames"):
        statistics([])


def test_every_object_counts_the_same() -> None:
    result = mean_statistics([statistics([1.0]), statistics([0.0] * 50)])
    assert (result.mean, result.recall, result.decay) == (0.5, 0.5, 0)
    with pytest.raises(ValueError, match="no objects"):
        mean_statistics([])


def assert_equal_to_the_public_implementation(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
    from vos_benchmark.evaluator import Evaluator  # imported here: it brings scikit-image

    evaluator = Evaluator()
    evaluator.feed_frame(predicted, truth)
    public_j, public_f = evaluator.conclude()  # in percent
    assert public_j
    for label in public_j:
        j = region_similarity(truth == label, predicted == label)
        f = contour_accuracy(truth == label, predicted == label)
        assert j == pytest.approx(public_j[label] / 100, abs=1e-6)
        assert f == pytest.approx(public_f[label] / 100, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(480, 854), (384, 683), (97, 61), (40, 300)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_equals_the_public_implementation_on_ragged_masks(height: int, width: int, seed: int) -> None:
    truth = blobs(seed, height, width, objects=3)
    shifted = np.roll(truth, (seed, 2 * seed), axis=(0, 1))
    assert_equal_to_the_public_implementation(truth, shifted)
    assert_equal_to_the_public_implementation(truth, blobs(seed + 10, height, width, objects=3))


def test_equals_the_public_implementation_on_true_masks(shared_data: Path) -> None:
    folder = shared_data / "clips" / "chair" / "Annotations"
    first, second, third = (read_labels(path) for path in sorted(folder.glob("*.png"))[:21:10])
    assert_equal_to_the_public_implementation(first, second)
    assert_equal_to_the_public_implementation(second, third)
