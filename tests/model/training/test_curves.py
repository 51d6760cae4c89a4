"""The curves of a run show the values of its log and evaluations; charts place points correctly."""

from __future__ import annotations

import csv
import doctest
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

import model.evaluation.plots
from model.evaluation.plots import CHART_SIZE, CURVE_COLOURS, line_chart, round_numbers, stacked
from model.training.curves import add_scores, write_curves


def write_log(folder: Path, *lines: tuple[int, float, float]) -> None:
    text = "".join(f"{step},{loss},{iou},0.1\n" for step, loss, iou in lines)
    (folder / "log.csv").write_text("step,loss,iou,seconds\n" + text)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def pixels_of(image: Image.Image, colour: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(image) == ImageColor.getrgb(colour)).all(axis=2))
    return rows, columns


def test_curves_have_the_means_between_evaluations_and_the_scores(tmp_path: Path) -> None:
    write_log(tmp_path, (1, 2.0, 0.1), (2, 1.0, 0.3), (3, 0.8, 0.4), (4, 0.4, 0.6), (5, 0.3, 0.7))
    add_scores(tmp_path, 2, {"J&F": 0.4, "J": 0.5, "F": 0.3})
    add_scores(tmp_path, 4, {"J&F": 0.7, "J": 0.75, "F": 0.65})
    table, picture = write_curves(tmp_path, 2)
    assert read_csv(table) == [
        {"step": "2", "loss": "1.500000", "IoU": "0.200000", "J": "0.500000", "F": "0.300000"},
        {"step": "4", "loss": "0.600000", "IoU": "0.500000", "J": "0.750000", "F": "0.650000"},
        {"step": "5", "loss": "0.300000", "IoU": "0.700000", "J": "", "F": ""},
    ]
    with Image.open(picture) as image:
        assert image.size == (CHART_SIZE[0], 2 * CHART_SIZE[1])


def test_steps_that_were_taken_twice_count_as_they_were_taken_last(tmp_path: Path) -> None:
    write_log(tmp_path, (1, 2.0, 0.1), (2, 9.0, 0.9), (3, 9.0, 0.9), (2, 1.0, 0.3))
    (tmp_path / "scores.csv").write_text("step,J&F,J,F\n1,0.1,0.2,0.3\n2,0.9,0.9,0.9\n3,0.9,0.9,0.9\n")
    add_scores(tmp_path, 2, {"J&F": 0.4, "J": 0.5, "F": 0.3})
    assert [(row["step"], float(row["J"])) for row in read_csv(tmp_path / "scores.csv")] == [
        ("1", 0.2),
        ("2", 0.5),
    ]
    write_log(tmp_path, (1, 2.0, 0.1), (2, 9.0, 0.9), (2, 1.0, 0.3))
    table, _ = write_curves(tmp_path, 2)
    assert [float(row["loss"]) for row in read_csv(table)] == [1.5]


def test_curves_are_drawn_without_held_out_videos_too(tmp_path: Path) -> None:
    write_log(tmp_path, *((step, 1 / step, 0.5) for step in range(1, 500)))
    table, picture = write_curves(tmp_path, 100)
    assert [row["step"] for row in read_csv(table)] == ["100", "200", "300", "400", "499"]
    assert picture.is_file()


def test_a_run_without_a_step_has_no_curves(tmp_path: Path) -> None:
    write_log(tmp_path)
    with pytest.raises(ValueError, match="no step yet"):
        write_curves(tmp_path, 10)


def test_a_chart_puts_points_where_they_belong() -> None:
    chart = line_chart(
        {"a": [(0, 0), (5, 1)], "b": [(5, 0), (10, 0.5)], "c": [(7.5, 0.75)]},
        x_label="x",
        y_label="y",
        x_range=(0, 10),
        y_range=(0, 1),
    )
    assert chart.size == CHART_SIZE
    ends = {}
    for name, colour in zip("abc", CURVE_COLOURS, strict=False):
        rows, columns = pixels_of(chart, colour)
        inside = rows > 28  # below the legend
        ends[name] = (columns[inside].min(), columns[inside].max(), rows[inside].min(), rows[inside].max())
    left, middle, top, bottom = ends["a"]
    width, height = 2 * (middle - left), bottom - top
    assert ends["b"] == pytest.approx((middle, left + width, bottom - height / 2, bottom), abs=3)
    dot = ends["c"]
    assert (dot[0] + dot[1]) / 2 == pytest.approx(left + 0.75 * width, abs=3)
    assert (dot[2] + dot[3]) / 2 == pytest.approx(bottom - 0.75 * height, abs=3)


def test_a_chart_of_equal_values_can_be_drawn_and_one_of_nothing_is_refused() -> None:
    chart = line_chart({"a": [(3, 2), (3, 2)]}, x_label="x", y_label="y")
    assert stacked([chart, chart]).size == (CHART_SIZE[0], 2 * CHART_SIZE[1])
    with pytest.raises(ValueError, match="no points"):
        line_chart({"a": []}, x_label="x", y_label="y")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.13, 0.42, [0.15, 0.2, 0.25, 0.3, 0.35, 0.4]),
        (-3, 2500, [0, 500, 1000, 1500, 2000, 2500]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert round_numbers(low, high) == pytest.approx(expected)


def test_examples_in_the_documentation_hold() -> None:
    found = doctest.testmod(model.evaluation.plots)
    assert found.attempted > 0 and found.failed == 0
