"""Weights say what they may be used for, and it is said once before the first run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import Manifest, read_manifest, save_network, shipped_edges, shipped_weights
from stm_plugin.licences import NOTED, note_of_licence
from tests.stm_plugin.command import Command


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STM_LOG_FOLDER", str(tmp_path / "logs"))
    return tmp_path / "logs"


@pytest.mark.parametrize(
    ("licence", "use"),
    [
        ("non-commercial use only (training data: DAVIS CC BY-NC 4.0)", "non-commercial only"),
        ("Non commercial", "non-commercial only"),
        ("CC BY-NC-SA 4.0", "non-commercial only"),
        ("free for commercial use, like the project itself", "commercial use allowed"),
        ("not free for commercial use: research use only", "non-commercial only"),
        ("Not for commercial use", "non-commercial only"),
        ("commercial use is not allowed", "non-commercial only"),
        ("Apache-2.0; commercial use is allowed", "commercial use allowed"),
        ("in house", "see the licence"),
        ("", "see the licence"),
    ],
)
def test_the_words_of_a_licence_say_what_is_allowed(licence: str, use: str) -> None:
    assert Manifest("one", "stm-lite", licence).use == use


def test_all_shipped_weights_say_what_they_may_be_used_for() -> None:
    for path in (*shipped_weights(), *shipped_edges()):
        assert read_manifest(path).use != "see the licence", path


def test_non_commercial_weights_are_noted_once(logs: Path) -> None:
    note = note_of_licence("stm-lite")
    assert note is not None and "non-commercial" in note and "--weights stm-lite-free" in note
    assert note_of_licence("stm-lite") is None
    assert (logs / NOTED).read_text().split() == [read_manifest("stm-lite").sha256]


def test_where_nothing_can_be_kept_the_note_comes_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STM_LOG_FOLDER", str(tmp_path / "file"))
    assert note_of_licence("stm-lite") is not None
    assert note_of_licence("stm-lite") is not None


def test_released_weights_are_noted_without_being_read(tmp_path: Path, logs: Path) -> None:
    path = tmp_path / "STM_weights.pth"
    path.write_bytes(b"tensors")
    note = note_of_licence(str(path))
    assert note is not None and "CC BY-NC-SA 4.0" in note
    assert note_of_licence(str(path)) is None


def test_other_weights_have_no_note(tmp_path: Path, logs: Path) -> None:
    path = tmp_path / "own.safetensors"
    network = SpaceTimeMemoryNetwork(network_config("stm-lite"))
    save_network(network, Manifest("own", "stm-lite", "in house"), path)
    assert note_of_licence(str(path)) is None
    assert note_of_licence(str(tmp_path / "missing")) is None
    assert not logs.exists()


def test_info_says_what_weights_may_be_used_for(stm: Command) -> None:
    assert "non-commercial only" in stm("info").out
    found = {one["name"]: one["use"] for one in json.loads(stm("info", "--json").out)["weights"]}
    assert found["stm-lite"] == "non-commercial only"
    assert found["stm-lite-free"] == found["edges-lite"] == "commercial use allowed"
