"""Learned edges are soft where the picture is soft, exact where the network is certain, and steady."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import cv2
import numpy as np
import pytest
import torch

from model.inference.edges import FastRefiner
from model.weights_file import load_refiner
from stm_plugin.errors import SettingsError, WeightsError
from stm_plugin.finishing.band import Guide
from stm_plugin.finishing.carried import SHARES, CarriedKey
from stm_plugin.finishing.guided import finish
from stm_plugin.finishing.learned import (
    EdgeEvidence,
    alpha_at_working_size,
    confirmed,
    finish_learned,
    without_specks,
)
from stm_plugin.images.working_picture import to_working, working_geometry
from stm_plugin.planning.values import Direction, Request
from stm_plugin.propagation.edge_evidence import EdgeEvidenceSource
from stm_plugin.server.information import information
from stm_plugin.settings import FinishSettings, Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray, Window
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

WINDOW = Window(0, 0, 480, 360)
GEOMETRY = working_geometry(WINDOW, 1.0, 240)
SETTINGS = FinishSettings(edges="learned")
LEARNED = Settings(
    working_size=WORKING_SIZE, memory_rule="every:3", colour_space="lin_rec709_scene", finish=SETTINGS
)


@pytest.fixture(scope="module")
def refiner() -> FastRefiner:
    return FastRefiner(load_refiner()[0])


def disc(softness: float, radius: float = 100, centre: tuple[float, float] = (240, 180)) -> FloatArray:
    """(360, 480): 1 inside, 0 outside, over an edge of `softness` plate pixels."""
    rows, columns = np.mgrid[0:360, 0:480].astype(np.float32)
    distance = np.hypot(columns - centre[0], rows - centre[1]) - radius
    alpha: FloatArray = np.clip(0.5 - distance / softness, 0, 1).astype(np.float32)
    return alpha


def scene(alpha: FloatArray) -> FloatArray:
    """A green object with some texture before a dark gradient; display-referred."""
    rows, columns = np.mgrid[0:360, 0:480].astype(np.float32)
    front = np.array([0.25, 0.7, 0.3], np.float32) + 0.05 * np.sin(columns / 9)[..., None]
    back = np.stack([0.3 + columns / 1500, rows / 1200, np.full_like(rows, 0.15)], axis=-1)
    linear = alpha[..., None] * front**2.2 + (1 - alpha[..., None]) * back**2.2
    return np.ascontiguousarray(linear ** (1 / 2.2), dtype=np.float32)


def hard(alpha: FloatArray) -> FloatArray:
    """The best output of a network: the alpha cut at a half, at working size, blurred over its stride."""
    cut = to_working((alpha > 0.5).astype(np.float32), WINDOW, GEOMETRY)
    return np.asarray(cv2.GaussianBlur(cut, (0, 0), 1.2), np.float32)


def guide_of(alpha: FloatArray) -> Guide:
    picture = scene(alpha)
    planes = np.ascontiguousarray(to_working(picture, WINDOW, GEOMETRY).transpose(2, 0, 1))
    return Guide(planes, lambda rows, columns: picture[rows, columns], WINDOW)


def evidence_of(probability: FloatArray, beside: FloatArray | None = None) -> EdgeEvidence:
    beside = probability if beside is None else beside
    return EdgeEvidence(probability, beside, beside, np.zeros_like(probability), 0.06)


def error(matte: FloatArray, alpha: FloatArray) -> float:
    """Mean square error within 10 pixels of soft pixels."""
    soft = ((alpha > 0) & (alpha < 1)).astype(np.uint8)
    band = cv2.dilate(soft, np.ones((21, 21), np.uint8)) > 0
    return float(np.square(matte - alpha)[band].mean())


@pytest.mark.parametrize("softness", [12.0, 24.0, 40.0])
def test_a_soft_edge_comes_back_closer_than_a_perfect_binary_mask(
    softness: float, refiner: FastRefiner
) -> None:
    alpha = disc(softness)
    matte = finish_learned(evidence_of(hard(alpha)), guide_of(alpha), GEOMETRY, SETTINGS, refiner)
    assert error(matte, alpha) < 0.4 * error((alpha > 0.5).astype(np.float32), alpha)


def test_a_hard_edge_stays_hard(refiner: FastRefiner) -> None:
    alpha = disc(1.5)
    matte = finish_learned(evidence_of(hard(alpha)), guide_of(alpha), GEOMETRY, SETTINGS, refiner)
    soft = np.count_nonzero((matte > 0.1) & (matte < 0.9))
    assert soft < 8 * 2 * np.pi * 100, "an edge of at most 8 plate pixels, 4 of the working picture"
    assert np.count_nonzero((matte > 0.5) != (alpha > 0.5)) < 0.03 * np.count_nonzero(alpha > 0.5)


def test_far_from_what_is_unsure_the_matte_is_exactly_zero_or_one(refiner: FastRefiner) -> None:
    alpha = disc(20.0, radius=140)
    matte = finish_learned(evidence_of(hard(alpha)), guide_of(alpha), GEOMETRY, SETTINGS, refiner)
    reach = 2 * (2 * 30 + 20) + 1
    inside = cv2.erode(alpha, np.ones((reach, reach), np.uint8)) == 1
    outside = disc(20.0, radius=225) == 0
    assert inside.any() and (matte[inside] == 1).all()
    assert outside.any() and (matte[outside] == 0).all()
    assert matte.dtype == np.float32 and matte.min() == 0 and matte.max() == 1


@pytest.mark.parametrize("value", [0.0, 1.0, 0.01, 0.99])
def test_a_sure_frame_is_flat(value: float, refiner: FastRefiner) -> None:
    probability = np.full((GEOMETRY.height, GEOMETRY.width), value, np.float32)
    matte = finish_learned(evidence_of(probability), guide_of(disc(2.0)), GEOMETRY, SETTINGS, refiner)
    assert (matte == round(value)).all()


def test_a_hole_that_the_neighbours_do_not_have_is_closed(refiner: FastRefiner) -> None:
    alpha = disc(3.0)
    sound = hard(alpha)
    broken = sound.copy()
    cv2.circle(broken, (120, 90), 6, 0.0, -1)
    matte = finish_learned(evidence_of(broken, sound), guide_of(alpha), GEOMETRY, SETTINGS, refiner)
    assert matte[165:196, 225:256].min() > 0.75


def test_an_island_that_the_neighbours_do_not_have_goes(refiner: FastRefiner) -> None:
    alpha = disc(3.0)
    sound = hard(alpha)
    broken = sound.copy()
    cv2.circle(broken, (25, 30), 5, 1.0, -1)
    matte = finish_learned(evidence_of(broken, sound), guide_of(alpha), GEOMETRY, SETTINGS, refiner)
    assert matte[50:71, 40:61].max() < 0.25


def test_one_neighbour_alone_decides_about_small_parts_only() -> None:
    sound = hard(disc(3.0))
    broken = sound.copy()
    cv2.circle(broken, (120, 90), 4, 0.0, -1)
    cv2.circle(broken, (25, 30), 4, 1.0, -1)
    cv2.circle(broken, (170, 130), 9, 0.0, -1)
    evidence = replace(evidence_of(broken, sound), after=broken)
    cleaned = confirmed(evidence)
    assert cleaned[90, 120] == 1 and cleaned[30, 25] == 0
    assert cleaned[130, 170] == 0, "it can be new in this frame"
    assert confirmed(replace(evidence, before=broken)) is broken, "no neighbour is known"


def test_a_dent_inside_and_a_trace_outside_that_are_near_no_contour_go() -> None:
    sound = np.clip(hard(disc(3.0)) * 1.1 - 0.05, 0, 1)
    alpha = sound.copy()
    alpha[115:125, 155:165] = 0.7
    alpha[10:14, 10:14] = 0.2
    assert (without_specks(alpha, evidence_of(sound)) == sound).all(), "and the edge stays"
    holed = sound.copy()
    holed[118:122, 158:162] = 0
    kept = without_specks(alpha, evidence_of(sound, beside=holed))
    assert (kept[115:125, 155:165] == np.float32(0.7)).all(), "a neighbour has a hole there"


def test_a_dent_beside_the_edge_is_filled_up_to_its_rim() -> None:
    sound = np.zeros((GEOMETRY.height, GEOMETRY.width), np.float32)
    sound[60:180, 100:220] = 1
    alpha = sound.copy()
    alpha[100:120, 100:104] = 0.8  # the rim, at the edge
    alpha[100:120, 104:112] = 0.1
    alpha[140:150, 100:112] = 0.4  # a notch: open to the outside
    cleaned = without_specks(alpha, evidence_of(sound))
    assert (cleaned[100:120, 104:112] == 1).all() and (cleaned[100:120, 100:104] == np.float32(0.8)).all()
    assert (cleaned[140:150, 100:112] == np.float32(0.4)).all()


def test_any_number_of_threads_gives_the_same_bits(refiner: FastRefiner) -> None:
    """The whole finish: refiner, closed form, guided filters, the enlargement."""
    alpha = disc(24.0)
    carried = (CarriedKey(hard(disc(20.0)), np.full_like(hard(alpha), 0.5), 0.5),)
    evidence = replace(evidence_of(hard(alpha), hard(disc(24.0, centre=(246, 183)))), carried=carried)
    torch_threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            cv2.setNumThreads(count)
            found.append(finish_learned(evidence, guide_of(alpha), GEOMETRY, SETTINGS, refiner))
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv_threads)
    assert np.count_nonzero((found[0] > 0) & (found[0] < 1)) > 5000
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


def test_narrower_edges_have_fewer_soft_pixels_and_wider_ones_more(refiner: FastRefiner) -> None:
    alpha = disc(24.0)
    counts = []
    for width in (0.25, 0.5, 1.0, 2.0):
        settings = replace(SETTINGS, width=width)
        matte = finish_learned(evidence_of(hard(alpha)), guide_of(alpha), GEOMETRY, settings, refiner)
        counts.append(np.count_nonzero((matte > 0.02) & (matte < 0.98)))
    assert counts == sorted(counts) and counts[0] < 0.6 * counts[2] < 0.95 * 0.6 * counts[3]


@pytest.mark.parametrize(("side", "reach"), [(240, 24), (480, 24), (960, 48)])
def test_the_band_grows_with_the_working_size(side: int, reach: int) -> None:
    """In a working picture of twice the usual size a soft edge is twice as wide in its pixels."""

    class EverythingSoft:
        def refine(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
            return np.full(inputs.shape[1:], 0.5, np.float32), np.ones(inputs.shape[1:], np.float32)

    probability = np.zeros((side, side), np.float32)
    probability[:, side // 2 :] = 1
    picture = np.full((3, side, side), 0.5, np.float32)
    refiner = cast(FastRefiner, EverythingSoft())
    alpha = alpha_at_working_size(evidence_of(probability), picture, SETTINGS, refiner)
    soft = np.count_nonzero((alpha[side // 2] > 0) & (alpha[side // 2] < 1))
    assert 2 * reach <= soft <= 2 * reach + 2


def test_the_matte_follows_the_data_window(refiner: FastRefiner) -> None:
    alpha = disc(16.0)
    guide = guide_of(alpha)
    whole = finish_learned(evidence_of(hard(alpha)), guide, GEOMETRY, SETTINGS, refiner)
    data = Window(100, 60, 200, 180)
    part = np.s_[60:240, 100:300]
    picture = np.ascontiguousarray(scene(alpha)[part])
    cropped = Guide(guide.working, lambda rows, columns: picture[rows, columns], data)
    matte = finish_learned(evidence_of(hard(alpha)), cropped, GEOMETRY, SETTINGS, refiner)
    assert np.allclose(matte, whole[part], atol=1e-4)


def test_edges_can_be_guided_or_off() -> None:
    alpha = disc(24.0)
    probability = hard(alpha)
    guided = finish(probability, guide_of(alpha), GEOMETRY, FinishSettings(edges="guided"))
    off = finish(probability, guide_of(alpha), GEOMETRY, FinishSettings(edges="off"))
    assert error(guided, alpha) < 0.8 * error(off, alpha)
    with pytest.raises(SettingsError, match=r"finish\.edges"):
        FinishSettings(edges="sharp")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"finish\.width"):
        FinishSettings(width=0.1)


def test_beside_a_key_its_own_mask_has_a_part(refiner: FastRefiner) -> None:
    alpha, larger = disc(2.0), disc(2.0, radius=106)
    here = evidence_of(hard(alpha))
    share = np.full(here.probability.shape, 0.75, np.float32)
    mask = to_working(larger, WINDOW, GEOMETRY)
    beside = replace(here, carried=(CarriedKey(mask, share, 0.0),))
    picture = guide_of(alpha)
    plain, carried = (finish_learned(one, picture, GEOMETRY, SETTINGS, refiner) for one in (here, beside))
    ring = (larger == 1) & (alpha == 0)
    assert carried[ring].mean() > plain[ring].mean() + 0.25


def test_the_softness_of_a_key_comes_along(refiner: FastRefiner) -> None:
    alpha = disc(24.0)
    here = evidence_of(hard(alpha))
    mask = to_working(alpha, WINDOW, GEOMETRY)
    key = CarriedKey(mask, np.full(mask.shape, 0.75, np.float32), 1.0)
    told = replace(here, carried=(key,), key_softness=0.75)
    matte, plain = (finish_learned(one, guide_of(alpha), GEOMETRY, SETTINGS, refiner) for one in (told, here))
    assert error(matte, alpha) < 0.5 * error(plain, alpha)


# ---- in a shot -------------------------------------------------------------------------------


def square(left: int) -> FloatArray:
    values = np.zeros((48, 64), np.float32)
    values[12:36, left : left + 20] = 1.0
    return values


@pytest.fixture
def shot(make_plate: Callable[..., str], tmp_path: object) -> Shot:
    network = CountingNetwork()
    plate = PlateDescription("files", make_plate(range(1001, 1010)))
    shot = Shot.create(f"{tmp_path}/shot", plate, LEARNED, network=network.factory)
    shot.add_key(1001, {"a": square(4)})
    shot.add_key(1009, {"a": square(30)})
    shot.propagate()
    return shot


def test_the_frame_before_comes_from_the_left_and_the_frame_after_from_the_right(shot: Shot) -> None:
    propagation = shot._working
    results = propagation.finisher(shot.plan()).results
    source = EdgeEvidenceSource(results, lambda frame: np.asarray(results.picture(frame)))
    passes = {one.name: one for one in results.plan.passes}
    forward, backward = passes[1001, Direction.FORWARD], passes[1009, Direction.BACKWARD]
    name = forward.objects[0]

    result = results.frame_result(1005)
    middle = source.of(result, name)
    own = result.probabilities[name]
    for beside, one, share in zip(
        (middle.before, middle.after), (forward, backward), result.shares[name], strict=True
    ):
        part = min(1.0, 2 * share)  # as far as the pass has part in the frame
        assert part > 0.5, "both count"
        expected = own + part * (results.pass_result(one, 2)[0] - own)
        np.testing.assert_allclose(beside, expected, atol=1e-5)
    assert not middle.carried, "no key within reach"
    first = source.of(results.frame_result(1002), name)
    (carried,) = first.carried
    assert carried.share.max() <= SHARES[0] and carried.mask.shape == first.probability.shape
    (farther,) = source.of(results.frame_result(1004), name).carried
    assert farther.share.max() <= SHARES[2]
    assert (first.before == results.key_probabilities(1001, (name,))[0]).all()
    last = source.of(results.frame_result(1008), name)
    assert (last.after == results.key_probabilities(1009, (name,))[0]).all()


def test_a_frame_finished_by_itself_is_the_frame_of_the_whole_range(shot: Shot) -> None:
    results = shot._working.finisher(shot.plan())
    for frame in (1002, 1005, 1008):
        alone, whole = shot.matte(frame), results.finished(frame)
        assert (alone.mattes["a"] == whole.mattes["a"]).all() and alone.address == whole.address


def test_a_learned_matte_depends_on_no_more_than_the_probabilities_of_its_frame(
    make_plate: Callable[..., str], tmp_path: object
) -> None:
    def addresses(shot: Shot) -> tuple[dict[int, str], dict[int, str]]:
        results = shot._working.finisher(shot.plan()).results
        frames = range(1001, 1013)
        return {one: results.address(one) for one in frames}, {one: shot.matte(one).address for one in frames}

    network = CountingNetwork()
    plate = PlateDescription("files", make_plate(range(1001, 1013)))
    with Shot.create(f"{tmp_path}/shot", plate, LEARNED, network=network.factory) as shot:
        for frame, left in ((1001, 4), (1004, 20), (1007, 24)):
            shot.add_key(frame, {"a": square(left)})
        shot.propagate()
        fused, finished = addresses(shot)
        kept = {frame: shot.matte(frame).mattes["a"] for frame in range(1001, 1013)}
        shot.add_key(1010, {"a": square(30)})
        shot.propagate()
        fused_now, finished_now = addresses(shot)
        changed = {frame for frame in fused if fused[frame] != fused_now[frame]}
        assert changed and changed < set(fused)
        assert {frame for frame in finished if finished[frame] != finished_now[frame]} == changed
        for frame in set(fused) - changed:
            assert (shot.matte(frame).mattes["a"] == kept[frame]).all()


def test_the_refiner_and_the_switch_are_part_of_a_mattes_address(shot: Shot) -> None:
    learned = shot.matte(1004).address
    shot.set_settings(replace(shot.settings, finish=replace(SETTINGS, edges="guided")))
    guided = shot.matte(1004).address
    shot.set_settings(replace(shot.settings, finish=replace(SETTINGS, width=0.5)))
    narrow = shot.matte(1004).address
    assert len({learned, guided, narrow}) == 3
    shot.set_settings(replace(shot.settings, finish=SETTINGS))
    assert shot.matte(1004).address == learned
    assert not shot.plan(Request()).compute_steps, "edges need nothing of the network again"


def test_weights_of_edges_that_are_not_there_are_named(shot: Shot) -> None:
    shot.set_settings(replace(shot.settings, finish=replace(SETTINGS, edge_weights="nowhere")))
    with pytest.raises(WeightsError, match="nowhere"):
        shot.matte(1004)


def test_a_host_is_told_which_edges_there_are() -> None:
    assert information().settings["finish.edges"]["choices"] == ["learned", "guided", "off"]
