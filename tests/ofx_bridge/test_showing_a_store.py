"""A node without keys and state shows the mattes of a shot store and changes nothing in it.

Programs that make a store for the effect to show rely on this (ofx_bridge/EFFECT.md).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stm_plugin.planning.values import Request
from stm_plugin.settings import Settings
from stm_plugin.shot.propagate import RunOptions, propagate
from stm_plugin.shot.shot import Shot
from tests.conftest import write_exr
from tests.hosts.ofx_fixtures import FIRST, HEIGHT, WIDTH, EngineHome, disc, picture
from tests.hosts.ofx_host import (
    ALPHA,
    FILTER,
    GENERAL,
    OK,
    Clip,
    Effect,
    FloatArray,
    OfxHost,
    box_scaled,
    nodes_of,
)
from tests.ofx_bridge.test_effect_against_files import HALF_STEP, read_alpha

LAST = FIRST + 4
KEY = FIRST + 2
OBJECTS = 6
"""More than a mask input has channels."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `x.stmshot` and its mattes: computed from the key to the end, and not before the key."""
    folder = tmp_path_factory.mktemp("made")
    for frame in range(FIRST, LAST + 1):
        write_exr(folder / f"plate.{frame}.exr", picture(frame)[..., :3])
    propagate(
        str(folder / "plate.####.exr"),
        {KEY: {"matte": disc(KEY)[..., 0]}},
        str(folder / "matte.####.exr"),
        settings=Settings(working_size=WIDTH),
        request=Request(FIRST, LAST, "forward"),
        run=RunOptions(folder / "x.stmshot"),
    )
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of the store for one test. The plate is not copied."""
    copy = tmp_path / "x.stmshot"
    shutil.copytree(made / "x.stmshot", copy)
    return copy


def shower(host: OfxHost, store: Path, context: str = GENERAL, **values: object) -> Effect:
    """A node as another program makes it: only the store is set."""
    host.options.project = (float(WIDTH), float(HEIGHT))
    source = Clip(picture, frames=(FIRST, LAST), size=(WIDTH, HEIGHT))
    return host.create({"Source": source}, context, {"shotStore": str(store), **values})


def contents(store: Path) -> dict[str, str]:
    """The content of a store: file -> hash, without the lock's file, which changes with every user."""
    files = sorted(one for one in store.rglob("*") if one.is_file() and one.name != "LOCK")
    return {str(one.relative_to(store)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def matte_of(node: Effect, frame: int, **options: object) -> FloatArray:
    """The rendered matte, (h, w)."""
    status, image = node.render(frame, **options)  # type: ignore[arg-type]
    assert status == OK, (node.persistent, node.host.messages)
    return image.picture()[..., -1]


@pytest.mark.parametrize("context", [GENERAL, FILTER])
def test_the_mattes_of_the_store_are_shown_and_nothing_is_changed(
    host: OfxHost, engine: EngineHome, made: Path, store: Path, context: str
) -> None:
    before = contents(store)
    node = shower(host, store, context)
    with nodes_of(host, node):
        for frame in (LAST, KEY, LAST - 1, KEY + 1, LAST):
            expected = read_alpha(made / f"matte.{frame}.exr")
            np.testing.assert_allclose(matte_of(node, frame), expected, atol=HALF_STEP)
            np.testing.assert_allclose(matte_of(node, frame, in_order=True), expected, atol=HALF_STEP)
        small = matte_of(node, LAST, scale=0.5)
        expected = box_scaled(read_alpha(made / f"matte.{LAST}.exr")[..., None], 2)[..., 0]
        np.testing.assert_allclose(small, expected, atol=HALF_STEP)
        assert node.value("keyFrames") == "" and node.value("state") == ""
    assert contents(store) == before


@pytest.mark.parametrize(
    "project", [(WIDTH / 2, HEIGHT / 2), (2.0 * WIDTH, 2.0 * HEIGHT), (WIDTH, HEIGHT / 3)]
)
def test_the_matte_lies_right_whatever_the_hosts_own_format_is(
    host: OfxHost, engine: EngineHome, made: Path, store: Path, project: tuple[float, float]
) -> None:
    node = shower(host, store)
    node.properties.set("OfxImageEffectPropProjectSize", *project)
    with nodes_of(host, node):
        expected = read_alpha(made / f"matte.{LAST}.exr")
        np.testing.assert_allclose(matte_of(node, LAST), expected, atol=HALF_STEP)
        part = matte_of(node, LAST, window=(20, 5, 50, 40))[HEIGHT - 40 : HEIGHT - 5, 20:50]
        np.testing.assert_allclose(part, expected[HEIGHT - 40 : HEIGHT - 5, 20:50], atol=HALF_STEP)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_frame_that_the_store_lacks_is_an_error_and_is_not_computed(
    host: OfxHost, engine: EngineHome, store: Path, in_order: bool
) -> None:
    before = contents(store)
    node = shower(host, store)
    with nodes_of(host, node):
        for frame in (FIRST, LAST + 1):
            node.clips["Source"].source = Clip(picture, frames=(FIRST, LAST + 1), size=(WIDTH, HEIGHT))
            assert node.render(frame, in_order=in_order)[0] != OK
            assert node.persistent is not None
            assert f"frame {frame}" in node.persistent and str(store) in node.persistent
            assert "only shows" in node.persistent
    assert contents(store) == before


def test_a_stale_frame_is_an_error_and_not_the_matte_of_before(
    host: OfxHost, engine: EngineHome, store: Path
) -> None:
    node = shower(host, store)
    changed = disc(KEY)[..., 0] * np.float32(0.5)
    with nodes_of(host, node):
        was = matte_of(node, LAST)
        with Shot.open(store) as shot:
            shot.add_key(KEY, {"matte": changed})
        status, image = node.render(KEY)  # either the new mask or an error, never the old mask
        if status == OK:
            np.testing.assert_allclose(image.picture()[..., 3], changed, atol=HALF_STEP)
        assert node.render(LAST)[0] != OK
        assert node.persistent is not None and f"frame {LAST}" in node.persistent
        assert "stale" in node.persistent and "mask" in node.persistent
        node.set("missingFrames", 1)
        np.testing.assert_array_equal(matte_of(node, LAST), was)


def test_a_store_that_is_not_there_is_named(host: OfxHost, engine: EngineHome, tmp_path: Path) -> None:
    node = shower(host, tmp_path / "gone.stmshot")
    with nodes_of(host, node):
        assert node.render(FIRST)[0] != OK
        assert node.persistent is not None and str(tmp_path / "gone.stmshot") in node.persistent
    assert list(tmp_path.iterdir()) == []


def test_buttons_compute_and_remove_nothing_in_a_store_that_is_only_shown(
    host: OfxHost, engine: EngineHome, store: Path
) -> None:
    before = contents(store)
    node = shower(host, store)
    with nodes_of(host, node):
        for button in ("propagateForward", "propagateBackward", "propagateBoth", "deleteKey"):
            assert node.press(button, KEY) != OK
            assert node.persistent is not None
            assert "only shows" in node.persistent or "is no key" in node.persistent
        assert node.press("stop", KEY) == OK
    assert contents(store) == before


def test_a_store_is_shown_while_its_owner_works_in_it(
    host: OfxHost, engine: EngineHome, tmp_path: Path
) -> None:
    store = tmp_path / "owned.stmshot"
    host.options.project = (float(WIDTH), float(HEIGHT))
    clips = {
        "Source": Clip(picture, frames=(FIRST, LAST), size=(WIDTH, HEIGHT)),
        "Mask": Clip(disc, frames=(FIRST, LAST), size=(WIDTH, HEIGHT), components=ALPHA),
    }
    owner = host.create(clips, saved={"shotStore": str(store), "workingSize": WIDTH})
    node = shower(host, store)
    with nodes_of(host, owner, node):
        assert owner.press("setKey", FIRST) == OK, owner.persistent
        np.testing.assert_array_equal(matte_of(node, FIRST), disc(FIRST)[..., 0])
        assert node.render(LAST)[0] != OK
        assert owner.press("propagateForward", FIRST) == OK, owner.persistent
        np.testing.assert_array_equal(matte_of(node, LAST), matte_of(owner, LAST))
        assert node.persistent is None


def test_any_object_of_a_store_can_be_shown(host: OfxHost, engine: EngineHome, tmp_path: Path) -> None:
    masks: dict[str, FloatArray] = {}
    for number in range(OBJECTS):
        mask = np.zeros((HEIGHT, WIDTH), np.float32)
        mask[8:24, 8 * number : 8 * number + 6] = 1.0
        masks[f"object{number}"] = mask
    write_exr(tmp_path / f"plate.{FIRST}.exr", picture(FIRST)[..., :3])
    propagate(
        str(tmp_path / f"plate.{FIRST}.exr"),
        {FIRST: masks},
        str(tmp_path / "matte.####.exr"),
        settings=Settings(working_size=WIDTH),
        run=RunOptions(tmp_path / "many.stmshot"),
    )
    node = shower(host, tmp_path / "many.stmshot")
    with nodes_of(host, node):
        for name, mask in masks.items():
            node.set("outputObject", name)
            np.testing.assert_allclose(matte_of(node, FIRST), mask, atol=HALF_STEP)
        node.set("outputObject", "nobody")
        assert node.render(FIRST)[0] != OK
        assert node.persistent is not None and "nobody" in node.persistent


def test_set_key_makes_a_shown_store_the_nodes_own(host: OfxHost, engine: EngineHome, store: Path) -> None:
    node = shower(host, store, workingSize=WIDTH)
    source = node.clips["Source"].source
    assert source is not None
    source.read = lambda frame: np.concatenate([picture(frame)[..., :3], disc(frame)], axis=-1)
    node.set("maskFrom", 1)
    with nodes_of(host, node):
        assert node.press("setKey", LAST) == OK, node.persistent
        assert node.value("keyFrames") == f"{KEY}, {LAST}"
        assert json.loads(node.value("state"))["keys"] == [KEY, LAST]
        np.testing.assert_array_equal(matte_of(node, LAST), disc(LAST)[..., 0])
