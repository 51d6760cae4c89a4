"""What each kind of training clip gains: short runs with one kind of made-up clips each.

    python benchmarks/clip_kinds.py DATA OUT [--only NAME ...]

Each run is of `docs/recipes/what-clips-gain.toml`, with three quarters of its clips from one of `KINDS` of
`model/training/validation.py`. Two runs with plain clips differ by their seed only, so their difference is
chance. `old-stills` and `new-stills` have no made-up clips; only the latter has DUTS, ECSSD and instances.
OUT gets a folder for each run and `NAME.safetensors`; a stopped run goes on. Measure them with

    python benchmarks/validation.py DATA OUT/scores --weights stm-lite OUT/*.safetensors --of-a-kind 6 ...
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.training.recipe import export, read_config, train
from model.training.validation import KINDS
from model.weights_file import Manifest, read_manifest

RECIPE = Path(__file__).parents[1] / "docs" / "recipes" / "what-clips-gain.toml"
NEW, OLD = ("duts", "ecssd"), ("humans", "horses", "clothing")
"""Folders of stills: new ones, and those that `stm-lite` has seen."""
MADE_UP_SHARE = 0.75
RUNS = ("plain-again", *KINDS, "old-stills", "new-stills")


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
    config = read_config("video", RECIPE)
    clip = config.clip
    if name in KINDS or name == "plain-again":
        clip = replace(clip, made_up_share=MADE_UP_SHARE, scene=KINDS.get(name, KINDS["plain"]))
    if name == "carried":
        clip = replace(clip, worn_chance=0.5)
    weights = dict(zip((*NEW, *OLD, "instances"), config.still_weights, strict=True))
    kept = (*NEW, *OLD, "instances") if name == "new-stills" else OLD
    config = replace(
        config,
        videos=(str(data / "davis2016_train"),),
        stills=tuple(str(data / "stills" / folder) for folder in kept if folder != "instances"),
        instances=(str(data / "stills" / "instances"),) if "instances" in kept else (),
        still_weights=tuple(weights[folder] for folder in kept),
        clip=clip,
        seed=int(name == "plain-again"),
    )
    train(out / name, config, progress=lambda trainer, losses: _say(name, trainer.step, float(losses.iou)))
    export(out / name, Manifest(name, "", read_manifest(config.start).licence, ("a short run",)), written)


def _say(name: str, step: int, iou: float) -> None:
    print(f"{name}: step {step}, IoU {iou:.2f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
