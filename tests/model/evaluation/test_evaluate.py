"""Folders of results and runs of a network are measured by the protocols of DAVIS and YouTube-VOS."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.data.davis import find_sequences
from model.data.pictures import Labels, read_labels, write_labels
from model.evaluation.evaluate import NetworkSegmenter, evaluate_network, evaluate_results
from model.inference.fast_network import FastNetwork
from model.network.memory import MemoryRule
from tests.reference.samples import FRAMES, HEIGHT, WIDTH, first_masks, lively_network, texture
from tests.reference.samples import PlainModules as Plain
from tests.reference.stm import propagate

SHAPE = (60, 90)


def boxes(*lefts: int | None) -> Labels:
    """(60, 90): a 20 x 20 box of label k at the k-th left edge; None for a missing box."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for label, left in enumerate(lefts, start=1):
        if left is not None:
            labels[20:40, left : left + 20] = label
    return labels


def write_video(root: Path, name: str, frames: Iterable[Labels | None]) -> None:
    for number, labels in enumerate(frames):
        picture = root / "JPEGImages" / name / f"{number:05}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SHAPE[1], SHAPE[0]), (20 * number, 0, 0)).save(picture)
        if labels is not None:
            write_labels(root / "Annotations" / name / f"{number:05}.png", labels)


def write_results(root: Path, name: str, frames: Iterable[Labels]) -> None:
    for number, labels in enumerate(frames):
        write_labels(root / name / f"{number:05}.png", labels)


class Hold:
    """A segmenter whose masks never move."""

    def __init__(self) -> None:
        self.given: Mapping[int, Labels] = {}

    def __call__(self, pictures: Iterable[Tensor], given: Mapping[int, Labels]) -> Iterator[Labels]:
        self.given = given
        labels = np.zeros_like(given[0])
        for number, _ in enumerate(pictures):
            labels = np.where(given.get(number, np.zeros_like(labels)) > 0, given.get(number, labels), labels)
            yield labels


def test_davis_leaves_out_the_first_and_the_last_frame(tmp_path: Path) -> None:
    truth = [boxes(10)] * 5
    write_video(tmp_path / "set", "bear", truth)
    # Right on the two frames that do not count, ten columns off on the first of the others: J is 1/3.
    write_results(tmp_path / "out", "bear", [boxes(50), boxes(20), boxes(10), boxes(10), boxes(50)])
    evaluation = evaluate_results(find_sequences(tmp_path / "set"), tmp_path / "out")
    (scores,) = evaluation.objects
    assert scores.frames == ("00001", "00002", "00003")
    assert scores.region == pytest.approx((1 / 3, 1, 1))
    assert evaluation.region.mean == pytest.approx(7 / 9)
    assert evaluation.region.recall == pytest.approx(2 / 3)
    assert evaluation.mean == pytest.approx((evaluation.region.mean + evaluation.contour.mean) / 2)


def test_youtube_vos_counts_every_frame_after_an_objects_first(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", [boxes(10), boxes(10, 40), None, boxes(10, 40), boxes(10, 40)])
    write_results(tmp_path / "out", "bear", [boxes(10, 40)] * 5)
    evaluation = evaluate_results(find_sequences(tmp_path), tmp_path / "out", "youtube-vos")
    assert [(each.label, each.frames) for each in evaluation.objects] == [
        (1, ("00001", "00003", "00004")),
        (2, ("00003", "00004")),
    ]
    assert evaluation.mean == 1


def test_an_object_that_enters_last_is_named_and_not_scored(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", [boxes(10), boxes(10), boxes(10), boxes(10, 40)])
    write_results(tmp_path / "out", "bear", [boxes(10)] * 4)
    evaluation = evaluate_results(find_sequences(tmp_path), tmp_path / "out", "youtube-vos")
    assert [each.label for each in evaluation.objects] == [1]
    assert evaluation.not_scored == (("bear", 2),)


def test_a_missing_result_is_an_error_that_names_the_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "set", "bear", [boxes(10)] * 4)
    write_results(tmp_path / "out", "bear", [boxes(10)] * 2)
    with pytest.raises(FileNotFoundError, match=r"00002\.png is missing.*bear, frame 00002"):
        evaluate_results(find_sequences(tmp_path / "set"), tmp_path / "out")


def test_a_result_of_another_size_is_an_error_that_names_both_sizes(tmp_path: Path) -> None:
    write_video(tmp_path / "set", "bear", [boxes(10)] * 4)
    write_results(tmp_path / "out", "bear", [boxes(10)[:50]] * 4)
    with pytest.raises(ValueError, match="frame 00001: the result is 90 x 50, its annotation 90 x 60"):
        evaluate_results(find_sequences(tmp_path / "set"), tmp_path / "out")


def test_too_few_annotations_are_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "set", "bear", [boxes(10), None, boxes(10)])
    write_results(tmp_path / "out", "bear", [boxes(10)] * 3)
    with pytest.raises(ValueError, match="Nothing to measure"):
        evaluate_results(find_sequences(tmp_path / "set"), tmp_path / "out")


def test_every_object_counts_the_same_over_sequences(tmp_path: Path) -> None:
    write_video(tmp_path / "set", "bear", [boxes(10, 50)] * 4)
    write_video(tmp_path / "set", "bus", [boxes(10)] * 9)
    write_results(tmp_path / "out", "bear", [boxes(10, 50)] * 4)
    write_results(tmp_path / "out", "bus", [boxes(None)] * 9)
    evaluation = evaluate_results(find_sequences(tmp_path / "set"), tmp_path / "out")
    assert evaluation.region.mean == pytest.approx(2 / 3)
    assert {name: part.region.mean for name, part in evaluation.by_sequence().items()} == {
        "bear": 1,
        "bus": 0,
    }
    assert evaluation.sorted_region() == [0] * 7 + [1] * 4


def test_scores_of_a_folder_equal_the_public_implementation(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    truth = [boxes(5 + 2 * t, 45 + t) for t in range(8)]
    results = [np.roll(labels, rng.integers(-4, 5, size=2), axis=(0, 1)) for labels in truth]
    write_video(tmp_path / "set", "bear", truth)
    write_results(tmp_path / "out", "bear", results)
    evaluation = evaluate_results(find_sequences(tmp_path / "set"), tmp_path / "out")
    from vos_benchmark.benchmark import VideoEvaluator  # imported here: it brings scikit-image

    public = VideoEvaluator(str(tmp_path / "set" / "Annotations"), str(tmp_path / "out"))
    _, j, f = public("bear")  # in percent
    assert {each.label for each in evaluation.objects} == set(j) == {1, 2}
    for each in evaluation.objects:
        assert each.region_statistics.mean == pytest.approx(j[each.label] / 100, abs=1e-6)
        assert each.contour_statistics.mean == pytest.approx(f[each.label] / 100, abs=1e-3)


def test_tables_are_written_as_csv_and_text(tmp_path: Path) -> None:
    write_video(tmp_path / "set", "bear", [boxes(10, 50)] * 5)
    write_results(tmp_path / "out", "bear", [boxes(10, 50)] * 5)
    evaluation = evaluate_results(find_sequences(tmp_path / "set"), tmp_path / "out")
    files = evaluation.write_csv(tmp_path / "tables")
    rows = {path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in files}
    assert rows["global"][0]["protocol"] == "davis"
    assert float(rows["global"][0]["J&F"]) == 1
    assert [row["object"] for row in rows["per_object"]] == ["1", "2"]
    assert [row["sequence"] for row in rows["per_sequence"]] == ["bear"]
    assert len(rows["per_frame"]) == 6
    lines = evaluation.table().splitlines()
    assert " ".join(lines[0].split()) == "J&F J mean J recall J decay F mean F recall F decay"
    assert lines[-1].split() == ["mean", "100.0", "100.0", "100.0", "0.0", "100.0", "100.0", "0.0"]
    assert len({len(line) for line in lines}) == 1


def test_a_run_begins_with_the_first_annotated_frame(tmp_path: Path) -> None:
    write_video(tmp_path, "bear", [None, None, boxes(10), boxes(10, 40), boxes(10, 40), boxes(10, 40)])
    segmenter = Hold()
    seen: list[tuple[str, int, int]] = []
    evaluation = evaluate_network(
        find_sequences(tmp_path),
        segmenter,
        "youtube-vos",
        results=tmp_path / "out",
        progress=lambda name, done, count: seen.append((name, done, count)),
    )
    assert sorted(segmenter.given) == [0, 1]
    assert set(np.unique(segmenter.given[1])) == {0, 2}
    assert evaluation.mean == 1
    assert evaluation.seconds_per_frame is not None
    assert seen == [("bear", done, 4) for done in range(1, 5)]
    assert sorted(path.stem for path in (tmp_path / "out" / "bear").iterdir()) == [
        f"{n:05}" for n in range(2, 6)
    ]
    assert np.array_equal(read_labels(tmp_path / "out" / "bear" / "00005.png"), boxes(10, 40))


def test_a_run_without_pictures_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path, "bear", [boxes(10)] * 4)
    with pytest.raises(ValueError, match="no picture"):
        evaluate_network(find_sequences(tmp_path), Hold())


def test_a_run_on_a_given_clip_with_an_object_that_enters_late(shared_data: Path) -> None:
    evaluation = evaluate_network(find_sequences(shared_data / "clips" / "caps"), Hold(), "youtube-vos")
    assert [(each.label, each.frames[0], len(each.frames)) for each in evaluation.objects] == [
        (1, "frame_000014", 4),
        (2, "frame_000043", 2),
    ]
    assert 0 < evaluation.region.mean < 1


def labels_of(masks: Tensor) -> Labels:
    """(K, H, W) masks -> (H, W) labels."""
    background = torch.full((1, *masks.shape[1:]), 0.5)
    return torch.cat([background, masks]).argmax(dim=0).numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> FastNetwork:
    return FastNetwork(lively_network("stm-lite"))


@pytest.mark.parametrize("rule", ["first", "previous", "every:5"])
def test_network_segmenter_gives_the_labels_of_the_reference(network: FastNetwork, rule: str) -> None:
    given = labels_of(first_masks())
    masks = torch.stack([torch.from_numpy(given == label).float() for label in (1, 2, 3)])
    expected = propagate(
        Plain(lively_network("stm-lite")),
        texture(1),
        masks,
        rule,
        network.previous_frame_cap,
        network.key_weight,
        network.shrink_guard,
    )
    first, *got = NetworkSegmenter(network, MemoryRule.parse(rule), None)(texture(1), {0: given})
    assert np.array_equal(first, given)
    assert len(got) == FRAMES - 1
    for labels, probabilities in zip(got, expected, strict=True):
        ties = probabilities.topk(2, dim=0).values.diff(dim=0)[0].abs() < 1e-3
        assert ((torch.from_numpy(labels) == probabilities.argmax(dim=0)) | ties).all()


def test_an_object_that_enters_late_changes_nothing_before(network: FastNetwork) -> None:
    masks = labels_of(first_masks())
    early, late = np.where(masks == 1, 5, 0).astype(np.uint8), np.where(masks == 2, 9, 0).astype(np.uint8)
    segmenter = NetworkSegmenter(network, MemoryRule.parse("every:2"), None)
    alone = list(segmenter(texture(1)[:8], {0: early}))
    both = list(segmenter(texture(1)[:8], {0: early, 3: late}))
    for number in range(3):
        assert np.array_equal(alone[number], both[number])
    assert np.array_equal(both[3] == 9, late == 9)  # what is given is kept
    assert all(set(np.unique(labels)) <= {0, 5, 9} for labels in both)
    assert any((labels == 9).any() for labels in both[4:])


@pytest.mark.parametrize("short_side", [32, 480])
def test_labels_have_the_size_of_the_picture_and_not_the_working_size(
    network: FastNetwork, short_side: int
) -> None:
    given = labels_of(first_masks())
    segmenter = NetworkSegmenter(network, MemoryRule.parse("first"), short_side)
    results = list(segmenter(texture(1)[:3], {0: given}))
    assert [labels.shape for labels in results] == [(HEIGHT, WIDTH)] * 3
    assert np.array_equal(results[0], given)


def test_a_mask_of_another_size_than_its_picture_is_refused(network: FastNetwork) -> None:
    segmenter = NetworkSegmenter(network, MemoryRule.parse("first"))
    with pytest.raises(ValueError, match="a mask of 90 x 60 was given for a picture of 91 x 58"):
        list(segmenter(texture(1)[:2], {0: boxes(10)}))
