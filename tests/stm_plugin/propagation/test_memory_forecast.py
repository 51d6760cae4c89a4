"""A run forecasts its memory, and is made to fit or refused with a reason."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.inference.fast_network import FastNetwork
from model.network.config import network_config
from model.network.memory import MemoryRule
from model.network.stm import SpaceTimeMemoryNetwork
from model.training.adapt import AdaptOptions
from stm_plugin.errors import DeviceError
from stm_plugin.propagation.feature_cache import as_halves
from stm_plugin.propagation.memory_forecast import (
    AdaptationMemory,
    MemoryRequest,
    check_adaptation_memory,
    device_errors,
    fit_memory,
    free_memory,
    passes_in_turn,
    pick_device,
    pick_precision,
    precision_of,
    predict_adaptation_memory,
    predict_memory,
    settled,
    slowness,
)
from stm_plugin.settings import Settings

LITE = network_config("stm-lite")
GIBIBYTE = 1 << 30
PEAK_OF_ADAPTING = """
import resource, torch
from model.training.adapt import AdaptOptions, KeyPicture, adapt
from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
torch.set_num_threads(1)
network = SpaceTimeMemoryNetwork(network_config("stm-lite"))
mask = torch.zeros({height}, {width})
mask[100:300, 200:500] = 1
key = KeyPicture(torch.rand(3, {height}, {width}), {{"one": mask}})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
adapt(network, [key], AdaptOptions(steps=1))
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("device", "has_fast_bfloat16", "chosen"),
    [
        ("cpu", True, "bfloat16"),
        ("cpu", False, "float32"),
        ("cuda", False, "float16"),
        ("cuda:1", True, "float16"),
        ("mps", True, "float32"),
    ],
)
def test_auto_takes_the_fast_precision_of_the_device(
    device: str, has_fast_bfloat16: bool, chosen: str
) -> None:
    assert pick_precision(device, has_fast_bfloat16) == chosen


def test_only_auto_is_settled_and_a_named_device_need_not_exist_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm_plugin.propagation.memory_forecast.has_fast_bfloat16", lambda: True)
    assert settled(Settings(precision="float32", device="cuda")).precision == "float32"
    assert settled(Settings(device="cuda")) == Settings(precision="float16", device="cuda")
    assert precision_of(Settings(device="cpu")) == "bfloat16"


def test_float16_on_a_processor_without_it_is_said_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm_plugin.propagation.memory_forecast.can_fuse", lambda dtype: False)
    assert "precision=bfloat16" in slowness(Settings(precision="float16", device="cpu"))
    assert slowness(Settings(precision="bfloat16", device="cpu")) == ""
    monkeypatch.setattr("stm_plugin.propagation.memory_forecast.can_fuse", lambda dtype: True)
    assert slowness(Settings(precision="float16", device="cpu")) == ""


def test_a_device_that_is_not_there_is_refused_in_words() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device() in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match=r"cuda:99 does not exist.*Use auto"):
        pick_device("cuda:99")


def test_free_memory_is_a_plausible_number() -> None:
    assert 64 << 20 < free_memory("cpu") < 1 << 50


def test_the_predicted_bank_and_features_are_what_the_network_makes() -> None:
    fast = FastNetwork(SpaceTimeMemoryNetwork(LITE).eval())
    entry = fast.encode_memory(torch.zeros(3, 64, 96), torch.zeros(2, 64, 96))
    bank = fast.new_bank(MemoryRule.parse("every:5"), entry, capacity=6, permanent=2)
    run = MemoryRequest(LITE, 64, 96, objects=2, memory_cap=6, further_keys=2, frames=3, ram_budget=1 << 40)
    forecast = predict_memory(run)
    assert forecast.bank == bank.nbytes
    picture = 3 * 64 * 96 * 2
    query = fast.encode_query(torch.zeros(3, 64, 96))
    kept = [*as_halves(query.state()).values(), *as_halves(entry.state()).values()]
    assert forecast.features == 3 * (sum(one.nbytes for one in kept) + picture)


def test_a_full_cache_of_features_takes_more_than_its_budget() -> None:
    """Removed features leave gaps: a run of 99 frames took 4 % more than a forecast without them."""
    run = MemoryRequest(LITE, 480, 864, objects=1, memory_cap=20, frames=8, ram_budget=GIBIBYTE // 2)
    short, long = predict_memory(run), predict_memory(replace(run, frames=99))
    assert short.features < run.ram_budget < long.features < 1.5 * run.ram_budget
    assert predict_memory(replace(run, frames=99, ram_budget=0)).features == 0
    assert long.total < 3.83e9 / 1.5, "what 99 frames at 480p took before"


@given(
    objects=st.integers(1, 16),
    cap=st.integers(4, 100),
    height=st.integers(100, 1000),
    available=st.integers(GIBIBYTE // 2, 64 * GIBIBYTE),
    ram_budget=st.integers(0, 4 * GIBIBYTE),
)
def test_a_run_fits_says_what_was_lowered_or_refuses(
    objects: int, cap: int, height: int, available: int, ram_budget: int
) -> None:
    run = MemoryRequest(LITE, height, 2 * height, objects, cap, frames=1000, ram_budget=ram_budget)
    try:
        fit = fit_memory(run, available)
    except DeviceError as error:
        assert "needs at least" in str(error) and "smaller region" in str(error)
        return
    assert fit.forecast.total <= available
    lowered = fit.memory_cap < cap or fit.working_scale < 1
    assert lowered == bool(fit.reason)
    assert fit.memory_cap <= cap
    if lowered:
        assert predict_memory(replace(run, ram_budget=0)).total > 0.8 * available


def test_cached_features_leave_before_the_cap_and_the_cap_before_the_picture() -> None:
    run = MemoryRequest(LITE, 480, 854, objects=4, memory_cap=100, frames=500, ram_budget=2 * GIBIBYTE)
    everything = fit_memory(run, 64 * GIBIBYTE)
    assert everything.run == run and not everything.reason
    fewer = fit_memory(run, everything.forecast.total)
    assert fewer.run.ram_budget < run.ram_budget and fewer.memory_cap == 100 and not fewer.reason
    lowered = fit_memory(run, predict_memory(replace(run, ram_budget=0)).total)
    assert lowered.memory_cap < 100 and lowered.working_scale == 1.0
    assert lowered.reason.startswith("the memory cap was lowered from 100 to")


def test_two_passes_in_turn_take_two_memories_and_are_given_up_before_the_cap() -> None:
    assert [passes_in_turn(device) for device in ("cuda", "cuda:1", "mps", "cpu")] == [2, 2, 1, 1]
    run = MemoryRequest(LITE, 480, 854, objects=2, memory_cap=20, device="cuda", frames=500, turns=2)
    both, alone = predict_memory(run), predict_memory(replace(run, turns=1))
    assert both.bank == 2 * alone.bank
    query = FastNetwork(SpaceTimeMemoryNetwork(LITE)).encode_query(torch.rand(3, 480, 854))
    waiting = query.nbytes + 480 * 854 * 4 * (2 + 3)
    assert waiting < both.working - alone.working < 1.7 * waiting
    assert fit_memory(run, int(1.2 * both.total)).run == run
    fit = fit_memory(run, int(1.2 * alone.total))
    assert fit.run == replace(run, turns=1) and not fit.reason


SIZES = AdaptationMemory(LITE, keys=2, objects=2, height=480, width=854, options=AdaptOptions())


def test_adapting_that_fits_says_its_memory_and_one_that_does_not_is_refused() -> None:
    forecast = check_adaptation_memory(SIZES, 64 * GIBIBYTE)
    assert str(forecast).startswith("1.1 GB: 245 MB to train in, ")
    with pytest.raises(DeviceError, match=r"Adapting needs 1\.1 GB.*cpu has 900 MB free.*another device"):
        check_adaptation_memory(SIZES, 900 << 20)
    many = replace(SIZES, keys=40)
    with pytest.raises(DeviceError, match="with fewer keys"):
        check_adaptation_memory(many, 4 * GIBIBYTE)


def test_adapting_takes_more_for_more_of_anything() -> None:
    def total(**more: Any) -> int:
        return predict_adaptation_memory(replace(SIZES, **more)).total

    before = total()
    for more in ({"keys": 3}, {"objects": 3}, {"options": AdaptOptions(clips=3)}, {"plate_pixels": 1 << 22}):
        assert total(**more) > before, more
    assert total(config=network_config("stm-r50")) > before
    assert total(height=120, width=200) < before  # the crop cannot be larger than the picture


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_adapting_takes_no_more_than_was_said() -> None:
    sizes = replace(SIZES, keys=1, objects=1, options=AdaptOptions(steps=1))
    script = PEAK_OF_ADAPTING.format(height=sizes.height, width=sizes.width)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    forecast = predict_adaptation_memory(sizes)
    assert int(run.stdout) <= forecast.working + forecast.pictures + (80 << 20)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9")],
)
def test_running_out_of_memory_is_a_named_error_with_a_way_on(error: Exception) -> None:
    said = r"frame 1010: cpu has too little memory.*are kept"
    with pytest.raises(DeviceError, match=said), device_errors("cpu", 1010):
        raise error


def test_a_failing_device_is_named() -> None:
    said = r"frame 7: The device cpu failed: broken"
    with pytest.raises(DeviceError, match=said), device_errors("cpu", 7):
        raise RuntimeError("broken\nwith a long trace")


def test_what_finishing_takes_besides_is_counted() -> None:
    plain = MemoryRequest(LITE, 480, 854, objects=1, memory_cap=5, plate_pixels=2048 * 1080)
    learned, foreground = replace(plain, learned_edges=True), replace(plain, foreground=True)
    least = predict_memory(plain).total
    assert predict_memory(learned).total - least > 200 * 480 * 854
    assert predict_memory(foreground).total - least > 60 * 2048 * 1080


def test_a_run_of_few_frames_is_not_said_to_hold_many() -> None:
    """Three frames of 4K: 41 % were stated that nothing took."""
    long = MemoryRequest(
        LITE, 128, 240, objects=1, memory_cap=20, plate_pixels=4096 * 2160, workers=4, learned_edges=True
    )
    totals = [predict_memory(replace(long, frames_at_most=most)).total for most in (1, 3, 12, 1000)]
    assert totals == sorted(totals) and totals[0] < totals[1] < totals[2]
    assert totals[2] == totals[3] == predict_memory(long).total
    assert predict_memory(long).total - totals[1] > 8 * long.plate_pixel_bytes * long.plate_pixels
