"""The curves of a running training: its log and its evaluations as a table and as a picture.

The log of a resumed run may have steps twice; the later line counts.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from model.evaluation.evaluate import write_table
from model.evaluation.plots import line_chart, stacked

LOG_FILE, SCORES_FILE = "log.csv", "scores.csv"
CURVES_TABLE, CURVES_PICTURE = "curves.csv", "curves.png"

MOST_POINTS = 200
"""Points of a drawn curve: each is the mean of the steps since the point before."""


def write_curves(folder: Path, every: int) -> tuple[Path, Path]:
    """Writes `curves.csv` and `curves.png` from a run's `log.csv` and `scores.csv`.

    The table has a line per `every` steps: loss and IoU of the training clips, as means over these steps, and
    J and F of the held-out videos where the step was evaluated. The picture shows the loss above, and IoU, J
    and F below.

    Args:
        folder: of the run.
        every: steps between two evaluations.

    Raises:
        FileNotFoundError: if the run has no log.
        ValueError: if its log is empty.
    """
    log = _by_step(folder / LOG_FILE)
    scores = _by_step(folder / SCORES_FILE) if (folder / SCORES_FILE).is_file() else {}
    if not log:
        raise ValueError(f"{folder / LOG_FILE}: no step yet")
    last = max(log)
    rows: list[tuple[object, ...]] = [("step", "loss", "IoU", "J", "F")]
    loss, iou = (_means(log, name, every) for name in ("loss", "iou"))
    for step in sorted(loss):
        score = scores.get(step, {})
        rows.append((step, loss[step], iou[step], score.get("J"), score.get("F")))
    table = write_table(folder / CURVES_TABLE, rows)
    bin_size = max(1, -(-last // MOST_POINTS))
    below = {
        "IoU of training clips": sorted(_means(log, "iou", bin_size).items()),
        "J held out": sorted((step, score["J"]) for step, score in scores.items()),
        "F held out": sorted((step, score["F"]) for step, score in scores.items()),
    }
    drawn_loss = sorted(_means(log, "loss", bin_size).items())
    charts = [
        line_chart(
            {"loss of training clips": drawn_loss},
            x_label="step",
            y_label="loss",
            x_range=(0, last),
            y_range=(0, max(value for _, value in drawn_loss)),
        ),
        line_chart(
            {name: curve for name, curve in below.items() if curve},
            x_label="step",
            y_label="IoU, J, F",
            x_range=(0, last),
            y_range=(0, 1),
        ),
    ]
    picture = folder / CURVES_PICTURE
    stacked(charts).save(picture)
    return table, picture


def add_scores(folder: Path, step: int, scores: Mapping[str, float]) -> Path:
    """Adds a line to the run's `scores.csv`; lines of this step and later ones (from before a resume) are
    removed."""
    path = folder / SCORES_FILE
    earlier = _by_step(path) if path.is_file() else {}
    rows: list[Sequence[object]] = [("step", *scores)]
    rows += [(number, *line.values()) for number, line in sorted(earlier.items()) if number < step]
    return write_table(path, [*rows, (step, *scores.values())])


def _by_step(path: Path) -> dict[int, dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {
            int(row["step"]): {name: float(value) for name, value in row.items() if name != "step"}
            for row in csv.DictReader(file)
        }


def _means(log: Mapping[int, Mapping[str, float]], name: str, every: int) -> dict[int, float]:
    """The mean of each `every` steps, by the last step of each part; a last, shorter part counts, too."""
    parts: dict[int, list[float]] = {}
    last = max(log)
    for step, line in log.items():
        parts.setdefault(min(-(-step // every) * every, last), []).append(line[name])
    return {step: float(np.mean(values)) for step, values in parts.items()}
