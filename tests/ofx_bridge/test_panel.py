"""The panel's choices of edges and of foreground colours, and settings that a site locks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.ofx_fixtures import FIRST, LAST, WIDTH, EngineHome, Rig, disc, make_rig, picture
from tests.hosts.ofx_host import OK, Effect, FloatArray, OfxHost, nodes_of

FOREGROUND = 5
LEARNED, OFF = 0, 2
TRUE_COLOUR = np.array([1.6, 0.5, 0.1], np.float32)


@pytest.fixture
def propagated(host: OfxHost, engine: EngineHome) -> Iterator[Rig]:
    """A node with a key on the first frame and all mattes."""
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        yield rig


def rendered(node: Effect, frame: int, scale: float = 1.0) -> FloatArray:
    """The output of a frame, (h, w, 4)."""
    status, image = node.render(frame, scale=scale)
    assert status == OK, node.persistent
    return image.picture()


def test_edges_are_chosen_on_the_node_and_need_no_propagation(propagated: Rig) -> None:
    node = propagated.node
    learned = rendered(node, LAST)[..., 3]
    node.set("edges", OFF)
    plain = rendered(node, LAST)[..., 3]
    assert not np.array_equal(plain, learned)
    assert node.value("status").startswith("8 frames done")
    node.set("edgeWidth", 4.0)
    np.testing.assert_array_equal(rendered(node, LAST)[..., 3], plain)  # it is the width of learned edges
    node.set("edges", LEARNED)
    node.set("edgeWidth", 1.0)
    np.testing.assert_array_equal(rendered(node, LAST)[..., 3], learned)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_foreground_colours_have_no_background_where_the_matte_is_soft(propagated: Rig, scale: float) -> None:
    node = propagated.node
    plain = rendered(node, FIRST, scale)
    node.set("output", FOREGROUND)
    colours = rendered(node, FIRST, scale)
    np.testing.assert_array_equal(colours[..., 3], plain[..., 3])
    soft = (colours[..., 3] > 0.2) & (colours[..., 3] < 0.8)
    assert soft.any()
    error = [float(np.abs(one[soft][:, :3] - TRUE_COLOUR).mean()) for one in (colours, plain)]
    assert error[0] < 0.5 * error[1]
    if scale == 1.0:
        solid = disc(FIRST)[..., 0] == 1
        np.testing.assert_allclose(colours[solid][:, :3], picture(FIRST)[solid][:, :3], rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_locked_settings_are_grey_with_the_reason(
    host: OfxHost, engine: EngineHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "stm.toml"
    site.write_text(
        'working_size = 64\nmemory_rule = "every:3"\nfinish.edges = "off"\nfinish.width = 1.0\n'
        'locked = ["working_size", "memory_rule", "finish.edges", "finish.width"]\n'
    )
    runtime = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))
    monkeypatch.setenv("STM_CONFIG", str(site))
    monkeypatch.setenv("STM_RUNTIME_DIR", str(runtime))
    rig = make_rig(host)
    node = rig.node
    names = ("workingSize", "memoryRule", "memoryEvery", "edges", "edgeWidth")
    try:
        with nodes_of(host, node):
            node.set("workingSize", 2 * WIDTH)
            node.set("edgeWidth", 2.0)
            assert node.press("setKey", FIRST) == OK, node.persistent
            enabled = {name: node.params[name].properties.values.get("OfxParamPropEnabled") for name in names}
            assert all(one == [0] for one in enabled.values()), enabled
            assert [node.value(name) for name in names] == [64, 3, 3, OFF, 1.0]
            assert "working_size is locked" in node.value("status") and str(site) in node.value("status")
            assert node.params["useRegion"].properties.values.get("OfxParamPropEnabled", [1]) == [1]
    finally:
        EngineHome(runtime, engine.home).end()
        shutil.rmtree(runtime, ignore_errors=True)
