"""The protocol's reader: accepted and refused messages, and the layout of pixels."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_plugin import errors, protocol
from stm_plugin.protocol import FramingError, ImageLayout, Kind, Message, RequestError
from stm_plugin.server import pixels

HANDLE = "s1"
LAYOUT = {
    "format": "float",
    "channels": ["R", "G", "B"],
    "data_window": [0, 0, 2, 3],
    "layout": "interleaved",
    "row_bytes": 24,
}


def vectors(repository: Path) -> dict[str, bytes]:
    """The vectors of PROTOCOL.md."""
    text = (repository / "ofx_bridge" / "PROTOCOL.md").read_text("utf-8").partition("## 11. Vectors")[2]
    lines = [line.split() for line in text.splitlines() if line.startswith(("ok-", "bad-"))]
    return {name: bytes.fromhex(data) for name, data in lines}


def test_every_vector_of_the_document_is_read_as_it_says(repository: Path) -> None:
    found = vectors(repository)
    assert len(found) > 20
    for name, data in found.items():
        if name.startswith("ok-"):
            message = protocol.decode_message(data)
            assert protocol.encode_message(message) + bytes(message.payload) == data, name
        else:
            with pytest.raises(FramingError):
                protocol.decode_message(data)
                pytest.fail(f"{name} was accepted")


def test_the_document_names_every_operation_and_every_error_code(repository: Path) -> None:
    text = (repository / "ofx_bridge" / "PROTOCOL.md").read_text("utf-8")
    for op in protocol.REQUESTS:
        assert f"`{op}`" in text or f'"op": "{op}"' in text, op
    kinds = [
        one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.StmError)
    ]
    for kind in kinds:
        if kind is not errors.StmError:
            assert f"`{protocol.error_code(kind('x'))}`" in text, kind


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.sampled_from(Kind),
    st.integers(1, 2**32 - 1),
    st.dictionaries(st.text(), json_values, max_size=5),
    st.binary(),
)
def test_a_message_comes_back_as_it_was_sent(
    kind: Kind, number: int, header: dict[str, Any], payload: bytes
) -> None:
    message = Message(kind, number, header, payload)
    assert protocol.decode_message(protocol.encode_message(message) + payload) == message


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_in_words_and_nothing_else(data: bytes) -> None:
    with pytest.raises(FramingError):
        protocol.decode_message(data)


@given(st.binary(max_size=120))
def test_a_header_of_random_bytes_is_an_object_or_refused(data: bytes) -> None:
    try:
        header = protocol.decode_header(data)
    except FramingError:
        return
    assert json.loads(data) == header


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b'{"a":"\\ud800"}'])
def test_hostile_json_is_refused(text: bytes) -> None:
    with pytest.raises(FramingError):
        protocol.decode_header(text)


def example_of(op: str) -> dict[str, Any]:
    """A legal request of each operation, with all fields."""
    image = dict(LAYOUT, offset=0, plane_bytes=0, premultiplied=False, mapped={"name": "c1-a-b", "bytes": 72})
    shot: dict[str, Any] = {"op": op, "shot": HANDLE}
    examples: dict[str, dict[str, Any]] = {
        "hello": {"op": op, "protocol": [1, 0], "token": "0" * 64, "client": "x", "pid": 1, "events": True},
        "ping": {"op": op},
        "info": {"op": op},
        "shutdown": {"op": op},
        "open_shot": {
            "op": op, "folder": "/a", "create": True, "owner": "n", "settings": {"a": 1}, "objects": ["a"],
            "scratch": "/s",
            "copy_of": "/b",
            "plate": {"kind": "pushed", "frames": [1, 2], "display_window": [0, 0, 4, 4], "pixel_aspect": 2,
                      "fps": 24, "colour_space": "ACEScg", "canvas": [-1, -1, 6, 6]},
        },
        "close_shot": shot,
        "plate_needed": {**shot, "frames": [1, 2], "digests": {"-1": "abc"}},
        "push_plate": {**shot, "frame": 1, "image": image, "display_window": [0, 0, 4, 4],
                       "pixel_aspect": 1.0, "digest": "d", "metadata": {"a": 1, "b": "c"}},
        "push_key": {**shot, "frame": 1, "objects": [{"name": "hero", "channel": "R"}], "image": image,
                     "digest": "d", "replace": True, "allow_empty": True, "interrupt": False},
        "list_keys": shot,
        "restore_key": {**shot, "frame": 1, "objects": [{"name": "hero", "content": "a" * 64}], "digest": "d",
                        "interrupt": True},
        "remove_key": {**shot, "frame": 1, "interrupt": True},
        "get_settings": shot,
        "set_settings": {**shot, "settings": {}, "interrupt": True},
        "set_objects": {**shot, "rename": {"a": "b"}, "remove": ["c"], "interrupt": True},
        "status": {**shot, "frames": [1, 2]},
        "plan": {**shot, "frames": [1, 2], "direction": "forward"},
        "propagate": {**shot, "frames": [1, 2], "direction": "backward", "detach": True},
        "export": {**shot, "pattern": "/a.%04d.exr", "frames": [1, 2], "channel": "A", "objects": ["a"],
                   "detach": True},
        "shapes": {**shot, "file": "/a.nk", "format": "nuke", "frames": [1, 2], "objects": ["a"],
                   "tolerance": 0.5, "detach": True},
        "job": {"op": op, "job": "j1", "wait_ms": 10, "seen": 3},
        "cancel": {"op": op, "job": "j1"},
        "get_matte": {**shot, "frame": 1, "objects": ["a"], "window": [0, 0, 4, 4], "format": "float",
                      "rows": "up", "wait_ms": 5, "stale": True, "layer": "confidence",
                      "into": {"name": "c1-a-b", "bytes": 64, "offset": 0}},
    }  # fmt: skip
    return examples[op]


@pytest.mark.parametrize("op", sorted(protocol.REQUESTS))
def test_every_operation_reads_its_fields_and_refuses_one_more(op: str) -> None:
    request = protocol.read_request(example_of(op), 0)
    assert request.op == op
    with pytest.raises(RequestError, match="there is no field 'surplus'") as caught:
        protocol.read_request({**example_of(op), "surplus": 1}, 0)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("op", sorted(protocol.REQUESTS))
@given(data=st.data())
@settings(max_examples=40)
def test_a_field_of_any_other_value_is_read_or_refused_in_words(op: str, data: st.DataObject) -> None:
    header = example_of(op)
    fields = [name for name in header if name != "op"]
    if not fields:
        return
    header[data.draw(st.sampled_from(fields))] = data.draw(json_values)
    try:
        protocol.read_request(header, 0)
    except RequestError as error:
        assert error.code in ("bad_request", "version")
        assert error.what.endswith(".")


@pytest.mark.parametrize(
    ("op", "change", "sentence"),
    [
        ("push_plate", {"frame": None}, "push_plate: the field frame is missing."),
        ("push_plate", {"frame": True}, "push_plate: the field frame must be a valid integer."),
        ("push_plate", {"image": 3}, "push_plate: the field image must be an object."),
        (
            "push_plate",
            {"metadata": {"a": []}},
            "push_plate: the field metadata.a must be a text or a number.",
        ),
        ("push_key", {"objects": [{"name": "a"}]}, "push_key: the field objects.0.channel is missing."),
        ("push_key", {"replace": 1}, "push_key: the field replace must be true or false."),
        ("plan", {"direction": "x"}, "plan: the field direction must be 'forward', 'backward' or 'both'."),
        (
            "open_shot",
            {"plate": {"kind": "x"}},
            "open_shot: the field plate must have a kind: 'pushed', 'files'.",
        ),
        ("set_objects", {"remove": ["a", "a"]}, "set_objects: the field remove must not repeat a name."),
        ("get_matte", {"wait_ms": -1}, "get_matte: the field wait_ms must be greater than or equal to 0."),
        ("get_matte", {"surplus": None}, "get_matte: there is no field 'surplus'."),
        ("get_matte", {"into": {"x": 1}}, "get_matte: the field into.name is missing."),
    ],
)
def test_a_wrong_field_is_told_in_a_plain_sentence(op: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        protocol.read_request({**example_of(op), **change}, 0)
    assert (caught.value.code, caught.value.what) == ("bad_request", sentence)


@pytest.mark.parametrize("header", [{}, {"op": None}, {"op": 3}, {"op": "fly"}, {"op": ["ping"]}])
def test_an_unknown_operation_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="no operation"):
        protocol.read_request(header, 0)


def test_a_payload_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(RequestError, match="payload"):
        protocol.read_request({"op": "ping"}, 1)
    with pytest.raises(RequestError, match="payload"):
        protocol.read_request(example_of("push_plate"), 72)


FILE = {"name": "sub/frame.-001.exr"}


@pytest.mark.parametrize("op", ["push_plate", "push_key"])
def test_a_picture_may_be_a_file_in_the_place_of_an_image(op: str) -> None:
    fields = {name: value for name, value in example_of(op).items() if name not in _OF_AN_IMAGE}
    assert protocol.read_request({**fields, "file": FILE}, 0)
    for wrong in ({"file": FILE, "image": LAYOUT}, {}, {"file": None}):
        with pytest.raises(RequestError, match="give either image or file"):
            protocol.read_request({**fields, **wrong}, 0)
    with pytest.raises(RequestError, match="payload"):
        protocol.read_request({**fields, "file": FILE}, 1)


_OF_AN_IMAGE = ("image", "display_window", "pixel_aspect")


def test_the_windows_of_a_file_are_those_of_its_header() -> None:
    fields = {name: value for name, value in example_of("push_plate").items() if name != "image"}
    with pytest.raises(RequestError, match="those of the file"):
        protocol.read_request({**fields, "file": FILE}, 0)


@pytest.mark.parametrize(
    "name",
    ["", "/a.exr", "../a.exr", "a/../b.exr", "a//b.exr", "a/", ".a.exr", "a\\b.exr", "a\n", "a b", "x" * 256,
     "C:a.exr", "ä.exr", "a/" * 8 + "b", None, 3, ["a"]],
)  # fmt: skip
def test_a_file_is_named_within_the_scratch_folder_only(name: Any) -> None:
    with pytest.raises(RequestError, match=r"field file\.name") as caught:
        protocol.read_request({"op": "push_plate", "shot": HANDLE, "frame": 1, "file": {"name": name}}, 0)
    assert caught.value.code == "bad_request"


def test_another_major_version_is_told_apart_whatever_else_it_says() -> None:
    with pytest.raises(RequestError) as caught:
        protocol.read_request({"op": "hello", "protocol": [2, 0], "new": "field"}, 0)
    assert caught.value.code == "version"
    assert caught.value.details == {"protocol": list(protocol.VERSION)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"row_bytes": 23}, "multiples"),
        ({"row_bytes": 20}, "shorter"),
        ({"row_bytes": 0}, "shorter"),
        ({"row_bytes": -24}, "bytes"),
        ({"offset": 4}, "bytes"),
        ({"offset": 2}, "multiples"),
        ({"channels": []}, "no channels"),
        ({"channels": ["R", "R", "B"]}, "repeat"),
        ({"data_window": [0, 0, 0, 3]}, "data_window"),
        ({"data_window": [0, 0, 65536, 65536]}, "pixels"),
        ({"plane_bytes": 24}, "planar"),
        ({"layout": "planar", "row_bytes": 8, "plane_bytes": 8}, "overlap"),
        ({"layout": "planar", "row_bytes": 8, "plane_bytes": 24, "offset": 4}, "bytes"),
        ({"format": "double"}, "format"),
    ],
)
def test_an_image_whose_values_cannot_lie_where_it_says_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        ImageLayout.read({**LAYOUT, **change}).check_inside(72)


@given(
    width=st.integers(1, 5), height=st.integers(1, 5), channels=st.integers(1, 4), padding=st.integers(0, 3),
    lead=st.integers(0, 3), planar=st.booleans(), upwards=st.booleans(), planes_back=st.booleans(),
    form=st.sampled_from(["byte", "short", "half", "float"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_value_is_read_from_the_byte_that_the_document_gives(
    width: int, height: int, channels: int, padding: int, lead: int, planar: bool, upwards: bool,
    planes_back: bool, form: str, seed: int,
) -> None:  # fmt: skip
    codes = {"byte": "<B", "short": "<H", "half": "<e", "float": "<f"}
    size = struct.calcsize(codes[form])
    row = (width * (1 if planar else channels) + padding) * size
    plane = row * height if planar and channels > 1 else 0
    total = lead * size + row * height * (channels if planar else 1)
    offset = lead * size
    if upwards:
        offset += (height - 1) * row
    if plane and planes_back:
        offset += (channels - 1) * plane
        plane = -plane
    data = np.random.default_rng(seed).integers(0, 60, total, dtype=np.uint8).tobytes()
    layout = ImageLayout.read(
        {
            "format": form, "channels": list("RGBA"[:channels]), "data_window": [-3, 7, width, height],
            "layout": "planar" if planar else "interleaved", "offset": offset,
            "row_bytes": -row if upwards else row, "plane_bytes": plane,
        }
    )  # fmt: skip
    values = pixels.view_image(layout, data)
    for j in range(height):
        for i in range(width):
            for c in range(channels):
                if planar:
                    place = offset + c * plane + j * layout.row_bytes + i * size
                else:
                    place = offset + j * layout.row_bytes + (i * channels + c) * size
                assert values[j, i, c] == struct.unpack_from(codes[form], data, place)[0]


def test_premultiplied_colour_is_divided_by_alpha_and_left_alone_where_alpha_is_zero() -> None:
    data = np.array([[[0.5, 1.0, 0.25, 0.5], [3.0, np.nan, 0.0, 0.0]]], np.float32).tobytes()
    layout = ImageLayout.read(
        {"format": "float", "channels": list("RGBA"), "data_window": [0, 0, 2, 1], "layout": "interleaved",
         "row_bytes": 32, "premultiplied": True}
    )  # fmt: skip
    colour = pixels.read_plate(layout, data)
    np.testing.assert_array_equal(colour, np.array([[[1.0, 2.0, 0.5], [3.0, np.nan, 0.0]]], np.float32))


def test_integer_pixels_reach_exactly_one_and_grey_becomes_three_channels() -> None:
    layout = ImageLayout.read(
        {
            "format": "short",
            "channels": ["Y"],
            "data_window": [0, 0, 2, 1],
            "layout": "planar",
            "row_bytes": 4,
        }
    )
    colour = pixels.read_plate(layout, np.array([0, 65535], "<u2").tobytes())
    np.testing.assert_array_equal(colour, np.array([[[0, 0, 0], [1, 1, 1]]], np.float32))


def test_a_mask_that_is_not_a_number_is_refused_and_values_beyond_the_range_are_clamped() -> None:
    layout = ImageLayout.read(
        {
            "format": "float",
            "channels": ["A"],
            "data_window": [0, 0, 2, 1],
            "layout": "planar",
            "row_bytes": 8,
        }
    )
    mask = pixels.read_mask(layout, np.array([-1, 2], np.float32).tobytes(), "A", 7)
    np.testing.assert_array_equal(mask, np.array([[0, 1]], np.float32))
    with pytest.raises(RequestError, match="frame 7"):
        pixels.read_mask(layout, np.array([0, np.nan], np.float32).tobytes(), "A", 7)


@given(rows=st.sampled_from(["down", "up"]), form=st.sampled_from(["half", "float"]), seed=st.integers(0, 9))
def test_a_matte_that_is_written_reads_back_through_its_own_description(
    rows: Any, form: Any, seed: int
) -> None:
    mattes = list(np.random.default_rng(seed).random((2, 3, 5), np.float32))
    layout, data = pixels.write_mattes(mattes, ("a", "b"), (-1, -2, 5, 3), form, rows)
    read = ImageLayout.read(layout.to_json())
    values = pixels.view_image(read, data)
    np.testing.assert_allclose(np.moveaxis(values.astype(np.float32), 2, 0), np.stack(mattes), atol=1e-3)
    assert (read.row_bytes < 0) == (rows == "up")


@given(st.sets(st.integers(-50, 50)))
def test_ranges_name_exactly_the_frames(frames: set[int]) -> None:
    ranges = protocol.ranges_of(frames)
    assert {one for first, last in ranges for one in range(first, last + 1)} == frames
    assert all(after[0] > before[1] + 1 for before, after in pairwise(ranges))


def test_an_error_carries_frame_file_and_hint_for_people() -> None:
    header = protocol.error_header(
        errors.MaskError("The mask is empty.", frame=3, path="/a", hint="Paint it.")
    )
    assert header == {
        "code": "mask",
        "what": "The mask is empty.",
        "frame": 3,
        "path": "/a",
        "hint": "Paint it.",
        "text": "frame 3, /a: The mask is empty. Paint it.",
        "details": {},
    }
