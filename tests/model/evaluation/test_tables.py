"""The paper's tables and the curve of figure 7 are made correctly from evaluations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.davis import find_sequences
from model.data.pictures import write_labels
from model.evaluation.evaluate import Evaluation, ObjectScores
from model.evaluation.tables import (
    TABLE_5_RULES,
    Comparison,
    by_group,
    category_groups,
    compare_memory_rules,
    compare_weights,
    overall_of_groups,
)
from model.inference.fast_network import FastNetwork
from tests.reference.samples import first_masks, lively_network, texture


def evaluation(*objects: tuple[str, int, float, float]) -> Evaluation:
    """An evaluation of objects (sequence, label, J, F), each on two frames."""
    return Evaluation(
        "youtube-vos",
        tuple(ObjectScores(name, label, ("1", "2"), (j, j), (f, f)) for name, label, j, f in objects),
    )


def test_seen_and_unseen_categories_are_told_apart(tmp_path: Path) -> None:
    def write(name: str, objects: dict[str, dict[str, str]]) -> Path:
        videos = {
            video: {"objects": {label: {"category": category} for label, category in things.items()}}
            for video, things in objects.items()
        }
        (tmp_path / name).write_text(json.dumps({"videos": videos}))
        return tmp_path / name

    training = write("train.json", {"t1": {"1": "dog"}, "t2": {"1": "cat", "2": "dog"}})
    validation = write("valid.json", {"a": {"1": "dog", "2": "eagle"}, "b": {"1": "cat"}})
    groups = category_groups(validation, training)
    assert groups == {("a", 1): "seen", ("a", 2): "unseen", ("b", 1): "seen"}
    parts = by_group(evaluation(("a", 1, 0.8, 0.6), ("a", 2, 0.2, 0.4), ("b", 1, 0.6, 0.4)), groups)
    assert (parts["seen"].region.mean, parts["seen"].contour.mean) == pytest.approx((0.7, 0.5))
    assert (parts["unseen"].region.mean, parts["unseen"].contour.mean) == pytest.approx((0.2, 0.4))
    assert overall_of_groups(parts) == pytest.approx((0.7 + 0.5 + 0.2 + 0.4) / 4)


def test_sorted_curve_is_written_as_numbers_and_as_a_picture(tmp_path: Path) -> None:
    good = Evaluation(
        "davis", (ObjectScores("a", 1, tuple("12345"), (0.0, 1.0, 0.5, 0.25, 0.75), (1.0,) * 5),)
    )
    comparison = Comparison("memory rule", {"first": good, "every:5": evaluation(("a", 1, 0.9, 0.9))})
    table, picture = comparison.write_curves(tmp_path)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 101
    assert [float(rows[percent]["first"]) for percent in (0, 25, 50, 100)] == pytest.approx([0, 0.25, 0.5, 1])
    assert {float(row["every:5"]) for row in rows} == {0.9}
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 16) or []}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours  # a line for each


def test_memory_rules_and_weights_are_compared_with_their_time(tmp_path: Path) -> None:
    masks = np.zeros((58, 91), dtype=np.uint8)
    masks[first_masks()[0].numpy() > 0.5] = 1
    for number, picture in enumerate(texture(1)[:6]):
        path = tmp_path / "JPEGImages" / "drift" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(path)
        write_labels(tmp_path / "Annotations" / "drift" / f"{number:05}.png", np.roll(masks, number, axis=1))
    sequences = find_sequences(tmp_path)
    engine = FastNetwork(lively_network("stm-lite"))
    comparison = compare_memory_rules(sequences, engine)
    assert tuple(comparison.rows) == TABLE_5_RULES
    assert len({row.region.mean for row in comparison.rows.values()}) > 1
    assert all((row.seconds_per_frame or 0) > 0 for row in comparison.rows.values())
    table = comparison.write_csv(tmp_path / "table5.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["memory rule"] for row in rows] == list(TABLE_5_RULES)
    assert float(rows[0]["J mean"]) == pytest.approx(comparison.rows["first"].region.mean, abs=1e-6)
    lines = comparison.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TABLE_5_RULES)
    again = compare_weights(sequences, {"full": engine}, "first")
    assert again.rows["full"].objects == comparison.rows["first"].objects
