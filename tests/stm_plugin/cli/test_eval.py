"""`stm eval` and its commands: the paper's tables and figures, on a small video with the shipped weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from model.data.pictures import read_labels, write_labels
from model.inference.fast_network import FastNetwork
from stm_plugin.cli.main import app

FRAMES = 6
SHAPE = (64, 96)
SMALL = ("--device", "cpu", "--short-side", "64")

Command = Callable[..., Result]


@pytest.fixture
def stm() -> Command:
    """The command in this process; it must succeed: `stm("eval", DATASET)`."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos in YouTube-VOS layout: `one` has one object, `two` a second one from frame 00002 on."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for name, objects in (("one", 1), ("two", 2)):
        for frame in range(FRAMES):
            labels = np.zeros(SHAPE, dtype=np.uint8)
            labels[np.hypot(rows - 32, columns - 30 - 3 * frame) < 14] = 1
            if objects == 2 and frame >= 2:
                labels[8:24, 60:84] = 2
            colours = np.array([[60, 60, 60], [220, 80, 40], [40, 90, 220]], dtype=np.uint8)
            picture = tmp_path / "videos" / "JPEGImages" / name / f"{frame:05}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours[labels]).save(picture)
            write_labels(tmp_path / "videos" / "Annotations" / name / f"{frame:05}.png", labels)
    return tmp_path / "videos"


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def write_meta(path: Path, categories: dict[str, dict[str, str]]) -> Path:
    frames = {"1": range(0, FRAMES, 5), "2": range(2, FRAMES)}
    path.write_text(
        json.dumps(
            {
                "videos": {
                    video: {
                        "objects": {
                            label: {"category": category, "frames": [f"{n:05}" for n in frames[label]]}
                            for label, category in things.items()
                        }
                    }
                    for video, things in categories.items()
                }
            }
        )
    )
    return path


@pytest.mark.parametrize("words", [("eval",), ("eval", "scores")])
def test_a_data_set_alone_gives_the_scores(
    videos: Path, tmp_path: Path, stm: Command, words: tuple[str]
) -> None:
    said = stm(*words, videos, "--sequence", "two", "--out", tmp_path / "out", *SMALL)
    assert "J mean" in said.stdout and "two" in said.stdout
    objects = read_csv(tmp_path / "out" / "per_object.csv")
    assert [(row["sequence"], row["object"], row["frames"]) for row in objects] == [
        ("two", "1", "4"),  # of six frames the first and the last do not count
        ("two", "2", "2"),  # nor those up to its own first one
    ]
    assert {"J mean", "J recall", "J decay", "F mean", "F recall", "F decay"} <= set(objects[0])
    assert [row["sequence"] for row in read_csv(tmp_path / "out" / "per_sequence.csv")] == ["two"]
    assert len(read_csv(tmp_path / "out" / "per_frame.csv")) == 6
    assert "non-commercial" in said.stderr.replace("\n", " ")
    again = stm("eval", "--results", tmp_path / "out", videos, "--sequence", "two")  # options first, too
    assert again.stdout.splitlines()[-1] == said.stdout.splitlines()[2]


def test_backward_begins_with_the_last_frame(videos: Path, tmp_path: Path, stm: Command) -> None:
    stm("eval", videos, "--sequence", "two", "--backward", "--out", tmp_path / "out", *SMALL)
    frames = [row["frame"] for row in read_csv(tmp_path / "out" / "per_frame.csv") if row["object"] == "1"]
    assert frames == sorted(frames, reverse=True) and len(frames) == FRAMES - 2
    ahead = read_csv(tmp_path / "out" / "per_object.csv")
    assert [row["frames"] for row in ahead] == [str(FRAMES - 2)] * 2  # both are there on the last frame


def test_a_step_leaves_frames_out_in_either_direction(videos: Path, tmp_path: Path, stm: Command) -> None:
    for words, frames in (((), ["00002"]), (("--backward",), ["00003"])):  # of 0, 2, 4, and of 5, 3, 1
        stm("eval", videos, "--sequence", "two", "--step", "2", "--out", tmp_path / "out", *words, *SMALL)
        rows = read_csv(tmp_path / "out" / "per_frame.csv")
        assert [row["frame"] for row in rows if row["object"] == "1"] == frames


def test_the_papers_read_can_be_measured_beside_the_bounded_one(
    videos: Path, tmp_path: Path, stm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[FastNetwork] = []

    def remembered(*given: Any, **named: Any) -> FastNetwork:
        engines.append(FastNetwork(*given, **named))
        return engines[-1]

    monkeypatch.setattr("model.inference.fast_network.FastNetwork", remembered)

    def measured(*words: str) -> str:
        out = tmp_path / "_".join(("out", *words))
        stm("eval", videos, "--sequence", "two", "--out", out, *words, *SMALL)
        return (out / "per_frame.csv").read_text()

    usual = measured()
    assert measured("--previous-frame-cap", "0.5", "--key-weight", "0.3", "--shrink-guard", "0.15") == usual
    assert measured("--previous-frame-cap", "1") != usual
    measured("--key-weight", "0.2", "--shrink-guard", "0.4")
    shares = [(engine.previous_frame_cap, engine.key_weight, engine.shrink_guard) for engine in engines]
    assert shares == [(0.5, 0.3, 0.15), (0.5, 0.3, 0.15), (1.0, 0.3, 0.15), (0.5, 0.2, 0.4)]


def test_a_split_names_the_sequences(videos: Path, tmp_path: Path, stm: Command) -> None:
    (tmp_path / "val.txt").write_text("one\n")
    said = stm("eval", videos, "--split", tmp_path / "val.txt", "--results", videos)
    assert "one" in said.stdout and "two" not in said.stdout and "100.0" in said.stdout


def test_table_1_tells_seen_from_unseen_categories(videos: Path, tmp_path: Path, stm: Command) -> None:
    meta = write_meta(tmp_path / "meta.json", {"one": {"1": "dog"}, "two": {"1": "dog", "2": "eagle"}})
    training = write_meta(tmp_path / "training.json", {"other": {"1": "dog"}})
    options = ("--meta", meta, "--training-meta", training, "--results", videos, "--out", tmp_path / "out")
    said = stm("eval", "table1", videos, *options)
    assert [line.split()[0] for line in said.stdout.splitlines()[1:4]] == ["seen", "unseen", "overall"]
    assert said.stdout.splitlines()[3] == "overall 100.0"
    assert [row["categories"] for row in read_csv(tmp_path / "out" / "table.csv")] == ["seen", "unseen"]


def test_table_4_compares_weights(videos: Path, tmp_path: Path, stm: Command) -> None:
    out = tmp_path / "out"
    options = ("--sequence", "one", "--rule", "first", "--out", out, *SMALL)
    said = stm("eval", "table4", videos, "--weights", "full=stm-lite", "--weights", "stm-lite", *options)
    assert [line.split()[0] for line in said.stdout.splitlines()[:3]] == ["weights", "full", "stm-lite"]
    rows = read_csv(out / "table.csv")
    assert [row["weights"] for row in rows] == ["full", "stm-lite"]
    assert rows[0]["J mean"] == rows[1]["J mean"]
    assert len(list((out / "full" / "one").glob("*.png"))) == FRAMES


def test_table_5_compares_memory_rules_and_figure_7_draws_them_again(
    videos: Path, tmp_path: Path, stm: Command
) -> None:
    out = tmp_path / "table5"
    said = stm("eval", "table5", videos, "--sequence", "one", "--out", out, *SMALL)
    rules = ["first", "previous", "first+previous", "every:5"]
    rows = read_csv(out / "table.csv")
    assert [row["memory rule"] for row in rows] == rules
    assert [line.split()[0] for line in said.stdout.splitlines()[1:5]] == rules
    assert all(float(row["seconds per frame"]) > 0 for row in rows)
    measured = stm("eval", videos, "--sequence", "one", "--results", out / "every-5")
    assert f"{100 * float(rows[3]['J mean']):.1f}" in measured.stdout
    assert list(read_csv(out / "sorted_j.csv")[0]) == ["percentile", *rules]
    again = tmp_path / "again"
    stm("eval", "figure7", out, "--out", again)
    for before, after in zip(read_csv(out / "sorted_j.csv"), read_csv(again / "sorted_j.csv"), strict=True):
        assert [float(v) for v in after.values()] == pytest.approx(
            [float(v) for v in before.values()], abs=2e-6
        )
    stm("eval", "figure7", out, "--out", again, "--rule", "every:5")
    assert (again / "sorted_j.csv").read_text().splitlines()[0] == "percentile,every:5"
    with Image.open(again / "sorted_j.png") as image:
        image.verify()
    with pytest.raises(ValueError, match=r"memory rule every:9: there is only first, .*every:5"):
        stm("eval", "figure7", out, "--out", again, "--rule", "every:9")


def test_figure_7_runs_on_a_data_set(videos: Path, tmp_path: Path, stm: Command) -> None:
    stm("eval", "figure7", videos, "--sequence", "one", "--rule", "first", "--out", tmp_path, *SMALL)
    curve = [float(row["first"]) for row in read_csv(tmp_path / "sorted_j.csv")]
    assert len(curve) == 101 and curve == sorted(curve)


def test_figure_5_shows_where_points_read_from(videos: Path, tmp_path: Path, stm: Command) -> None:
    figure = tmp_path / "deep" / "figure5.png"
    words = ("eval", "figure5", videos, "--sequence", "two", "--rule", "every:2", "--out", figure, *SMALL)
    stm(*words, "--frame", 5, "--point", "40,30", "--point", "70,12")
    rows = read_csv(figure.with_suffix(".csv"))
    assert [row["frame"] for row in rows[:3]] == ["00000", "00002", "00004"]
    assert list(dict.fromkeys(row["query"] for row in rows)) == ["object 1", "point 40,30", "point 70,12"]
    for start in range(0, len(rows), 3):
        assert sum(float(row["share"]) for row in rows[start : start + 3]) == pytest.approx(1, abs=1e-5)
    with Image.open(figure) as image:
        tall = image.height
    stm(*words, "--object", 2)  # the middle frame, and a point inside the object
    rows = read_csv(figure.with_suffix(".csv"))
    assert [row["frame"] for row in rows] == ["00002", "00002"]
    with Image.open(figure) as image:
        assert image.height < tall


def test_a_submission_needs_no_masks_but_the_first_ones(videos: Path, tmp_path: Path, stm: Command) -> None:
    for name, kept in (("one", {0}), ("two", {0, 2})):
        for frame in set(range(FRAMES)) - kept:
            (videos / "Annotations" / name / f"{frame:05}.png").unlink()
    said = stm("eval", "submission", videos, tmp_path / "all", *SMALL)
    assert f"written: {2 * FRAMES} label pictures of 2 sequences" in said.stdout.replace("\n", " ")
    assert set(np.unique(read_labels(tmp_path / "all" / "two" / "00002.png"))) == {0, 1, 2}
    assert 2 not in read_labels(tmp_path / "all" / "two" / "00001.png")
    meta = write_meta(tmp_path / "meta.json", {"one": {"1": "dog"}, "two": {"1": "dog", "2": "eagle"}})
    stm("eval", "submission", videos, tmp_path / "asked", "--meta", meta, *SMALL)
    written = {path.relative_to(tmp_path / "asked").as_posix() for path in tmp_path.glob("asked/*/*.png")}
    assert written == {"one/00000.png", "one/00005.png"} | {f"two/{n:05}.png" for n in (0, 2, 3, 4, 5)}
    meta = write_meta(tmp_path / "meta.json", {"one": {"1": "dog"}})
    with pytest.raises(ValueError, match="two: not among the videos"):
        stm("eval", "submission", videos, tmp_path / "none", "--meta", meta, *SMALL)


def test_wrong_words_are_errors_that_say_what_is_right(videos: Path, tmp_path: Path, stm: Command) -> None:
    figure = ("eval", "figure5", videos, "--out", tmp_path / "f.png", *SMALL)
    with pytest.raises(ValueError, match="--point 3: write it as X,Y"):
        stm(*figure, "--point", "3")
    with pytest.raises(ValueError, match="one has no frame 17: its frames are 00000 to 00005"):
        stm(*figure, "--frame", "17")
    with pytest.raises(ValueError, match="outside the picture of 96 x 64 pixels"):
        stm(*figure, "--point", "200,10")
    with pytest.raises(ValueError, match="unknown memory rule 'sometimes'"):
        stm("eval", "table5", videos, "--rule", "sometimes", *SMALL)
    with pytest.raises(ValueError, match=r"none\.safetensors: no such weights"):
        stm("eval", "table4", videos, "--weights", "cross=none.safetensors", *SMALL)
