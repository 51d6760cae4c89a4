"""The engine with the shipped weights on real footage: accurate, and smooth between keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model.network.memory import MemoryRule
from stm_plugin.propagation.networks import ready_network
from stm_plugin.settings import FinishSettings, Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray

pytestmark = pytest.mark.slow

FIRST, LAST = 10, 18
SETTINGS = Settings(working_size=240, memory_rule="every:3", finish=FinishSettings(edges="off", sure=0.0))


class Clip:
    """Frames `FIRST` to `LAST` of a clip with an annotation for each."""

    def __init__(self, folder: Path) -> None:
        self.plate = f"{folder}/JPEGImages/frame_######.jpg"
        self._annotations = folder / "Annotations"

    def truth(self, frame: int) -> FloatArray:
        labels = cv2.imread(str(self._annotations / f"frame_{frame:06d}.png"), cv2.IMREAD_GRAYSCALE)
        assert labels is not None
        return (labels > 0).astype(np.float32)

    def mattes(self, folder: Path, keys: tuple[int, ...]) -> dict[int, FloatArray]:
        """Propagated from the true masks of `keys`."""
        plate = PlateDescription("files", self.plate, frame_range=(FIRST, LAST))
        with Shot.create(folder, plate, SETTINGS) as shot:
            for key in keys:
                shot.add_key(key, {"chair": self.truth(key)})
            shot.propagate()
            return {frame: shot.matte(frame).mattes["chair"] for frame in range(FIRST, LAST + 1)}


@pytest.fixture(scope="module")
def clip(shared_data: Path) -> Clip:
    return Clip(shared_data / "clips" / "chair")


@pytest.fixture(scope="module")
def runs(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[int, FloatArray]]]:
    folder = tmp_path_factory.mktemp("chair")
    yield {
        "forward": clip.mattes(folder / "forward", (FIRST,)),
        "backward": clip.mattes(folder / "backward", (LAST,)),
        "both": clip.mattes(folder / "both", (FIRST, LAST)),
    }


def overlap(matte: FloatArray, truth: FloatArray) -> float:
    inside, true = matte > 0.5, truth > 0.5
    return float((inside & true).sum() / (inside | true).sum())


def test_the_engine_gives_what_the_network_gives(clip: Clip, runs: dict[str, dict[int, FloatArray]]) -> None:
    network, rule = ready_network(SETTINGS.weights, "cpu", "float32"), MemoryRule.parse(SETTINGS.memory_rule)

    def small(pixels: FloatArray) -> torch.Tensor:
        resized = cv2.resize(pixels, (360, 240), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.atleast_3d(resized).transpose(2, 0, 1).copy())

    def picture(frame: int) -> torch.Tensor:
        pixels = cv2.imread(clip.plate.replace("######", f"{frame:06d}"))
        assert pixels is not None
        return small(pixels[..., ::-1].astype(np.float32) / np.float32(255))

    entry = network.encode_memory(picture(FIRST), small(clip.truth(FIRST)))
    bank = network.new_bank(rule, entry)
    bank.write(0, entry)
    for step, frame in enumerate(range(FIRST + 1, LAST + 1), start=1):
        probabilities = network.segment(network.encode_query(picture(frame)), bank)[1:]
        bank.write(step, network.encode_memory(picture(frame), probabilities))
        resized = cv2.resize(probabilities[0].numpy(), (720, 480), interpolation=cv2.INTER_LINEAR)
        large = np.asarray(resized, np.float32)
        assert np.abs(runs["forward"][frame] - large).mean() < 2e-3
        assert overlap(runs["forward"][frame], large) > 0.97


def test_two_keys_are_no_worse_than_one(clip: Clip, runs: dict[str, dict[int, FloatArray]]) -> None:
    score = {
        name: np.mean([overlap(matte, clip.truth(frame)) for frame, matte in mattes.items()])
        for name, mattes in runs.items()
    }
    assert score["both"] >= max(score["forward"], score["backward"])
    assert score["both"] > 0.5


def test_the_blend_adds_no_step_of_its_own(runs: dict[str, dict[int, FloatArray]]) -> None:
    forward, backward, both = runs["forward"], runs["backward"], runs["both"]
    length = LAST - FIRST
    for frame in range(FIRST + 1, LAST - 1):
        step = np.abs(both[frame + 1] - both[frame]).mean()
        passes = [np.abs(one[frame + 1] - one[frame]).mean() for one in (forward, backward)]
        apart = max(np.abs(forward[one] - backward[one]).mean() for one in (frame, frame + 1))
        assert step <= max(passes) + 2 * (2 / length) * apart


def test_beside_a_key_its_own_pass_rules(runs: dict[str, dict[int, FloatArray]]) -> None:
    for frame, own, other in ((FIRST + 1, "forward", "backward"), (LAST - 1, "backward", "forward")):
        apart = np.abs(runs[own][frame] - runs[other][frame]).mean()
        moved = np.abs(runs["both"][frame] - runs[own][frame]).mean()
        assert moved <= 0.5 * apart, "where the other pass was right on the key, it counts as much, not more"


def test_nothing_pops_at_a_third_key(
    clip: Clip, runs: dict[str, dict[int, FloatArray]], tmp_path: Path
) -> None:
    middle = (FIRST + LAST) // 2
    own = clip.mattes(tmp_path / "own", (middle,))
    three = clip.mattes(tmp_path / "three", (FIRST, middle, LAST))
    for frame in (middle - 1, middle + 1):
        others = [runs[name][frame] for name in ("forward", "backward")]
        apart = max(np.abs(other - own[frame]).mean() for other in others)
        moved = np.abs(three[frame] - own[frame]).mean()
        assert moved <= 0.5 * apart, "beside a key the pass that starts there rules"


def test_finishing_brings_the_matte_nearer_to_the_truth(clip: Clip, tmp_path: Path) -> None:
    plate = PlateDescription("files", clip.plate, frame_range=(FIRST, FIRST + 2))
    settings = replace(SETTINGS, working_size=480)
    with Shot.create(tmp_path / "finish", plate, settings) as shot:
        shot.add_key(FIRST, {"chair": clip.truth(FIRST)})
        shot.propagate()
        truth, frame = clip.truth(FIRST + 2), FIRST + 2
        plain = shot.matte(frame).mattes["chair"]
        shot.set_settings(replace(settings, finish=FinishSettings()))
        assert not shot.plan().compute_steps
        finished = shot.matte(frame).mattes["chair"]
    # The annotation says where the edge is, and nothing of how soft it is: `finishing/test_guided.py` does.
    assert overlap(finished, truth) > overlap(plain, truth)
