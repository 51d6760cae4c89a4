"""Masks are read exactly, from every kind of image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from stm_plugin.errors import MaskError
from stm_plugin.images.mask import MaskImage, MaskMode, MaskPlace, MaskReading, mask_hash, read_mask
from stm_plugin.windows import FloatArray, Window
from tests.conftest import write_image

WIDTH, HEIGHT = 12, 8
PLATE = Window(0, 0, WIDTH, HEIGHT)
DAVIS_COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]

Bytes = npt.NDArray[np.uint8]


def read(
    path: Path,
    *,
    objects: list[str] | None = None,
    mode: MaskMode = "auto",
    channel: str | None = None,
    allow_empty: bool = False,
) -> MaskImage:
    reading = MaskReading(objects, mode, channel)
    return read_mask(path, MaskPlace(PLATE, PLATE), reading, allow_empty=allow_empty, frame=1001)


def write(path: Path, pixels: FloatArray, kind: str = "uint8", **given: Any) -> Path:
    """Write (h, w, C) values unchanged, not premultiplied."""
    return write_image(path, pixels, kind, attributes={"oiio:UnassociatedAlpha": 1}, **given)


@pytest.fixture
def soft(rng: np.random.Generator) -> FloatArray:
    """A soft mask (h, w) with zeros, ones and values between."""
    return np.clip(rng.uniform(-0.5, 1.5, (HEIGHT, WIDTH)), 0, 1).astype(np.float32)


@pytest.fixture
def labels(rng: np.random.Generator) -> Bytes:
    """Labels 0, 1, 2 (h, w)."""
    return rng.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)


def test_davis_palette_pngs_give_exactly_their_objects(shared_data: Path) -> None:
    seen: set[str] = set()
    for path in sorted((shared_data / "clips" / "caps" / "Annotations").glob("*.png")):
        with Image.open(path) as picture:
            indices = np.asarray(picture)
        window = Window(0, 0, indices.shape[1], indices.shape[0])
        mask = read_mask(path, MaskPlace(window, window))
        assert mask.source == "palette index"
        assert list(mask.objects) == [f"object{value}" for value in np.unique(indices) if value]
        for name, values in mask.objects.items():
            assert np.array_equal(values == 1, indices == int(name.removeprefix("object")))
            assert set(np.unique(values)) <= {0.0, 1.0}
        seen |= set(mask.objects)
    assert seen == {"object1", "object2"}


def test_a_palette_is_read_by_index_even_where_its_colours_are_equal(tmp_path: Path, labels: Bytes) -> None:
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0, 200, 0, 0, 200, 0, 0])
    picture.save(tmp_path / "m.png")
    objects = read(tmp_path / "m.png").objects
    assert np.array_equal(objects["object1"], labels == 1)
    assert np.array_equal(objects["object2"], labels == 2)


def test_a_grey_palette_is_a_grey_picture(tmp_path: Path, soft: FloatArray) -> None:
    grey = np.rint(soft * 255).astype(np.uint8)
    picture = Image.fromarray(grey)
    picture.putpalette([value for step in range(256) for value in (step, step, step)])
    picture.save(tmp_path / "m.png")
    mask = read(tmp_path / "m.png")
    assert list(mask.objects) == ["object1"]
    assert np.abs(mask.objects["object1"] - soft).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("kind", "step"), [("uint8", 255), ("uint16", 65535)])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_soft_grey_values_are_kept(
    tmp_path: Path, soft: FloatArray, kind: str, step: int, extension: str
) -> None:
    mask = read(write(tmp_path / f"m.{extension}", soft[..., None], kind))
    assert list(mask.objects) == ["object1"]
    assert np.abs(mask.objects["object1"] - soft).max() <= 0.5 / step + 1e-6
    assert mask.source == "its one channel"


def test_a_soft_exr_keeps_its_values_and_is_clamped(tmp_path: Path, soft: FloatArray) -> None:
    values = soft.copy()
    values[0, :3] = (-0.5, 1.5, 0.3)
    mask = read(write(tmp_path / "m.exr", values[..., None], "float", channels=("A",)))
    assert np.array_equal(mask.objects["object1"], np.clip(values, 0, 1))


def test_one_bit_pngs_give_a_full_mask(tmp_path: Path, labels: Bytes) -> None:
    Image.fromarray(labels > 0).save(tmp_path / "m.png")
    assert np.array_equal(read(tmp_path / "m.png").objects["object1"], labels > 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_grey_label_images_give_one_object_per_value(tmp_path: Path, labels: Bytes, bits: int) -> None:
    if bits == 8:
        Image.fromarray(labels).save(tmp_path / "m.png")
    else:
        rows = b"".join(b"\0" + bytes(row[::2] * 16 + row[1::2]) for row in labels)
        header = struct.pack(">2I5B", WIDTH, HEIGHT, 4, 0, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        (tmp_path / "m.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                for kind, body in chunks
            )
        )
    mask = read(tmp_path / "m.png")
    assert mask.source == "label value"
    assert list(mask.objects) == ["object1", "object2"]
    for value in (1, 2):
        assert np.array_equal(mask.objects[f"object{value}"], labels == value)


def test_a_black_and_white_mask_is_one_object_and_no_label_image(tmp_path: Path, labels: Bytes) -> None:
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(tmp_path / "m.png")
    mask = read(tmp_path / "m.png")
    assert list(mask.objects) == ["object1"]
    assert np.array_equal(mask.objects["object1"], labels > 0)


def test_the_mode_overrides_the_rule(tmp_path: Path, labels: Bytes) -> None:
    Image.fromarray(labels).save(tmp_path / "labels.png")
    as_soft = read(tmp_path / "labels.png", mode="soft").objects
    assert np.allclose(as_soft["object1"], labels / 255.0)
    Image.fromarray(labels * 100).save(tmp_path / "spread.png")
    assert list(read(tmp_path / "spread.png", mode="labels").objects) == ["object100", "object200"]
    with pytest.raises(MaskError, match="Labels need a palette image or one channel of integers"):
        read(write(tmp_path / "f.exr", np.ones((HEIGHT, WIDTH, 1), np.float32), "half"), mode="labels")


def test_labels_keep_their_names_on_every_key(tmp_path: Path, labels: Bytes) -> None:
    Image.fromarray(np.where(labels == 2, 2, 0).astype(np.uint8)).save(tmp_path / "m.png")
    assert list(read(tmp_path / "m.png").objects) == ["object2"]
    named = read(tmp_path / "m.png", objects=["person", "chair"]).objects
    assert list(named) == ["person", "chair"]
    assert not named["person"].any()
    assert np.array_equal(named["chair"], labels == 2)
    with pytest.raises(MaskError, match=r"labels 2, but only 1 names are given: person"):
        read(tmp_path / "m.png", objects=["person"])
    with pytest.raises(MaskError, match="same name"):
        read(tmp_path / "m.png", objects=["a", "a"])


def test_alpha_is_the_mask_where_there_is_one(tmp_path: Path, soft: FloatArray) -> None:
    rgba = np.dstack([np.full((HEIGHT, WIDTH, 3), 0.7, np.float32), soft])
    for name, kind in (("m.png", "uint16"), ("m.exr", "float"), ("m.tif", "float")):
        mask = read(write(tmp_path / name, rgba, kind, channels=("R", "G", "B", "A")))
        assert mask.source == "alpha"
        assert np.abs(mask.objects["object1"] - soft).max() < 1e-5


def test_an_opaque_alpha_over_a_grey_picture_is_no_mask(tmp_path: Path, soft: FloatArray) -> None:
    grey = np.dstack([soft] * 3 + [np.ones_like(soft)])
    mask = read(write(tmp_path / "m.png", grey, "uint16", channels=("R", "G", "B", "A")))
    assert mask.source == "luminance (the alpha is 1 everywhere)"
    assert np.abs(mask.objects["object1"] - soft).max() < 1e-4
    coloured = np.dstack([soft, soft * 0.5, soft, np.ones_like(soft)])
    opaque = read(write(tmp_path / "c.png", coloured, "uint16", channels=("R", "G", "B", "A")))
    assert opaque.source == "alpha"
    assert opaque.objects["object1"].min() == 1


def test_luminance_is_the_mask_without_an_alpha(tmp_path: Path, soft: FloatArray) -> None:
    grey = read(write(tmp_path / "g.tif", np.dstack([soft] * 3), "float"))
    assert np.array_equal(grey.objects["object1"], soft)
    red = np.dstack([np.ones_like(soft), np.zeros_like(soft), np.zeros_like(soft)])
    assert read(write(tmp_path / "r.png", red)).objects["object1"].max() == pytest.approx(0.2126)


def test_a_jpeg_mask_is_soft(tmp_path: Path) -> None:
    step = np.zeros((HEIGHT, WIDTH), np.uint8)
    step[:, 8:] = 255
    Image.fromarray(step).save(tmp_path / "m.jpg", quality=95)
    mask = read(tmp_path / "m.jpg").objects["object1"]
    assert np.abs(mask - step / 255).max() < 0.1


def test_one_channel_of_many_can_be_named(tmp_path: Path, soft: FloatArray) -> None:
    values = np.dstack([soft, 1 - soft, soft * 0.5, soft * 0.25])
    path = write(tmp_path / "m.exr", values, "float", channels=("R", "G", "B", "mask.a"))
    assert np.array_equal(read(path, channel="G").objects["object1"], 1 - soft)
    assert np.array_equal(read(path, channel="rgba.b").objects["object1"], soft * 0.5)
    assert np.array_equal(read(path, channel="mask.a", objects=["x"]).objects["x"], soft * 0.25)
    with pytest.raises(MaskError, match=r"no channel 'Q'; it has R, G, B, mask\.a"):
        read(path, channel="Q")


def test_an_exr_of_layers_gives_objects_by_layer_when_asked(tmp_path: Path, soft: FloatArray) -> None:
    values = np.dstack([soft, 1 - soft, soft * 0.5])
    path = write(tmp_path / "m.exr", values, "float", channels=("A", "chair.A", "person.A"))
    assert list(read(path).objects) == ["object1"]
    layers = read(path, mode="layers").objects
    assert list(layers) == ["chair", "person"]
    assert np.array_equal(layers["person"], soft * 0.5)
    assert list(read(path, mode="layers", objects=["person"]).objects) == ["person"]
    with pytest.raises(MaskError, match=r"no layer dog\. Its layers are chair, person"):
        read(path, mode="layers", objects=["dog", "chair", "person"])
    unsure = write(tmp_path / "n.exr", values[..., :2], "float", channels=("chair.A", "person.A"))
    with pytest.raises(MaskError, match=r"layers chair, person: which one is it"):
        read(unsure)


def test_layers_in_parts_and_views_of_a_production_file(shared_data: Path) -> None:
    window = Window(0, 0, 2048, 1556)
    clip = shared_data / "clips" / "beachball"
    for kind, expected in (("singlepart", "whitebarmask.left"), ("multipart", "whitebarmask")):
        mask = read_mask(
            clip / f"{kind}.0001.exr",
            MaskPlace(window, window),
            MaskReading([expected], "layers"),
        )
        assert mask.objects[expected].shape == (1556, 2048)
        assert mask.objects[expected].sum() == pytest.approx(176970, rel=1e-3)


def test_a_mask_is_placed_on_the_canvas(tmp_path: Path, soft: FloatArray) -> None:
    canvas, display = Window(-4, -3, 20, 14), PLATE
    data = Window(-2, -1, 15, 10)

    def placed(path: Path) -> FloatArray:
        mask = read_mask(path, MaskPlace(canvas, display, data), frame=1001)
        assert mask.objects["object1"].shape == (14, 20)
        return mask.objects["object1"]

    plain = placed(write(tmp_path / "display.png", soft[..., None], "uint16"))
    assert np.abs(plain[3:11, 4:16] - soft).max() < 1e-4
    assert plain.sum() == pytest.approx(float(soft.sum()), rel=1e-3)
    overscan = np.ones((14, 20, 1), np.float32)
    assert placed(write(tmp_path / "canvas.png", overscan)).min() == 1
    framed = placed(write(tmp_path / "data.png", np.ones((10, 15, 1), np.float32)))
    assert framed[2:12, 2:17].min() == 1
    assert framed.sum() == 150
    own = write(
        tmp_path / "own.exr", np.ones((2, 3, 1), np.float32), "half", data=(-4, 5), display=(0, 0, 12, 8)
    )
    by_window = placed(own)
    assert by_window[8:10, 0:3].min() == 1
    assert by_window.sum() == 6


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", np.ones((4, 6, 1), np.float32))
    with pytest.raises(MaskError, match=r"frame 1001, .*m\.png: The mask is 6x4, but the plate's .* 12x8\. "):
        read(path)
    with pytest.raises(MaskError, match=r"canvas with overscan 16x12, this frame's data window 9x9"):
        read_mask(path, MaskPlace(Window(-2, -2, 16, 12), PLATE, Window(0, 0, 9, 9)))
    framed = write(tmp_path / "m.exr", np.ones((8, 12, 1), np.float32), "half", display=(0, 0, 100, 50))
    with pytest.raises(MaskError, match=r"12x8 in a display window of 100x50"):
        read(framed)


@pytest.mark.parametrize("channels", [("A",), ("R", "G", "B"), ("R", "G", "B", "A")])
def test_an_empty_mask_is_an_error_unless_allowed(tmp_path: Path, channels: tuple[str, ...]) -> None:
    path = write(
        tmp_path / "m.exr", np.zeros((HEIGHT, WIDTH, len(channels)), np.float32), "half", channels=channels
    )
    with pytest.raises(MaskError, match=r"frame 1001, .*m\.exr: The mask is empty"):
        read(path)
    assert not read(path, allow_empty=True).objects["object1"].any()


def test_an_empty_label_image_is_an_empty_mask(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
    picture.putpalette(DAVIS_COLOURS)
    picture.save(tmp_path / "m.png")
    with pytest.raises(MaskError, match="empty"):
        read(tmp_path / "m.png")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, soft: FloatArray, value: float) -> None:
    soft[3, 3] = value
    path = write(tmp_path / "m.exr", soft[..., None], "float", channels=("A",))
    with pytest.raises(MaskError, match=r"frame 1001, .*not numbers"):
        read(path)


@pytest.mark.parametrize("name", ["m.png", "p.png", "m.exr", "m.tif", "m.jpg"])
def test_damaged_masks_are_named_errors(
    tmp_path: Path, labels: Bytes, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "p.png":
        picture = Image.fromarray(labels)
        picture.putpalette(DAVIS_COLOURS)
        picture.save(tmp_path / name)
    else:
        write(
            tmp_path / name,
            (labels[..., None] / 2).astype(np.float32),
            "half" if name == "m.exr" else "uint8",
        )
    content = (tmp_path / name).read_bytes()
    for length in (0, len(content) // 3, len(content) * 3 // 4):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(MaskError) as caught:
            read(tmp_path / name)
        assert (caught.value.frame, caught.value.path) == (1001, str(tmp_path / name))


def test_missing_files_movies_and_photographs_are_named_errors(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="does not exist"):
        read(tmp_path / "nowhere.png")
    with pytest.raises(MaskError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "m.txt").write_text("no picture")
    with pytest.raises(MaskError, match=r"OpenImageIO cannot read this kind of file\. Give the picture"):
        read(tmp_path / "m.txt")
    (tmp_path / "m.mp4").touch()
    with pytest.raises(MaskError, match="movie"):
        read(tmp_path / "m.mp4")
    photograph = Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH))
    photograph.putpalette([(7 * value) % 256 for value in range(768)])
    photograph.save(tmp_path / "photograph.png")
    with pytest.raises(MaskError, match="95 labels"):
        read(tmp_path / "photograph.png")
    with pytest.raises(MaskError, match="one soft object, but 2 names"):
        read(write(tmp_path / "m.png", np.ones((HEIGHT, WIDTH, 1), np.float32)), objects=["a", "b"])


def test_the_hash_of_a_mask_knows_its_values_and_its_size(soft: FloatArray) -> None:
    other = soft.copy()
    other[0, 0] += 1e-6
    turned = np.ascontiguousarray(soft.reshape(WIDTH, HEIGHT))
    assert mask_hash(soft) == mask_hash(soft.copy())
    assert len({mask_hash(soft), mask_hash(other), mask_hash(turned)}) == 3
