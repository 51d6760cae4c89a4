"""The paper's tables 1, 4 and 5 and its figure 7, for any weights and any annotated videos.

Tables 2 and 3 are `model.evaluation.evaluate` on DAVIS-2016 and 2017; figure 5 is
`model.evaluation.read_picture`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.data.davis import VideoSequence
from model.evaluation.evaluate import (
    SCORE_COLUMNS,
    WORKING_SHORT_SIDE,
    Evaluation,
    EvaluationProtocol,
    NetworkSegmenter,
    ObjectScores,
    Progress,
    evaluate_network,
    read_scores,
    write_table,
)
from model.evaluation.plots import line_chart
from model.evaluation.protocol import TABLE_5_RULES as TABLE_5_RULES
from model.inference.fast_network import FastNetwork
from model.network.memory import MemoryRule

TABLE_FILE = "table.csv"
CURVE_FILES = ("sorted_j.csv", "sorted_j.png")


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

    def only(self, names: Sequence[str]) -> Comparison:
        """The rows of these names, in this order; all if empty.

        Raises:
            ValueError: if there is no row of a name.
        """
        unknown = [name for name in names if name not in self.rows]
        if unknown:
            raise ValueError(f"{self.title} {unknown[0]}: there is only {', '.join(self.rows)}.")
        return Comparison(self.title, {name: self.rows[name] for name in names or self.rows})

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
        """Figure 7: J of all frames of all objects, sorted, as the two `CURVE_FILES`."""
        folder.mkdir(parents=True, exist_ok=True)
        curves = {name: _percentiles(row.sorted_region()).tolist() for name, row in self.rows.items()}
        rows = [(percent, *(curve[percent] for curve in curves.values())) for percent in range(101)]
        table = write_table(folder / CURVE_FILES[0], [("percentile", *curves), *rows])
        picture = folder / CURVE_FILES[1]
        line_chart(
            {name: list(enumerate(curve)) for name, curve in curves.items()},
            x_label="percentile of frames",
            y_label="J",
            x_range=(0, 100),
            y_range=(0, 1),
        ).save(picture)
        return table, picture

    def write(self, folder: Path) -> list[Path]:
        """Writes `table.csv`, the curves of figure 7, and the CSV files of each row in a separate folder.

        Returns:
            the files.
        """
        files = [self.write_csv(folder / TABLE_FILE), *self.write_curves(folder)]
        for name, row in self.rows.items():
            files += row.write_csv(row_folder(folder, name))
        return files

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """The comparison that `write` wrote.

        Raises:
            FileNotFoundError: if there is none.
        """
        with (folder / TABLE_FILE).open(newline="", encoding="utf-8") as file:
            title, *names = [row[0] for row in csv.reader(file)]
        return cls(title, {name: read_scores(row_folder(folder, name)) for name in names})


def row_folder(folder: Path, row: str) -> Path:
    """The folder of one row's scores and predictions, below a comparison's folder."""
    return folder / _folder_name(row)


def compare_memory_rules(
    sequences: Sequence[VideoSequence],
    engine: FastNetwork,
    rules: Sequence[str] = TABLE_5_RULES,
    protocol: EvaluationProtocol = "davis",
    *,
    short_side: int | None = WORKING_SHORT_SIDE,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Table 5: the same weights under each memory rule, with the time per frame.

    Args:
        out: folder for the files of `Comparison.write` and each row's predictions (`OUT/ROW/NAME/FRAME.png`).
    """
    segmenters = {rule: NetworkSegmenter(engine, MemoryRule.parse(rule), short_side) for rule in rules}
    return _compare("memory rule", sequences, segmenters, protocol, out, progress)


def compare_weights(
    sequences: Sequence[VideoSequence],
    engines: Mapping[str, FastNetwork],
    rule: str = TABLE_5_RULES[-1],
    protocol: EvaluationProtocol = "davis",
    *,
    short_side: int | None = WORKING_SHORT_SIDE,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Table 4: several weights (pre-training only, main training only, full, cross) under one memory rule.

    Args:
        out: as of `compare_memory_rules`.
    """
    memory = MemoryRule.parse(rule)
    segmenters = {name: NetworkSegmenter(engine, memory, short_side) for name, engine in engines.items()}
    return _compare("weights", sequences, segmenters, protocol, out, progress)


def _compare(
    title: str,
    sequences: Sequence[VideoSequence],
    segmenters: Mapping[str, NetworkSegmenter],
    protocol: EvaluationProtocol,
    out: Path | None,
    progress: Progress | None,
) -> Comparison:
    rows: dict[str, Evaluation] = {}
    for name, segmenter in segmenters.items():

        def row_progress(sequence: str, done: int, count: int, row: str = name) -> None:
            if progress is not None:
                progress(f"{row}: {sequence}", done, count)

        results = row_folder(out, name) if out is not None else None
        rows[name] = evaluate_network(sequences, segmenter, protocol, results=results, progress=row_progress)
        if out is not None:  # after every row, so that a stopped run keeps its finished rows
            Comparison(title, rows).write(out)
    return Comparison(title, rows)


def _percentiles(values: Sequence[float]) -> NDArray[np.float64]:
    """(101,): the value at each percent of the sorted list."""
    return np.percentile(np.asarray(values, dtype=np.float64), np.arange(101))


def _folder_name(row: str) -> str:
    """A row's name in a form for every file system: `every:5` is `every-5`."""
    return re.sub(r"[^\w.+-]", "-", row)
