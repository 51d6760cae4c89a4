"""The CPU's own ways to compute the network's blocks give what the plain blocks give."""

from __future__ import annotations

import copy
import platform
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from model import inference
from model.fused import FusedConv2d, can_fuse, fuse_blocks
from model.inference import FastNetwork, fold_batch_norm
from model.memory import MemoryRule
from model.network import ResidualBlock
from model.trunks import InvertedResidual
from model.winograd import TILES_AT_ONCE, WinogradConv2d, gains
from tests.reference.samples import first_masks, lively_network, texture

needs_onednn = pytest.mark.skipif(not can_fuse(), reason="this build of torch has no fused convolutions")


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "height", "width"),
    [(1, 96, 128, 8, 12), (2, 128, 96, 9, 13), (1, 96, 96, 1, 1), (3, 100, 97, 30, 54), (1, 96, 96, 67, 75)],
)
def test_winograd_is_as_exact_as_the_direct_sum(
    batch: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    x = channels_last(batch, inputs, height, width)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    with torch.inference_mode():
        direct, fast = conv(x), WinogradConv2d(conv)(x)
    assert fast.shape == exact.shape
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert (fast - exact).abs().max() <= 4 * (direct - exact).abs().max().clamp(min=1e-6)


def test_winograd_in_several_chunks_of_rows_equals_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv, x = WinogradConv2d(nn.Conv2d(96, 96, 3, padding=1)), channels_last(1, 96, 37, 41)
    add = channels_last(1, 96, 37, 41)
    with torch.inference_mode():
        assert x.shape[2] * x.shape[3] < 16 * TILES_AT_ONCE  # one chunk
        whole = conv(x, add)
        monkeypatch.setattr("model.winograd.TILES_AT_ONCE", 5)
        torch.testing.assert_close(conv(x, add), whole, rtol=1e-5, atol=1e-5)


def test_winograd_adds_before_its_activation() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(96, 96, 3, padding=1)
    x, add = channels_last(1, 96, 10, 11), channels_last(1, 96, 10, 11)
    with torch.inference_mode():
        expected = F.relu(conv(x) + add)
        torch.testing.assert_close(WinogradConv2d(conv, torch.relu_)(x, add), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["stride", "1x1", "groups", "dilation", "no padding", "few channels", "reflect"],
)
def test_other_convolutions_are_left_to_the_library(conv: nn.Conv2d) -> None:
    assert not gains(conv)


def _bottleneck(stride: int) -> nn.Module:
    downsample = nn.Sequential(nn.Conv2d(128, 256, 1, stride=stride, bias=False), nn.Identity())
    block: nn.Module = Bottleneck(128, 64, stride=stride, downsample=downsample)
    for number in "123":
        setattr(block, f"bn{number}", nn.Identity())
    return block


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "bottleneck": lambda: _bottleneck(1),
    "bottleneck of stride 2": lambda: _bottleneck(2),
    "bottleneck with its input": lambda: _plain_bottleneck(),
    "wide bottleneck": lambda: _plain_bottleneck(96),
    "inverted residual": lambda: InvertedResidual(128, 128, 3, 1, 2),
    "inverted residual of stride 2": lambda: InvertedResidual(128, 40, 3, 2, 3),
    "inverted residual 5x5 of stride 2": lambda: InvertedResidual(128, 40, 5, 2, 3),
    "inverted residual without expansion": lambda: InvertedResidual(128, 16, 3, 1, 1),
    "residual block": lambda: ResidualBlock(128),
}


def _plain_bottleneck(width: int = 32) -> nn.Module:
    block: nn.Module = Bottleneck(128, 32)
    block.conv1 = nn.Conv2d(128, width, 1)
    block.conv2 = nn.Conv2d(width, width, 3, padding=1)
    block.conv3 = nn.Conv2d(width, 128, 1)
    for number in "123":
        setattr(block, f"bn{number}", nn.Identity())
    return block


@needs_onednn
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_fused_block_gives_what_the_plain_block_gives(name: str, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(BLOCKS[name]()).to(precision).eval()
    quick = copy.deepcopy(plain)
    fuse_blocks(quick)
    assert type(quick[0]) is not type(plain[0])
    x = channels_last(2, 128, 18, 22).to(precision)
    kept = x.clone()
    tolerance = 1e-5 if precision is torch.float32 else 0.05
    with torch.inference_mode():
        torch.testing.assert_close(quick(x), plain(x), rtol=tolerance, atol=tolerance)
    assert torch.equal(x, kept), "the block's input is changed"


@needs_onednn
def test_no_plain_block_is_left_in_a_prepared_network() -> None:
    for name in ("stm-r50", "stm-lite"):
        network = FastNetwork(lively_network(name)).network
        left = [m for m in network.modules() if isinstance(m, Bottleneck | InvertedResidual | ResidualBlock)]
        assert not left
        assert any(isinstance(m, FusedConv2d) for m in network.modules())
        assert any(isinstance(m, WinogradConv2d) for m in network.modules())


def test_without_fused_convolutions_the_plain_blocks_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively_network("stm-lite")
    picture, masks = texture(0)[0], first_masks()

    def run() -> Tensor:
        engine = FastNetwork(network)
        entry = engine.encode_memory(picture, masks)
        bank = engine.new_bank(MemoryRule.parse("first"), entry)
        bank.write(0, entry)
        return engine.segment(engine.encode_query(texture(0)[1]), bank)

    quick = run()
    monkeypatch.setattr(inference, "can_fuse", lambda: False)
    torch.testing.assert_close(run(), quick, rtol=0, atol=1e-4)


def test_folding_comes_before_fusing() -> None:
    """A fused block takes over convolutions alone: a BatchNorm that were still there would be lost."""
    network = lively_network("stm-r50").requires_grad_(False)
    fold_batch_norm(network)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


GIVEN_BACK = """
import sys, threading
from pathlib import Path
import torch
from model.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0])
def work():
    x = torch.ones(20_000_000)
    with_map = address_space()
    del x
    print(with_map - address_space())
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_maps_are_not_given_back_and_asked_for_again() -> None:
    def pages_given_back(argument: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", GIVEN_BACK, argument], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    map_pages = 4 * 20_000_000 // resource.getpagesize()
    assert pages_given_back("leave") >= map_pages
    assert pages_given_back("keep") < map_pages // 10
