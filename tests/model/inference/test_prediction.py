"""The single logit of the decoder's last convolution gives the same probability as the softmax of two."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from model.inference.prediction import ObjectLogit, merge_objects
from model.network.stm import Prediction, soft_aggregate


@pytest.mark.parametrize("fold", [False, True], ids=["convolution", "products first"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (9, 1), (8, 12), (19, 33)])
def test_sigmoid_of_the_logit_is_the_softmax_of_the_two(height: int, width: int, fold: bool) -> None:
    torch.manual_seed(0)
    prediction = Prediction(24)
    x = torch.randn(2, 24, height, width).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    logit = ObjectLogit(prediction)
    logit.fold = fold
    with torch.inference_mode():
        got = logit(x)
        expected = prediction(x).softmax(dim=1)[:, 1:]
    assert got.shape == (2, 1, height, width) and got.dtype == torch.float32
    torch.testing.assert_close(got.sigmoid(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("fold", [False, True], ids=["convolution", "products first"])
def test_logits_of_bfloat16_features_are_not_rounded(fold: bool) -> None:
    torch.manual_seed(0)
    prediction = Prediction(64)
    x = torch.randn(1, 64, 9, 14).bfloat16().contiguous(memory_format=torch.channels_last)
    logit = ObjectLogit(prediction)
    logit.fold = fold
    with torch.inference_mode():
        got = logit(x)
        weight = prediction.weight[1:] - prediction.weight[:1]
        assert prediction.bias is not None
        expected = F.conv2d(F.relu(x).float(), weight, prediction.bias[1:] - prediction.bias[:1], padding=1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objects", [1, 2, 3, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (60, 5), (150, 13)])
def test_objects_are_merged_as_in_training(objects: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    alone = torch.rand(objects, height, width)
    alone[0, 0, 0], alone[-1, -1, -1] = 0, 1  # both ends
    kept = alone.clone()
    got = merge_objects(alone)
    torch.testing.assert_close(got, soft_aggregate(alone[None])[0], rtol=0, atol=1e-6)
    assert torch.equal(alone, kept)
