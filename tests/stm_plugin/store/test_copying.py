"""A store made from another one has its results, recomputes nothing, and never changes the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stm_plugin.errors import StoreError
from stm_plugin.planning.values import Request
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.copying import copy_store
from stm_plugin.store.description import PlateDescription
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

SETTINGS = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene")
FRAMES = range(1001, 1006)


@pytest.fixture
def original(tmp_path: Path, make_plate: Callable[..., str]) -> Path:
    """A store whose mattes are all computed."""
    plate = PlateDescription("files", make_plate(frames=FRAMES))
    shot = Shot.create(tmp_path / "original", plate, SETTINGS, network=CountingNetwork().factory)
    shot.add_key(1001, tmp_path / "plate.mask.1001.png")
    shot.propagate()
    shot.close()
    return shot.folder


def contents(store: Path) -> dict[Path, bytes]:
    return {one: one.read_bytes() for one in store.rglob("*") if one.is_file() and one.name != "LOCK"}


def test_a_copy_computes_nothing_of_what_the_original_has(original: Path, tmp_path: Path) -> None:
    copy_store(original, tmp_path / "copy")
    network = CountingNetwork()
    with Shot.open(tmp_path / "copy", network=network.factory) as copy:
        copy.propagate()
        mattes = [copy.matte(frame).mattes for frame in FRAMES]
    assert not network.calls
    with Shot.open(original, network=network.factory) as first:
        for frame, found in zip(FRAMES, mattes, strict=True):
            np.testing.assert_equal(found, first.matte(frame).mattes)


def test_what_a_copy_changes_never_reaches_the_original(original: Path, tmp_path: Path) -> None:
    before = contents(original)
    copy_store(original, tmp_path / "copy")
    with Shot.open(tmp_path / "copy", network=CountingNetwork().factory) as copy:
        copy.add_key(1005, tmp_path / "plate.mask.1005.png")
        copy.propagate()
        copy.remove_key(1001)
        copy.clean()
        copy.propagate(Request(1005, 1005))
    assert contents(original) == before


def test_a_copy_takes_no_room_for_results_where_the_disk_has_links(original: Path, tmp_path: Path) -> None:
    copy_store(original, tmp_path / "copy")
    results = list((original / "mattes").rglob("*.prob"))
    assert results and all(one.stat().st_nlink == 2 for one in results)
    journals = [*original.rglob("*.jsonl"), original / "shot.json"]
    assert all(one.stat().st_nlink == 1 for one in journals)


def test_a_copy_is_made_without_links_too(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", no_links)
    copy_store(original, tmp_path / "copy")
    network = CountingNetwork()
    with Shot.open(tmp_path / "copy", network=network.factory) as copy:
        copy.propagate()
    assert not network.calls


def test_a_copy_is_never_made_over_a_shot_or_from_nothing(original: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="already"):
        copy_store(original, original)
    with pytest.raises(StoreError, match="no shot here"):
        copy_store(tmp_path / "nothing", tmp_path / "copy")
    assert not (tmp_path / "copy.stmshot").exists()
