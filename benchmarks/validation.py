"""The scores by which weights and rules of the read are chosen (`model/training/validation.py`).

    python benchmarks/validation.py DATA OUT [--weights NAME ...] [--read NAME ...] [--short-side 480]

DATA has `davis2016_train/` and `clips/`. A row is a network with a read. The parts `five` (mean of four
views), `schoolgirls` and `made-up` (thirty clips from seeds that are never trained on) decide, each counting
the same; `chair` and `caps` only report. OUT keeps the results clip by clip: an interrupted run goes on, and
`--only-table` prints what exists on the clips that all rows have. `--of-a-kind 6` adds made-up clips of one
difficulty each (turning, entering, smoke, ...), which only report.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import get_args

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.evaluation.evaluate import NetworkSegmenter
from model.inference.fast_network import FastNetwork, Precision
from model.network.memory import MemoryRule
from model.training.validation import (
    DECIDING,
    KINDS,
    MADE_UP,
    READS,
    REPORTED,
    VIEWS,
    Row,
    ValidationClip,
    choice_score,
    measure,
    measured,
    part_scores,
    validation_clips,
)
from model.weights_file import DEFAULT_WEIGHTS, load_network, read_manifest

RULE = MemoryRule.parse("every:5")


def main() -> None:
    given = _arguments()
    torch.set_num_threads(given.threads)
    rows = [_row(weights, read, given) for weights in given.weights for read in given.read]
    clips = validation_clips(given.data, given.out / "made-up", given.made_up, given.of_a_kind)
    clips = [clip for clip in clips if clip.part != "five" or clip.view in given.view]
    clips = [clip for clip in clips if clip.part in (given.part or [clip.part])]
    if not given.only_table:
        measure(clips, rows, given.out, lambda clip, row: _say(clip, row))
    _print_table(clips, rows, given.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", nargs="+", default=[DEFAULT_WEIGHTS], help="names or files")
    parser.add_argument("--read", nargs="+", choices=READS, default=list(READS))
    parser.add_argument("--view", nargs="+", choices=VIEWS, default=list(VIEWS), help="of the five")
    parser.add_argument("--part", nargs="+", choices=(*DECIDING, *REPORTED, *KINDS), help="only these")
    parser.add_argument("--made-up", type=int, default=MADE_UP, help="number of made-up clips")
    parser.add_argument("--of-a-kind", type=int, default=0, help="number of made-up clips of each difficulty")
    parser.add_argument("--short-side", type=int, default=480)
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-table", action="store_true")
    return parser.parse_args()


def _row(weights: str, read: str, given: argparse.Namespace) -> Row:
    manifest = read_manifest(weights)

    @functools.cache
    def segmenter() -> NetworkSegmenter:
        engine = FastNetwork(
            load_network(weights)[0],
            device=given.device,
            precision=given.precision,
            **READS[read]._asdict(),
        )
        return NetworkSegmenter(engine, RULE, given.short_side)

    identity = f"{manifest.name}-{manifest.sha256[:8]}, {read}, {given.short_side}, {given.precision}"
    return Row(f"{manifest.name}: {read}", identity, segmenter)


def _say(clip: ValidationClip, row: Row) -> None:
    print(f"{clip.sequence.name}, {clip.view}: {row.name}", file=sys.stderr, flush=True)


def _print_table(clips: list[ValidationClip], rows: list[Row], out: Path) -> None:
    """J / F of every row, over the clips that all rows have."""
    results = {row.name: measured(clips, row, out) for row in rows}
    common = [clip for clip in clips if all(clip in of_row for of_row in results.values())]
    print(f"{len(common)} of {len(clips)} clips; J / F in per cent")
    seen = {clip.part for clip in clips}
    names = [part for part in (*DECIDING, *REPORTED, *KINDS) if part in seen]
    print("  ".join([" " * 30, *(name.rjust(11) for name in (*names, "choice", "choice J&F"))]))
    for name, of_row in results.items():
        parts = part_scores({clip: of_row[clip] for clip in common})
        cells = [
            f"{100 * parts[part].region:.1f} / {100 * parts[part].contour:.1f}" if part in parts else "-"
            for part in names
        ]
        if all(part in parts for part in DECIDING):
            score = choice_score(parts)
            cells += [f"{100 * score.region:.1f} / {100 * score.contour:.1f}", f"{100 * score.mean:.2f}"]
        print("  ".join([name.ljust(30), *(cell.rjust(11) for cell in cells)]))


if __name__ == "__main__":
    main()
