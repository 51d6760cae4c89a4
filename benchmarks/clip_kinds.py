"""What each kind of training clip gains: short runs with everything, and with one kind left out.

    python benchmarks/clip_kinds.py DATA OUT [--only NAME ...]

Each run is of `docs/recipes/what-clips-gain.toml`. OUT gets a folder for each run and `NAME.safetensors`; a
stopped run goes on. Two runs with everything differ by their seed only, so their difference is chance.
Measure them with

    python benchmarks/validation.py DATA OUT/scores --weights stm-lite OUT/*.safetensors --of-a-kind 6 ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.training.recipe import export, read_config, train
from model.weights_file import Manifest

RECIPE = Path(__file__).parents[1] / "docs" / "recipes" / "what-clips-gain.toml"
OLD, NEW = ("humans", "horses", "clothing"), ("duts", "ecssd")
"""Folders of stills: those that `stm-lite` has seen, and the new ones."""

RUNS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "all-again": {"seed": 1},
    "no-made-up": {"clip": {"made_up_share": 0.0}},
    "no-turning": {"scene": {"turn_chance": 0.0}},
    "no-entering": {"scene": {"enter_chance": 0.0}},
    "no-growing": {"scene": {"grow_chance": 0.0}},
    "no-look-alikes": {"scene": {"look_alike_chance": 0.0}},
    "no-smoke": {"scene": {"smoke_chance": 0.0}},
    "no-thin": {"scene": {"thin_share": 0.0}},
    "no-carried": {"scene": {"carry_chance": 0.0}, "clip": {"worn_chance": 0.0}},
    "no-new-stills": {"without": NEW},
    "no-instances": {"without": ("instances",)},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.only:
        _run(name, given.data, given.out)


def _run(name: str, data: Path, out: Path) -> None:
    written = out / f"{name}.safetensors"
    if written.exists():
        return
    changes = dict(RUNS[name])
    without = changes.pop("without", ())
    scene, clip = changes.pop("scene", {}), changes.pop("clip", {})
    config = read_config("video", RECIPE)
    weights = dict(zip((*NEW, *OLD, "instances"), config.still_weights, strict=True))
    kept = {folder: weight for folder, weight in weights.items() if folder not in without}
    config = read_config(
        "video",
        RECIPE,
        videos=[str(data / "davis2016_train")],
        stills=[str(data / "stills" / folder) for folder in kept if folder != "instances"],
        instances=[str(data / "stills" / "instances")] if "instances" in kept else [],
        still_weights=list(kept.values()),
        clip={**config.to_dict()["clip"], **clip, "scene": {**config.to_dict()["clip"]["scene"], **scene}},
        **changes,
    )
    train(out / name, config, progress=lambda trainer, losses: _say(name, trainer.step, float(losses.iou)))
    export(out / name, Manifest(name, "", "in house", ("a short run",), ""), written)


def _say(name: str, step: int, iou: float) -> None:
    print(f"{name}: step {step}, IoU {iou:.2f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
