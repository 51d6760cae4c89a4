"""The panel's choices of edges and of foreground colours, and settings that a site locks."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass
class Site:
    """An engine of a site with its own configuration.

    Attributes:
        file: the configuration.
        cache: its cache folder.
    """

    file: Path
    cache: Path
    runtime: Path


@pytest.fixture
def site(engine: EngineHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A configuration with defaults that are not locked, and a cache folder; `engine` is not used."""
    file, cache = tmp_path / "stm.toml", tmp_path / "fast"
    file.write_text(
        f'cache_folder = "{cache}"\nworking_size = {WIDTH}\nmemory_rule = "every:3"\n'
        'finish.edges = "off"\nfinish.width = 2.0\n'
    )
    runtime = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))
    monkeypatch.setenv("STM_CONFIG", str(file))
    monkeypatch.setenv("STM_RUNTIME_DIR", str(runtime))
    yield Site(file, cache, runtime)
    EngineHome(runtime, engine.home).end()
    shutil.rmtree(runtime, ignore_errors=True)


def state_of(node: Effect) -> dict[str, Any]:
    """What the node saves of its shot."""
    state: dict[str, Any] = json.loads(node.value("state"))
    return state


def settings_of(store: Path) -> dict[str, Any]:
    """The settings that a store holds."""
    settings: dict[str, Any] = json.loads((store / "shot.json").read_text("utf-8"))["settings"]
    return settings


@pytest.mark.slow
def test_a_new_node_keeps_its_store_where_the_site_says_and_takes_its_defaults(
    host: OfxHost, site: Site, engine: EngineHome
) -> None:
    rig = make_rig(host)
    node = rig.node
    node.set("workingSize", 480)
    names = ("workingSize", "memoryRule", "memoryEvery", "edges", "edgeWidth")
    with nodes_of(host, node):
        node.set("memoryEvery", 7)  # chosen: the site's default does not count
        assert node.press("setKey", FIRST) == OK, node.persistent
        assert [node.value(name) for name in names] == [WIDTH, 3, 7, OFF, 2.0]
        store = site.cache / f"ofx-{state_of(node)['shot']}.stmshot"
        assert state_of(node)["place"] == str(site.cache) and "new" not in state_of(node)
        settings = settings_of(store)
        assert (settings["working_size"], settings["memory_rule"]) == (WIDTH, "every:7")
        assert (settings["finish"]["edges"], settings["finish"]["width"]) == ("off", 1.0)
        assert node.press("propagateForward", FIRST) == OK, node.persistent
        before = rendered(node, LAST)
        saved = node.saved()
    # What is there stays there, whatever the configuration says later.
    site.file.write_text('cache_folder = "/nowhere"\nfinish.edges = "guided"\n')
    EngineHome(site.runtime, engine.home).end()
    again = host.create({"Source": rig.source, "Mask": rig.mask}, saved=saved)
    with nodes_of(host, again):
        np.testing.assert_array_equal(rendered(again, LAST), before)
        assert again.value("edges") == OFF
        assert [one.name for one in site.cache.iterdir()] == [store.name]


@pytest.mark.slow
def test_a_key_that_was_set_before_the_engine_was_there_gets_the_sites_place_and_defaults_too(
    host: OfxHost, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_rig(host).node
    node.set("workingSize", 480)
    monkeypatch.setenv("STM_OFX_KEY_SECONDS", "0.01")
    with nodes_of(host, node):
        assert node.press("setKey", FIRST) == OK, node.persistent
        assert "takes the mask of" in node.value("status") and state_of(node)["new"] is True
        monkeypatch.setenv("STM_OFX_KEY_SECONDS", "300")
        np.testing.assert_allclose(rendered(node, FIRST)[..., 3], disc(FIRST)[..., 0], atol=1e-3)
        store = site.cache / f"ofx-{state_of(node)['shot']}.stmshot"
        assert settings_of(store)["finish"]["edges"] == "off"
        assert node.value("edges") == LEARNED  # a render changes no value
        assert node.press("propagateForward", FIRST) == OK, node.persistent
        assert (node.value("edges"), node.value("workingSize")) == (OFF, WIDTH)
        assert settings_of(store)["finish"]["edges"] == "off"
        assert state_of(node)["place"] == str(site.cache) and "new" not in state_of(node)
