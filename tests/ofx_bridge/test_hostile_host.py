"""The effect in a host that gives numbers which make no sense: failed in words, and nothing undefined.

`test_sanitized.py` runs these tests again with a binary that ends at the first undefined conversion.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.ofx_fixtures import FIRST, HEIGHT, WIDTH, EngineHome, make_rig
from tests.hosts.ofx_host import FAILED, OK, OfxHost, PropertySet, nodes_of

ABSURD = (math.nan, math.inf, -math.inf, 1e300, -1e300)


@pytest.mark.parametrize("time", ABSURD)
def test_a_hostile_time_is_refused_in_words(host: OfxHost, engine: EngineHome, time: float) -> None:
    rig = make_rig(host)
    rig.node.set("keyFrames", str(FIRST))
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", time) == FAILED
        assert rig.node.persistent is not None and "whole frames" in rig.node.persistent
        assert rig.node.frames_needed(time)["Mask"], "the host gets an answer"


@pytest.mark.parametrize(("axis", "value"), list(itertools.product((0, 1), ABSURD)))
def test_a_hostile_region_is_empty_or_everything(
    host: OfxHost, engine: EngineHome, axis: int, value: float
) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        rig.node.set("useRegion", 1)
        for name, usual in (("regionCorner", (0.0, 0.0)), ("regionSize", (float(WIDTH), float(HEIGHT)))):
            given = [*usual]
            given[axis] = value
            rig.node.set(name, tuple(given))
            if rig.node.press("setKey", FIRST) != OK:
                assert rig.node.persistent is not None and "region" in rig.node.persistent.lower()
            rig.node.set(name, usual)
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent


@pytest.mark.parametrize("value", ABSURD)
def test_a_project_of_a_hostile_size_is_no_format(host: OfxHost, engine: EngineHome, value: float) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        rig.node.properties.set("OfxImageEffectPropProjectSize", value, float(HEIGHT))
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        assert rig.node.render(FIRST)[0] == OK, rig.node.persistent


@pytest.mark.parametrize("frames", [(-math.inf, math.inf), (-1e300, 1e300), (math.nan, 3.0)])
def test_a_hostile_frame_range_is_none(
    host: OfxHost, engine: EngineHome, frames: tuple[float, float]
) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        rig.node.clips["Source"].properties.set("OfxImageEffectPropFrameRange", *frames)
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        rig.node.press("stop", FIRST)  # it waits a second for a busy engine, no longer
        assert rig.node.render(FIRST)[0] == OK, rig.node.persistent


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e300, math.inf])
def test_a_hostile_render_scale_is_refused_in_words(host: OfxHost, engine: EngineHome, scale: float) -> None:
    rig = make_rig(host)
    rig.node.set("keyFrames", str(FIRST))
    with nodes_of(host, rig.node):
        given = host.new_set("OfxImageEffectActionRender in")
        given.set("OfxPropTime", float(FIRST))
        given.set("OfxImageEffectPropRenderScale", scale, scale)
        given.set("OfxImageEffectPropRenderWindow", 0, 0, WIDTH, HEIGHT)
        assert host.act("OfxImageEffectActionRender", rig.node, given) == FAILED
        assert rig.node.persistent is not None and "impossible scale" in rig.node.persistent


EDGE = 1 << 31
BOUNDS = [(-EDGE, -EDGE, EDGE - 1, EDGE - 1), (0, 0, EDGE - 1, 1), (9, 9, -9, -9)]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_hostile_bounds_of_an_image_are_refused_in_words(
    host: OfxHost, engine: EngineHome, bounds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(host)
    honest = host.new_image

    def lying(clip: str, *about: Any) -> PropertySet:
        image = honest(clip, *about)
        image.set("OfxImagePropBounds", *bounds)
        return image

    monkeypatch.setattr(host, "new_image", lying)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == FAILED
        assert rig.node.persistent is not None and "impossible bounds" in rig.node.persistent


def test_a_hostile_window_of_a_render_writes_nothing_outside_the_image(
    host: OfxHost, engine: EngineHome, tmp_path: Path
) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        whole = rig.node.render(FIRST)[1].raw()
        status, image = rig.node.render(FIRST, window=(-EDGE, -EDGE, EDGE - 1, EDGE - 1))
        assert status == OK, rig.node.persistent
        assert (image.raw() == whole).all()
