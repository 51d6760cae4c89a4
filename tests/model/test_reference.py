"""The reference: cases of the equations computed by hand, and the names of the released weights."""

from __future__ import annotations

import math

import pytest
import torch

from tests.reference.stm import (
    ReferenceSTM,
    ResidualBlock,
    Rule,
    pad_to_stride,
    propagate,
    read_memory,
    soft_aggregation,
)


@pytest.fixture(scope="module")
def network() -> ReferenceSTM:
    torch.manual_seed(0)
    return ReferenceSTM()


def test_state_dict_has_the_released_names(network: ReferenceSTM) -> None:
    names = network.state_dict()
    parts = {name.split(".")[0] for name in names}
    assert parts == {"Encoder_M", "Encoder_Q", "KV_M_r4", "KV_Q_r4", "Decoder"}
    assert {name.split(".")[1] for name in names if name.startswith("Encoder_M")} == {
        "conv1", "conv1_m", "conv1_o", "bn1", "res2", "res3", "res4", "mean", "std",
    }  # fmt: skip
    assert {name.split(".")[1] for name in names if name.startswith("Encoder_Q")} == {
        "conv1", "bn1", "res2", "res3", "res4", "mean", "std",
    }  # fmt: skip
    assert {name.split(".")[1] for name in names if name.startswith("Decoder")} == {
        "convFM", "ResMM", "RF3", "RF2", "pred2",
    }  # fmt: skip
    refine = {name.split(".")[2] for name in names if name.startswith("Decoder.RF")}
    assert refine == {"convFS", "ResFS", "ResMM"}
    assert names["Encoder_M.conv1_m.weight"].shape == (64, 1, 7, 7)
    assert names["Encoder_M.conv1_o.weight"].shape == (64, 1, 7, 7)
    assert names["Encoder_Q.res4.5.conv3.weight"].shape == (1024, 256, 1, 1)
    assert names["KV_M_r4.Key.weight"].shape == (128, 1024, 3, 3)
    assert names["KV_Q_r4.Value.bias"].shape == (512,)
    assert names["Decoder.RF3.convFS.weight"].shape == (256, 512, 3, 3)
    assert names["Decoder.pred2.weight"].shape == (2, 256, 3, 3)


def test_residual_block_fits_channels_that_differ() -> None:
    assert "downsample.weight" in ResidualBlock(3, 5).state_dict()
    assert {name.split(".")[0] for name in ResidualBlock(5, 5).state_dict()} == {"conv1", "conv2"}
    assert ResidualBlock(3, 5)(torch.rand(1, 3, 4, 4)).shape == (1, 5, 4, 4)


def test_read_is_the_softmax_of_scaled_dot_products() -> None:
    # Four key channels, so the scale is 1/2. Two memory frames of one position each; one query position.
    keys = torch.zeros(4, 2, 1, 1)
    keys[0, 0] = 2 * math.log(3)  # similarity log 3, weight 3/4
    values = torch.tensor([[8.0, 4.0]]).reshape(1, 2, 1, 1)  # the other similarity is 0, weight 1/4
    query = torch.zeros(4, 1, 1)
    query[0] = 1
    assert read_memory(query, keys, values).item() == pytest.approx(8 * 3 / 4 + 4 / 4)


def test_soft_aggregation_of_one_object_weighs_its_odds_against_their_inverse() -> None:
    # With one object the background is 1 - p: the two odds are 4 and 1/4.
    merged = soft_aggregation(torch.tensor([[0.8]]))
    assert merged[1].item() == pytest.approx(4 / (4 + 1 / 4), rel=1e-5)
    assert merged.sum().item() == pytest.approx(1)


def test_soft_aggregation_of_two_objects() -> None:
    # p = 1/2 and 3/4: background 1/8, odds 1/7, 1 and 3, which sum to 29/7.
    merged = soft_aggregation(torch.tensor([[0.5], [0.75]])).flatten()
    assert merged.tolist() == pytest.approx([1 / 29, 7 / 29, 21 / 29], rel=1e-5)


@pytest.mark.parametrize(
    ("rule", "query", "frames"),
    [
        ("first", 1, [0]),
        ("first", 7, [0]),
        ("previous", 1, [0]),
        ("previous", 7, [6]),
        ("first+previous", 1, [0]),
        ("first+previous", 7, [0, 6]),
        ("every:5", 1, [0]),
        ("every:5", 5, [0, 4]),
        ("every:5", 6, [0, 5]),
        ("every:5", 7, [0, 5, 6]),
        ("every:5", 12, [0, 5, 10, 11]),
        ("every:1", 3, [0, 1, 2]),
    ],
)
def test_memory_rule_reads_the_frames_it_names(rule: str, query: int, frames: list[int]) -> None:
    assert Rule.parse(rule).frames(query) == frames


def test_padding_puts_the_smaller_half_first() -> None:
    padded, (rows, columns) = pad_to_stride(torch.ones(1, 90, 121))  # 6 rows and 7 columns more
    assert padded.shape == (1, 96, 128)
    assert (rows, columns) == (slice(3, 93), slice(3, 124))
    assert padded.sum() == 90 * 121 and padded[:, rows, columns].all()


def test_propagation_gives_a_distribution_of_the_picture_size(network: ReferenceSTM) -> None:
    pictures = torch.rand(3, 3, 35, 50, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(2, 35, 50)
    masks[0, 5:20, 5:20] = 1
    masks[1, 10:30, 25:45] = 1
    results = list(propagate(network, pictures, masks, "every:5"))
    assert [tuple(result.shape) for result in results] == [(3, 35, 50)] * 2
    for result in results:
        assert torch.allclose(result.sum(dim=0), torch.ones(35, 50), atol=1e-5)
