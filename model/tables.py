"""The paper's tables 1, 4 and 5 and its figure 7, for our weights and any annotated videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.davis import VideoSequence
from model.evaluate import (
    SCORE_COLUMNS,
    WORKING_SHORT_SIDE,
    Evaluation,
    EvaluationProtocol,
    NetworkSegmenter,
    ObjectScores,
    evaluate_network,
    write_table,
)
from model.inference import FastNetwork
from model.memory import MemoryRule

TABLE_5_RULES = ("first", "previous", "first+previous", "every:5")


def category_groups(meta: Path, training_meta: Path) -> dict[tuple[str, int], str]:
    """`seen` or `unseen` for each (sequence, object label) of a YouTube-VOS `meta.json`.

    Args:
        meta: of the sequences that are evaluated.
        training_meta: of the training set; a category that occurs there is seen.
    """

    def categories(path: Path) -> dict[tuple[str, int], str]:
        videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
        return {
            (name, int(label)): thing["category"]
            for name, video in videos.items()
            for label, thing in video["objects"].items()
        }

    seen = set(categories(training_meta).values())
    return {key: "seen" if category in seen else "unseen" for key, category in categories(meta).items()}


def by_group(evaluation: Evaluation, groups: Mapping[tuple[str, int], str]) -> dict[str, Evaluation]:
    """The scores of each group of objects (table 1)."""
    grouped: dict[str, list[ObjectScores]] = {}
    for scores in evaluation.objects:
        if (scores.sequence, scores.label) in groups:
            grouped.setdefault(groups[scores.sequence, scores.label], []).append(scores)
    return {
        name: Evaluation(evaluation.protocol, tuple(objects)) for name, objects in sorted(grouped.items())
    }


def overall_of_groups(groups: Mapping[str, Evaluation]) -> float:
    """YouTube-VOS's overall score: the mean over groups of J mean and F mean."""
    return float(np.mean([part.mean for part in groups.values()]))


@dataclass(frozen=True)
class Comparison:
    """Several evaluations of the same sequences: rows of table 4 (by weights) or table 5 (by memory rule)."""

    title: str
    rows: Mapping[str, Evaluation]

    def table(self) -> str:
        """For a terminal: scores in percent, seconds per frame where they were measured."""
        width = max(len(self.title), *(len(name) for name in self.rows))
        lines = [f"{self.title.ljust(width)}    J&F      J      F  s/frame"]
        for name, row in self.rows.items():
            scores = "".join(f"{100 * score:7.1f}" for score in (row.mean, row.region.mean, row.contour.mean))
            seconds = "" if row.seconds_per_frame is None else f"{row.seconds_per_frame:9.3f}"
            lines.append(f"{name.ljust(width)}{scores}{seconds}")
        return "\n".join(lines)

    def write_csv(self, path: Path) -> Path:
        """One row per evaluation; scores in [0, 1]."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = (self.title, *SCORE_COLUMNS, "seconds per frame")
        rows = [(name, *row.scores, row.seconds_per_frame) for name, row in self.rows.items()]
        return write_table(path, [head, *rows])

    def write_curves(self, folder: Path) -> tuple[Path, Path]:
        """Figure 7: J of all frames of all objects, sorted, as `sorted_j.csv` and `sorted_j.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        percent = range(101)
        curves = {name: _percentiles(row.sorted_region()) for name, row in self.rows.items()}
        rows = [(p, *(float(curve[p]) for curve in curves.values())) for p in percent]
        table = write_table(folder / "sorted_j.csv", [("percentile", *curves), *rows])
        picture = folder / "sorted_j.png"
        _draw_curves(curves).save(picture)
        return table, picture


def compare_memory_rules(
    sequences: Sequence[VideoSequence],
    engine: FastNetwork,
    rules: Sequence[str] = TABLE_5_RULES,
    protocol: EvaluationProtocol = "davis",
    *,
    short_side: int | None = WORKING_SHORT_SIDE,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Table 5: the same weights under each memory rule, with the time per frame."""
    rows = {}
    for rule in rules:
        segmenter = NetworkSegmenter(engine, MemoryRule.parse(rule), short_side)
        rows[rule] = evaluate_network(sequences, segmenter, protocol, progress=progress)
    return Comparison("memory rule", rows)


def compare_weights(
    sequences: Sequence[VideoSequence],
    engines: Mapping[str, FastNetwork],
    rule: str = TABLE_5_RULES[-1],
    protocol: EvaluationProtocol = "davis",
    *,
    short_side: int | None = WORKING_SHORT_SIDE,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Table 4: several weights (pre-training only, main training only, full, cross) under one memory rule."""
    rows = {}
    for name, engine in engines.items():
        segmenter = NetworkSegmenter(engine, MemoryRule.parse(rule), short_side)
        rows[name] = evaluate_network(sequences, segmenter, protocol, progress=progress)
    return Comparison("weights", rows)


def _percentiles(values: Sequence[float]) -> NDArray[np.float64]:
    """(101,): the value at each percent of the sorted list."""
    return np.percentile(np.asarray(values, dtype=np.float64), np.arange(101))


_CURVE_SIZE = (720, 480)
_CURVE_MARGIN = 48
_CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def _draw_curves(curves: Mapping[str, NDArray[np.float64]]) -> Image.Image:
    width, height = _CURVE_SIZE
    left, right, top, bottom = _CURVE_MARGIN, width - 16, 16, height - _CURVE_MARGIN
    image = Image.new("RGB", _CURVE_SIZE, "white")
    draw = ImageDraw.Draw(image)

    def point(percent: float, value: float) -> tuple[float, float]:
        return left + (right - left) * percent / 100, bottom - (bottom - top) * value

    for tenth in range(0, 11, 2):
        draw.line([point(0, tenth / 10), point(100, tenth / 10)], fill="#dddddd")
        draw.line([point(tenth * 10, 0), point(tenth * 10, 1)], fill="#dddddd")
        x, y = point(0, tenth / 10)
        draw.text((x - 8, y), f"{tenth / 10:.1f}", fill="black", anchor="rm")
        x, y = point(tenth * 10, 0)
        draw.text((x, y + 8), str(tenth * 10), fill="black", anchor="mt")
    draw.text(((left + right) / 2, height - 8), "percentile of frames", fill="black", anchor="mb")
    draw.text((left + 6, top + 2), "J", fill="black")
    for number, (name, curve) in enumerate(curves.items()):
        colour = _CURVE_COLOURS[number % len(_CURVE_COLOURS)]
        draw.line(
            [point(p, float(value)) for p, value in enumerate(curve)], fill=colour, width=2, joint="curve"
        )
        x, y = right - 150, bottom - 20 * (len(curves) - number)
        draw.line([(x - 26, y), (x - 6, y)], fill=colour, width=2)
        draw.text((x, y), name, fill="black", anchor="lm")
    return image
