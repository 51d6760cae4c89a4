"""Edges that are finished on a card equal those of the CPU. Here the card's code runs on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.inference.edges import FastRefiner
from model.weights_file import load_refiner
from stm_plugin.finishing.band import Guide
from stm_plugin.finishing.carried import CarriedKey
from stm_plugin.finishing.learned import EdgeEvidence, alpha_at_working_size, finish_learned
from stm_plugin.finishing.on_device import alpha_in_box, finish_on_device
from stm_plugin.images.working_picture import to_working, working_geometry
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray, Window
from tests.stm_plugin.finishing.test_learned import GEOMETRY, WINDOW, disc, evidence_of, guide_of, hard

STEP = 1 / 1024
SETTINGS = FinishSettings(edges="learned")


@pytest.fixture(scope="module")
def refiner() -> FastRefiner:
    return FastRefiner(load_refiner()[0], fused=False)


def with_key(evidence: EdgeEvidence, alpha: FloatArray) -> EdgeEvidence:
    mask = to_working(alpha, WINDOW, GEOMETRY)
    share = np.full_like(mask, 0.5)
    return replace(evidence, carried=(CarriedKey(mask, share, 0.3),))


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("softness", [1.0, 24.0])
def test_a_card_gives_the_mattes_of_the_cpu(softness: float, width: float, refiner: FastRefiner) -> None:
    alpha = disc(softness)
    guide, settings = guide_of(alpha), replace(SETTINGS, width=width)
    evidence = with_key(evidence_of(hard(alpha)), disc(softness, centre=(242, 180)))
    expected = finish_learned(evidence, guide, GEOMETRY, settings, refiner)
    matte = finish_on_device(evidence, guide, GEOMETRY, settings, refiner)
    assert np.abs(matte - expected).max() < STEP
    assert ((expected > 0) & (expected < 1)).sum() > 500


def test_a_part_of_the_region_and_odd_sizes(refiner: FastRefiner) -> None:
    rng = np.random.default_rng(0)
    window = Window(-7, 3, 301, 199)
    region = Window(20, 10, 250, 150)
    geometry = replace(working_geometry(region, 1.0, 117), canvas=window)
    display = rng.random((199, 301, 3)).astype(np.float32)
    picture = np.ascontiguousarray(to_working(display, window, geometry).transpose(2, 0, 1))
    rows, columns = np.mgrid[0 : picture.shape[1], 0 : picture.shape[2]].astype(np.float32)
    own = np.clip(0.5 + (40 - np.hypot(rows - 60, columns - 90)) / 12, 0, 1).astype(np.float32)
    guide = Guide(picture, lambda rows, columns: display[rows, columns], window)
    expected = finish_learned(evidence_of(own), guide, geometry, SETTINGS, refiner)
    matte = finish_on_device(evidence_of(own), guide, geometry, SETTINGS, refiner)
    assert np.abs(matte - expected).max() < STEP
    assert matte.any()


def test_alpha_at_working_size_is_the_same(refiner: FastRefiner) -> None:
    alpha = disc(30, radius=90, centre=(60, 40))  # cut by the border
    evidence, picture = evidence_of(hard(alpha)), guide_of(alpha).working
    expected = alpha_at_working_size(evidence, picture, SETTINGS, refiner)
    found = alpha_at_working_size(evidence, picture, SETTINGS, refiner, alpha_in_box)
    assert np.abs(found - expected).max() < STEP


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_sure_frame_stays_flat(value: float, refiner: FastRefiner) -> None:
    alpha = disc(1.0)
    sure = np.full(guide_of(alpha).working.shape[1:], value, np.float32)
    matte = finish_on_device(evidence_of(sure), guide_of(alpha), GEOMETRY, SETTINGS, refiner)
    assert (matte == value).all()
