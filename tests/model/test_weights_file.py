"""A weights file that cannot be used is refused with its name, the fault and a hint."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import (
    Manifest,
    WeightsFileError,
    load_network,
    read_manifest,
    save_mean,
    save_network,
    shipped_weights,
)

GOOD: dict[str, Any] = {"name": "a", "architecture": "stm-lite", "licence": "mine", "data": ["stills"]}


def weights_with(folder: Path, manifest: object, **tensors: Any) -> Path:
    """A safetensors file with any value as its manifest."""
    path = folder / "weights.safetensors"
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    save_file(tensors or {"one": np.zeros(3, np.float32)}, path, metadata={"manifest": text})
    return path


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        [GOOD],
        7,
        None,
        "",
        "{",
        {},
        {**GOOD, "name": 3},
        {**GOOD, "architecture": None},
        {**GOOD, "licence": ["mine"]},
        {**GOOD, "data": "stills"},
        {**GOOD, "data": [1]},
        {**GOOD, "recipe": {}},
        {**GOOD, "scores": [0.5]},
        {**GOOD, "scores": {"J": "high"}},
        {name: value for name, value in GOOD.items() if name != "licence"},
    ],
)
def test_a_manifest_that_is_none_is_refused_in_words(tmp_path: Path, manifest: object) -> None:
    path = weights_with(tmp_path, manifest)
    for read in (read_manifest, load_network):
        with pytest.raises(WeightsFileError, match="manifest cannot be used") as told:
            read(path)
        assert str(path) in str(told.value) and "get the file again" in str(told.value)


def test_a_manifest_of_a_newer_plug_in_with_more_fields_is_read(tmp_path: Path) -> None:
    found = read_manifest(weights_with(tmp_path, {**GOOD, "colour": "red", "scores": {"J": 1}}))
    assert found.name == "a" and found.scores == {"J": 1} and len(found.sha256) == 64


def test_an_unknown_architecture_is_refused_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = weights_with(tmp_path, {**GOOD, "architecture": "stm-huge"})
    with pytest.raises(WeightsFileError, match=r"stm-huge.*update, or choose other weights") as told:
        load_network(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "folder"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    path = weights_with(tmp_path, GOOD)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "noise":
        path.write_bytes(np.random.default_rng(1).bytes(1000))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(WeightsFileError) as told:
        load_network(path)
    assert str(path) in str(told.value)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_tensors

    state = load_file(shipped_weights()[0])
    name = sorted(state)[0]
    state[name].view(-1)[0] = float("nan")
    path = tmp_path / "nan.safetensors"
    manifest = {**read_manifest().to_dict(), "sha256": ""}
    save_tensors(state, path, metadata={"manifest": json.dumps(manifest)})
    with pytest.raises(WeightsFileError, match="not numbers") as told:
        load_network(path)
    assert str(path) in str(told.value) and name in str(told.value)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_too_little_memory_while_reading_is_not_a_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 774144 bytes.")

    monkeypatch.setattr(torch.Tensor, "float", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_network("stm-lite")


def test_the_refusal_of_a_pickle_does_not_say_how_to_run_it(tmp_path: Path) -> None:
    proof, path = tmp_path / "executed", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"more": Malicious(proof)}, protocol=2))
    with pytest.raises(WeightsFileError) as told:
        load_network(path)
    text = str(told.value)
    assert str(path) in text and "never run" in text
    assert not any(word in text for word in ("weights_only", "safe_globals", "allowlist", "trust"))
    assert not proof.exists()


def test_a_manifest_is_what_it_was() -> None:
    manifest = Manifest("a", "stm-lite", "mine", ("stills",), "short", {"J": 0.5}, "0" * 64)
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def random_weights(path: Path, licence: str, data: str, seed: int, architecture: str = "stm-lite") -> Path:
    torch.manual_seed(seed)
    network = SpaceTimeMemoryNetwork(network_config(architecture))
    save_network(network, Manifest(path.stem, architecture, licence, (data, "backbones")), path, half=False)
    return path


FREE, BOUND, OWN = "free for commercial use", "non-commercial", "in house"


@pytest.mark.parametrize(
    ("licences", "expected"), [((FREE, FREE), FREE), ((FREE, BOUND), BOUND), ((OWN, FREE), OWN)]
)
def test_a_mean_has_the_shares_all_data_and_the_strictest_licence(
    tmp_path: Path, licences: tuple[str, str], expected: str
) -> None:
    one = random_weights(tmp_path / "one.safetensors", licences[0], "cats", 1)
    other = random_weights(tmp_path / "other.safetensors", licences[1], "dogs", 2)
    written = save_mean([(one, 3.0), (other, 1.0)], "both", tmp_path / "both.safetensors")
    mean, manifest = load_network(tmp_path / "both.safetensors")
    assert manifest == written and manifest.licence == expected
    assert manifest.data == ("cats", "backbones", "dogs")
    assert manifest.recipe.startswith("the mean of 0.75 of one (") and "0.25 of other" in manifest.recipe
    states = [load_network(path)[0].state_dict() for path in (one, other)]
    for key, value in mean.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, 0.75 * states[0][key] + 0.25 * states[1][key], atol=2e-3, rtol=2e-3
            )


def test_no_mean_of_one_of_other_networks_or_without_a_share(tmp_path: Path) -> None:
    one = random_weights(tmp_path / "one.safetensors", OWN, "cats", 1)
    wide = random_weights(tmp_path / "wide.safetensors", OWN, "cats", 1, "stm-r50")
    for parts, reason in (
        ([(one, 1.0)], "two weights"),
        ([(one, 1.0), (wide, 0.0)], "above 0"),
        ([(one, 1.0), (wide, 1.0)], "stm-lite and stm-r50"),
    ):
        with pytest.raises(ValueError, match=reason):
            save_mean(parts, "both", tmp_path / "both.safetensors")
    assert not (tmp_path / "both.safetensors").exists()
