"""The fused blocks for CPUs give the results of the plain blocks."""

from __future__ import annotations

import copy
import mmap
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inference import fast_network as inference
from model.inference.fast_network import FastNetwork, Precision, fold_batch_norm
from model.inference.fused import FusedConv2d, can_fuse, fuse_blocks
from model.inference.winograd import TILES_AT_ONCE, WinogradConv2d, gains
from model.network.config import network_config
from model.network.memory import MemoryRule
from model.network.stm import ResidualBlock
from model.network.trunks import InvertedResidual
from tests.reference.samples import first_masks, lively_network, texture

LARGE = pytest.param("stm-r50", marks=pytest.mark.slow)  # loads torchvision

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
    assert (fast - exact).abs().max() <= 5 * (direct - exact).abs().max().clamp(min=1e-6)


def test_winograd_in_several_chunks_of_rows_equals_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv, x = WinogradConv2d(nn.Conv2d(96, 96, 3, padding=1)), channels_last(1, 96, 37, 41)
    add = channels_last(1, 96, 37, 41)
    with torch.inference_mode():
        assert x.shape[2] * x.shape[3] < 16 * TILES_AT_ONCE  # one chunk
        whole = conv(x, add)
        monkeypatch.setattr("model.inference.winograd.TILES_AT_ONCE", 5)
        torch.testing.assert_close(conv(x, add), whole, rtol=1e-5, atol=1e-5)


def test_winograd_adds_before_it_rectifies() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(96, 96, 3, padding=1)
    x, add = channels_last(1, 96, 10, 11), channels_last(1, 96, 10, 11)
    with torch.inference_mode():
        expected = F.relu(conv(x) + add)
        torch.testing.assert_close(WinogradConv2d(conv, rectify=True)(x, add), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(10, 11), (12, 16), (37, 41)])
def test_winograd_rectifies_what_comes_in_and_leaves_it_as_it_is(height: int, width: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(96, 64, 3, padding=1)
    x, add = channels_last(3, 96, height, width), channels_last(1, 64, height, width)
    kept = x.clone()
    with torch.inference_mode():
        got = WinogradConv2d(conv, rectify_input=True)(x, add)  # one map added to every picture
        torch.testing.assert_close(got, conv(F.relu(x)) + add, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(48, 48, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["stride", "1x1", "groups", "dilation", "no padding", "few channels", "reflect"],
)
def test_other_convolutions_are_left_to_the_library(conv: nn.Conv2d) -> None:
    assert not gains(conv)


def bottleneck(*channels: int, **options: Any) -> nn.Module:
    """A block of ResNet-50. torchvision loads slower than torch, so it is imported here."""
    from torchvision.models.resnet import Bottleneck

    block: nn.Module = Bottleneck(*channels, **options)
    for number in "123":
        setattr(block, f"bn{number}", nn.Identity())
    return block


def _bottleneck(stride: int) -> nn.Module:
    downsample = nn.Sequential(nn.Conv2d(128, 256, 1, stride=stride, bias=False), nn.Identity())
    return bottleneck(128, 64, stride=stride, downsample=downsample)


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
    return _narrow_bottleneck(128, width)


def _narrow_bottleneck(channels: int, width: int) -> nn.Module:
    block = bottleneck(channels, channels // 4)
    block.conv1 = nn.Conv2d(channels, width, 1)
    block.conv2 = nn.Conv2d(width, width, 3, padding=1)
    block.conv3 = nn.Conv2d(width, channels, 1)
    return block


@needs_onednn
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("bottleneck" in name)) for name in BLOCKS]
)
def test_a_fused_block_gives_what_the_plain_block_gives(name: str, precision: torch.dtype) -> None:
    if not can_fuse(precision):
        pytest.skip("this processor has no instructions for bfloat16: blocks stay as they are")
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


@pytest.mark.slow
@needs_onednn
def test_a_stage_of_bottlenecks_leaves_its_input_unchanged() -> None:
    torch.manual_seed(0)
    blocks = [_bottleneck(1), *(_narrow_bottleneck(256, 64) for _ in range(2))]
    plain = nn.Sequential(nn.Sequential(*blocks)).eval()
    quick = copy.deepcopy(plain)
    fuse_blocks(quick)
    x = channels_last(2, 128, 18, 22)
    kept = x.clone()
    with torch.inference_mode():
        torch.testing.assert_close(quick(x), plain(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)


@needs_onednn
@pytest.mark.parametrize("objects", [1, 3])
@pytest.mark.parametrize("name", [LARGE, "stm-lite"])
def test_fused_encoders_give_what_the_plain_ones_give(name: str, objects: int) -> None:
    plain = lively_network(name)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    quick = FastNetwork(plain)
    pictures = torch.rand(2, 3, 48, 64)
    masks = torch.rand(2, objects, 48, 64)
    for picture, mask in zip(pictures, masks, strict=True):
        with torch.inference_mode():
            expected = plain.encode_memory(picture[None], mask[None])
            query = plain.encode_query(picture[None])
        entry, prepared = quick.encode_memory(picture, mask), quick.encode_query(picture).features
        for got, wanted in (
            (entry.keys.transpose(1, 2), expected.key[0].flatten(2)),
            (entry.values, expected.value[0].flatten(2)),
            (prepared.key, query.key),
            (prepared.quarter, query.quarter),
        ):
            scale = float(wanted.abs().max())
            torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [LARGE, "stm-lite"])
def test_a_frame_gives_the_same_bits_whatever_came_before_it(
    name: str, precision: inference.Precision
) -> None:
    """Weights are reordered for the first picture; its size must not change later results."""
    network = lively_network(name)
    fresh, used = (FastNetwork(network, precision=precision) for _ in range(2))
    small, picture, masks = torch.rand(3, 32, 48), torch.rand(3, 98, 130), torch.rand(2, 98, 130)
    used.encode_query(small)
    used.encode_memory(small, torch.rand(1, 32, 48))
    used.encode_memory(small, torch.rand(2, 32, 48))
    for one, other in (
        (fresh.encode_query(picture).state(), used.encode_query(picture).state()),
        (fresh.encode_memory(picture, masks).state(), used.encode_memory(picture, masks).state()),
    ):
        assert all(torch.equal(one[part], other[part]) for part in one)


def test_cached_queries_of_another_layout_are_not_taken_for_these() -> None:
    """The address of a cached query contains `QUERY_LAYOUT`: change both together."""
    query = FastNetwork(lively_network("stm-lite")).encode_query(texture(0)[0])
    coarse = network_config("stm-lite").decoder_channels[0]
    assert {name: tensor.shape[1] for name, tensor in query.state().items()} == {
        "key": 64,
        "joined": coarse,
        "eighth": 96,
        "quarter": 64,
        "half": 16,
    }
    assert inference.QUERY_LAYOUT == "query 3"


@needs_onednn
@pytest.mark.parametrize("name", [LARGE, "stm-lite"])
def test_no_plain_block_is_left_in_a_prepared_network(name: str) -> None:
    network = FastNetwork(lively_network(name)).network
    plain = {"Bottleneck", InvertedResidual.__name__, ResidualBlock.__name__}
    assert not [module for module in network.modules() if type(module).__name__ in plain]
    assert any(isinstance(module, FusedConv2d) for module in network.modules())
    assert any(isinstance(module, WinogradConv2d) for module in network.modules())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_runs_whatever_this_processor_has_instructions_for(precision: Precision) -> None:
    network = lively_network("stm-lite")
    small, picture, masks = texture(0)[0, :, :32, :48], texture(0)[1, :, :32, :48], first_masks()[:, :32, :48]
    kinds: tuple[Precision, ...] = (precision, "float32")
    results = []
    for kind in kinds:
        engine = FastNetwork(network, precision=kind)
        entry = engine.encode_memory(small, masks)
        bank = engine.new_bank(MemoryRule.parse("first"), entry)
        bank.write(0, entry)
        results.append(engine.segment(engine.encode_query(picture), bank))
    assert (results[0] - results[1]).abs().mean() < 0.03


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
    monkeypatch.setattr(inference, "can_fuse", lambda dtype: False)
    torch.testing.assert_close(run(), quick, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [LARGE, "stm-lite"])
def test_folding_comes_before_fusing(name: str) -> None:
    """A fused block takes over convolutions only, so a BatchNorm that is left would be lost."""
    network = lively_network(name).requires_grad_(False)
    fold_batch_norm(network)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


GIVEN_BACK = """
import os, threading
from pathlib import Path
import torch
from model.inference.allocator import keep_freed_memory
torch.set_num_threads(1)
def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0])
def work():
    x = torch.ones(20_000_000)
    with_map = address_space()
    del x
    print(with_map - address_space(), flush=True)
child = os.fork()  # the C library decides at a thread's first allocation
if child:
    os.waitpid(child, 0)
    assert keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@pytest.mark.slow
@needs_glibc
def test_large_maps_are_not_given_back_and_asked_for_again() -> None:
    run = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    before, kept = map(int, run.stdout.split())  # pages
    map_pages = 4 * 20_000_000 // resource.getpagesize()
    assert before >= map_pages
    assert kept < map_pages // 10


RELEASED = """
from pathlib import Path
import torch
from model.inference.allocator import keep_freed_memory, release_freed_memory
assert keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
maps = [torch.ones(5_000_000) for _ in range(8)]
held = maps[-1]  # the last of the heap stays in use
busy = resident()
del maps
idle = resident()
assert release_freed_memory()
print(busy - idle, busy - resident(), float(held.sum()))
"""


@pytest.mark.slow
@needs_glibc
def test_an_idle_process_gives_kept_memory_back_when_it_is_asked_to() -> None:
    run = subprocess.run([sys.executable, "-c", RELEASED], capture_output=True, text=True, check=True)
    kept, released, held = (float(word) for word in run.stdout.split())
    pages_of_seven = 7 * 4 * 5_000_000 // resource.getpagesize()
    assert kept < pages_of_seven // 10 and released > pages_of_seven * 9 // 10
    assert held == 5_000_000


IN_LARGE_PAGES = """
from pathlib import Path
import torch
from model.inference.allocator import keep_freed_memory, release_freed_memory
def advised():
    return "hg" in {flag for line in heap() if line.startswith("VmFlags") for flag in line.split()}
def heap():
    lines = Path("/proc/self/smaps").read_text().splitlines()
    mapping = [line for line in lines if line.endswith("[heap]")]
    for one in mapping:
        start = lines.index(one)
        yield from lines[start : start + 25]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
before = resident()
assert keep_freed_memory()
reserved = resident() - before
first = advised()
release_freed_memory()
print(first, advised(), reserved)
"""


def gives_large_pages() -> bool:
    """Whether the kernel has large pages free at the moment."""
    try:
        with mmap.mmap(-1, 2**26) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.write(bytes(2**26))
            lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
            return any(line.startswith("AnonHugePages:") and " 0 kB" not in line for line in lines)
    except (OSError, AttributeError):
        return False


@needs_glibc
@pytest.mark.skipif(not gives_large_pages(), reason="the kernel gives no large pages")
def test_the_heap_is_asked_for_in_large_pages_and_takes_no_memory_for_it() -> None:
    run = subprocess.run([sys.executable, "-c", IN_LARGE_PAGES], capture_output=True, text=True, check=True)
    first, after_release, reserved = run.stdout.split()
    assert (first, after_release) == ("True", "True")
    assert int(reserved) * resource.getpagesize() < 10_000_000
