"""Figure 5 shows the weights of the network's read, each at its place in the picture."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.data.davis import VideoSequence, find_sequences
from model.data.pictures import read_picture, write_labels
from model.evaluation.evaluate import NetworkSegmenter
from model.evaluation.metrics import BoolArray
from model.evaluation.read_picture import (
    TILE_WIDTH,
    CapturedRead,
    Reading,
    SeenFrame,
    capture,
    draw,
    read_from,
    write_reading,
)
from model.inference.fast_network import FastNetwork
from model.network.memory import MemoryRule
from model.network.read import read_weights, space_time_read
from model.weights_file import load_network
from tests.reference.samples import HEIGHT, WIDTH, first_masks, lively_network, texture

FRAMES = 7


@pytest.fixture(scope="module")
def network() -> FastNetwork:
    return FastNetwork(lively_network("stm-lite"))


@pytest.fixture
def video(tmp_path: Path) -> VideoSequence:
    """Seven frames; object 1 from the first on, object 2 from frame 00002 on."""
    masks = first_masks().numpy() > 0.5
    for number, picture in enumerate(texture(1)[:FRAMES]):
        path = tmp_path / "JPEGImages" / "drift" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(path)
    for number, labels in ((0, masks[0] * 1), (2, masks[1] * 2)):
        write_labels(tmp_path / "Annotations" / "drift" / f"{number:05}.png", labels.astype(np.uint8))
    (sequence,) = find_sequences(tmp_path)
    return sequence


def hand_made(frames: int = 2) -> CapturedRead:
    """A read whose query key matches memory position (1, 3) of the last frame only.

    58 x 91 pixels, padded to 64 x 96: 3 rows above, 2 columns at the left.
    """
    picture, mask = torch.full((3, HEIGHT, WIDTH), 0.5), np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[20:40, 30:50] = True
    keys = [torch.zeros(24, 4) for _ in range(frames)]
    keys[-1][9] = torch.tensor([100.0, 0, 0, 0])
    return CapturedRead(
        query=SeenFrame("q", picture, mask),
        label=1,
        query_key=torch.tensor([1.0, 0, 0, 0])[:, None, None].expand(4, 4, 6),
        memory=tuple(SeenFrame(str(number), picture, mask) for number in range(frames)),
        memory_keys=tuple(keys),
        scale=0.5,
    )


def test_weights_are_those_of_the_read() -> None:
    query = torch.randn(8, 11)
    memory = [(torch.randn(2, 6, 8), torch.randn(2, 5, 6)) for _ in range(3)]
    weights = read_weights(query, [keys for keys, _ in memory])
    assert weights.shape == (2, 3, 6, 11)
    assert torch.allclose(weights.sum(dim=(1, 2)), torch.ones(2, 11), atol=1e-6)
    values = torch.stack([values for _, values in memory], dim=1)  # (K, T, Cv, P)
    read = torch.einsum("ktpn,ktcp->kcn", weights, values)
    assert torch.allclose(read, space_time_read(query, memory, block_elements=20), atol=1e-5)
    bounded = read_weights(query, [keys for keys, _ in memory], last_frame_cap=0.4)
    assert torch.allclose(bounded.sum(dim=(1, 2)), torch.ones(2, 11), atol=1e-6)
    assert bounded[:, -1].sum(dim=1).max() <= 0.4
    read = torch.einsum("ktpn,ktcp->kcn", bounded, values)
    expected = space_time_read(query, memory[:-1], previous=memory[-1], previous_frame_cap=0.4)
    assert torch.allclose(read, expected, atol=1e-5)
    beside = read_weights(query, [keys for keys, _ in memory], last_frame_cap=0.4, key_weight=0.5)
    assert torch.allclose(beside.sum(dim=(1, 2)), torch.ones(2, 11), atol=1e-6)
    read = torch.einsum("ktpn,ktcp->kcn", beside, values)
    expected = space_time_read(
        query, memory[1:2], keys=memory[:1], key_weight=0.5, previous=memory[2], previous_frame_cap=0.4
    )
    assert torch.allclose(read, expected, atol=1e-5)
    alone = memory[0][0]
    assert torch.equal(read_weights(query, [alone], last_frame_cap=0.4), read_weights(query, [alone]))
    with pytest.raises(ValueError, match="the memory is empty"):
        read_weights(query, [])


def test_what_is_captured_is_what_the_frame_read(video: VideoSequence, network: FastNetwork) -> None:
    segmenter = NetworkSegmenter(network, MemoryRule.parse("every:2"), None)
    seen: list[tuple[str, int, int]] = []
    read = capture(video, segmenter, "00005", progress=lambda *said: seen.append(said))
    assert [frame.name for frame in read.memory] == ["00000", "00002", "00004"]
    assert (read.query.name, read.label, read.scale) == ("00005", 1, 1.0)
    assert seen[-1] == ("drift", 6, 6)
    query = network.encode_query(read_picture(video.pictures["00005"])).features.key[0]
    assert torch.equal(read.query_key, query)
    mask = torch.from_numpy(read.memory[0].mask)[None].float()
    key = network.encode_memory(read_picture(video.pictures["00000"]), mask).keys[0]
    assert torch.allclose(read.memory_keys[0], key, atol=1e-5)
    alone = capture(video, NetworkSegmenter(network, MemoryRule.parse("first"), None), "00001")
    assert [frame.name for frame in alone.memory] == ["00000"]


def test_a_captured_previous_frame_has_its_share_at_most(video: VideoSequence, network: FastNetwork) -> None:
    segmenter = NetworkSegmenter(network, MemoryRule.parse("every:2"), None)
    read = capture(video, segmenter, "00003")
    assert [frame.name for frame in read.memory] == ["00000", "00002"]
    assert read.last_frame_cap == network.previous_frame_cap == 0.5
    assert read.key_weight == network.key_weight == 0.3
    unbounded = read_from(replace(read, last_frame_cap=1.0)).shares[-1]
    assert read_from(read).shares[-1] == pytest.approx(0.5 * unbounded)
    assert capture(video, segmenter, "00001").last_frame_cap == 1, "the key may give all"


def test_an_object_that_entered_late_reads_from_its_own_frames_alone(
    video: VideoSequence, network: FastNetwork
) -> None:
    segmenter = NetworkSegmenter(network, MemoryRule.parse("every:2"), None)
    read = capture(video, segmenter, "00005", 2)
    assert [frame.name for frame in read.memory] == ["00002", "00004"]
    with pytest.raises(ValueError, match="object 2 is not in memory on frame 00002; in memory: 1"):
        capture(video, segmenter, "00002", 2)
    with pytest.raises(ValueError, match=r"frame 00000 reads nothing\. The first one that does is 00001"):
        capture(video, segmenter, "00000")


def test_points_fall_on_positions_of_the_padded_picture() -> None:
    read = hand_made()  # half the size of its file
    assert read.grid == (4, 6)
    assert read.position((0, 0)) == 0
    assert read.position((27, 25)) == 0  # 13.5 + 2 and 12.5 + 3: just below 16
    assert read.position((28, 26)) == 7
    assert read.position((181, 115)) == 23
    for outside in ((-1.0, 0.0), (182.0, 0.0), (0.0, 116.0)):
        with pytest.raises(ValueError, match="outside the picture of 182 x 116"):
            read.position(outside)
    # Padded rows 23-43 and columns 32-52: 9/16 and 11/16 of two positions, and a quarter of their neighbours.
    assert read.object_positions() == [8, 14]
    x, y = read.inner_point()
    assert read.query.mask[int(y / 2), int(x / 2)]
    assert 70 <= x <= 90 and 50 <= y <= 70  # the middle of 60-100 and 40-80


def test_a_hidden_object_is_an_error_that_says_what_to_do() -> None:
    read = hand_made()
    read.query.mask[:] = False
    for ask in (read.object_positions, read.inner_point):
        with pytest.raises(ValueError, match=r"nothing was found of object 1\. Choose another frame"):
            ask()


def test_heat_is_drawn_where_the_weight_is(tmp_path: Path) -> None:
    read = hand_made()
    reading = read_from(read, (90.0, 60.0))
    assert reading.shares == pytest.approx((0, 1), abs=1e-6)
    assert reading.top(1)[:2] == (1, 3)
    assert reading.top(1)[2] == pytest.approx(1, abs=1e-6)
    image = np.asarray(draw(read, [reading, read_from(read)]).convert("RGB"), dtype=np.int64)
    scale = TILE_WIDTH / WIDTH
    tile = round(TILE_WIDTH * HEIGHT / WIDTH)
    bright: BoolArray = image.sum(axis=2) > 600  # the end of the heat's colours; the pictures are darker

    def inside(column: int) -> BoolArray:
        left = 6 + column * (TILE_WIDTH + 6)
        return bright[6 : 6 + tile, left : left + TILE_WIDTH]

    rows, columns = np.nonzero(inside(2))
    middle = (rows.mean() / scale, columns.mean() / scale)
    assert middle == pytest.approx((1.5 * 16 - 3, 3.5 * 16 - 2), abs=1)
    assert not inside(1).any()
    red = (image[..., 0] > 180) & (image[..., 1] < 130)
    rows, columns = np.nonzero(red[6 : 6 + tile, 6 : 6 + TILE_WIDTH])
    assert (rows.min() / scale, columns.min() / scale) == pytest.approx((2 * 16 - 3, 2 * 16 - 2), abs=1)
    table = write_reading(tmp_path / "figure.csv", read, [reading])
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert [line["frame"] for line in lines] == ["0", "1"]
    assert (float(lines[1]["top x"]), float(lines[1]["top y"])) == (2 * (3.5 * 16 - 2), 2 * (1.5 * 16 - 3))


def test_the_shipped_weights_read_an_object_from_itself(shared_data: Path, tmp_path: Path) -> None:
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (tmp_path / kind / "chair").mkdir(parents=True)
        for frame in range(3):
            source = shared_data / "clips" / "chair" / kind / f"frame_{frame:06d}.{ending}"
            (tmp_path / kind / "chair" / source.name).symlink_to(source)
    (sequence,) = find_sequences(tmp_path)
    network = FastNetwork(load_network()[0])
    segmenter = NetworkSegmenter(network, MemoryRule.parse("first"), short_side=240)
    read = capture(sequence, segmenter, "frame_000002")
    reading = read_from(read)
    assert isinstance(reading, Reading)
    positions = read.object_positions()
    on_object = float(reading.weights[0].flatten()[positions].sum())
    assert on_object > 0.5 > 3 * len(positions) / reading.weights[0].numel()
