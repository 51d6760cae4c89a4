"""A run says what memory it needs, is made to fit, or refuses in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import network_config
from model.inference import FastNetwork
from model.memory import MemoryRule
from model.network import SpaceTimeMemoryNetwork
from stm_plugin.device import Run, device_errors, fit_memory, free_memory, pick_device, predict_memory
from stm_plugin.errors import DeviceError

LITE = network_config("stm-lite")
GIBIBYTE = 1 << 30


def test_a_device_that_is_not_there_is_refused_in_words() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device() in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match=r"cuda:99 is not there.*Use auto"):
        pick_device("cuda:99")


def test_free_memory_is_a_plausible_number() -> None:
    assert 64 << 20 < free_memory("cpu") < 1 << 50


def test_the_predicted_bank_and_features_are_what_the_network_makes() -> None:
    fast = FastNetwork(SpaceTimeMemoryNetwork(LITE).eval())
    entry = fast.encode_memory(torch.zeros(3, 64, 96), torch.zeros(2, 64, 96))
    bank = fast.new_bank(MemoryRule.parse("every:5"), entry, capacity=6, permanent=2)
    run = Run(LITE, 64, 96, objects=2, memory_cap=6, further_keys=2, frames=3, ram_budget=1 << 40)
    forecast = predict_memory(run)
    assert forecast.bank == bank.nbytes
    picture = 3 * 64 * 96 * 2
    query = fast.encode_query(torch.zeros(3, 64, 96))
    assert forecast.features == 3 * (query.nbytes + picture + entry.nbytes)


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
    run = Run(LITE, height, 2 * height, objects, cap, frames=1000, ram_budget=ram_budget)
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
    run = Run(LITE, 480, 854, objects=4, memory_cap=100, frames=500, ram_budget=2 * GIBIBYTE)
    everything = fit_memory(run, 64 * GIBIBYTE)
    assert everything.run == run and not everything.reason
    fewer = fit_memory(run, everything.forecast.total)
    assert fewer.run.ram_budget < run.ram_budget and fewer.memory_cap == 100 and not fewer.reason
    lowered = fit_memory(run, predict_memory(replace(run, ram_budget=0)).total)
    assert lowered.memory_cap < 100 and lowered.working_scale == 1.0
    assert lowered.reason.startswith("the memory cap was lowered from 100 to")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9")],
)
def test_running_out_of_memory_is_a_named_error_with_a_way_on(error: Exception) -> None:
    said = r"frame 1010: The memory of cpu did not suffice.*are kept"
    with pytest.raises(DeviceError, match=said), device_errors("cpu", 1010):
        raise error


def test_a_failing_device_is_named() -> None:
    said = r"frame 7: The device cpu failed: broken"
    with pytest.raises(DeviceError, match=said), device_errors("cpu", 7):
        raise RuntimeError("broken\nwith a long trace")
