"""Files in a client's scratch folder act as the same pixels pushed, and no other file is read."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import OpenEXR
import OpenImageIO as oiio
import pytest

from stm_plugin import protocol
from stm_plugin.errors import PlateError
from stm_plugin.protocol import RequestError
from stm_plugin.server import scratch as scratch_module
from stm_plugin.server.backend import Backend
from stm_plugin.server.jobs import Job
from stm_plugin.server.mapped import MapFolder
from stm_plugin.server.scratch import ScratchFolder
from stm_plugin.server.service import Service
from stm_plugin.server.shot_service import EngineBackend
from tests.conftest import write_image
from tests.stm_plugin.toy_engine import ToyBackend

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and owners")

Pixels = npt.NDArray[np.float32]
DISPLAY = (0, 0, 40, 24)
CANVAS = (-8, -4, 60, 40)
DATA = (-3, -2, 46, 30)


class Client:
    """A connection of the service."""

    prefix = "c1-00-"
    name = "a test"

    def job_changed(self, job: Job) -> None:
        raise AssertionError("no job is started here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def values(rng: np.random.Generator) -> Pixels:
    """Scene values over `DATA`, with a NaN, an infinity and values beyond half floats."""
    found = (rng.standard_normal((DATA[3], DATA[2], 4)) * 40).astype(np.float32)
    found[0, 0], found[1, 1], found[2, 2] = np.nan, np.inf, 1e-7
    return found


def write(path: Path, values: Pixels, kind: str = "float", channels: str = "RGBA", **attributes: Any) -> Path:
    """Write a picture like Nuke's Write."""
    given = {"compression": "none", "PixelAspectRatio": 1.2, **attributes}
    return write_image(
        path, values, kind, channels=tuple(channels), data=DATA[:2], display=DISPLAY, attributes=given
    )


def talk(
    tmp_path: Path, load: Callable[[], Backend], *headers: dict[str, Any], data: bytes = b""
) -> list[Any]:
    """The answers to requests, or the errors; the handle of the shot is added to each."""

    async def live() -> list[Any]:
        service = Service(load, MapFolder(tmp_path / "map"))
        client = Client()
        answers: list[Any] = []
        for header in headers:
            payload = data if "image" in header else b""
            try:
                request = protocol.read_request(header, len(payload))
                answers.append((await service.carry_out(client, request, payload))[0])
            except (RequestError, PlateError) as error:
                answers.append(error)
        await service.leave(client)
        await service.end()
        return answers

    return asyncio.run(live())


def opening(tmp_path: Path, **more: Any) -> dict[str, Any]:
    plate = {
        "kind": "pushed", "frames": [1001, 1003], "display_window": list(DISPLAY), "canvas": list(CANVAS),
        "pixel_aspect": 1.2,
    }  # fmt: skip
    return {"op": "open_shot", "folder": str(tmp_path / "a.stmshot"), "create": True, "plate": plate, **more}


def push(name: str, op: str = "push_plate", **more: Any) -> dict[str, Any]:
    return {"op": op, "shot": "s1", "frame": 1001, "file": {"name": name}, **more}


def image(channels: str, kind: str = "float") -> dict[str, Any]:
    size = 4 if kind == "float" else 2
    return {
        "format": kind, "channels": list(channels), "data_window": list(DATA), "layout": "interleaved",
        "row_bytes": DATA[2] * len(channels) * size,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["float", "half"])
@pytest.mark.parametrize("compression", ["none", "zip", "piz", "dwaa"])
def test_a_plate_in_a_file_is_the_plate_in_a_payload(
    tmp_path: Path, folder: Path, values: Pixels, kind: str, compression: str
) -> None:
    path = write(folder / "frame.1001.exr", values[..., :3], kind, "RGB", compression=compression)
    stored = oiio.ImageBuf(str(path)).get_pixels(kind)
    assert stored is not None
    pushed = {"op": "push_plate", "shot": "s1", "frame": 1001, "image": image("RGB", kind)}
    opened, by_file, by_payload = talk(
        tmp_path, EngineBackend, opening(tmp_path, scratch=str(folder)), push(path.name), pushed,
        data=stored.tobytes(),
    )  # fmt: skip
    assert opened["created"] and by_file["changed"]
    assert by_payload["content"] == by_file["content"] and not by_payload["changed"]


@pytest.mark.parametrize("kind", ["float", "half"])
def test_a_plate_read_from_its_own_file_is_the_plate_sent_as_float(
    tmp_path: Path, values: Pixels, kind: str
) -> None:
    path = write(tmp_path / "plate.1001.exr", values[..., :3], kind, "RGB", compression="zip")
    stored = oiio.ImageBuf(str(path)).get_pixels("float")
    assert stored is not None
    by_path = {"op": "push_plate", "shot": "s1", "frame": 1001, "path": str(path)}
    _, first, second, missing, relative, both = talk(
        tmp_path, EngineBackend, opening(tmp_path), by_path,
        {"op": "push_plate", "shot": "s1", "frame": 1001, "image": image("RGB")},
        {**by_path, "path": str(tmp_path / "gone.exr")}, {**by_path, "path": "plate.1001.exr"},
        {**by_path, "file": {"name": "a.exr"}}, data=stored.tobytes(),
    )  # fmt: skip
    assert first["changed"] and not second["changed"] and first["content"] == second["content"]
    assert isinstance(missing, PlateError) and missing.frame == 1001 and "missing" in missing.what
    assert relative.code == "bad_request" and "absolute" in relative.what
    assert both.code == "bad_request" and "image or file or path" in both.what


def test_masks_in_a_file_are_the_masks_in_a_payload(tmp_path: Path, folder: Path, values: Pixels) -> None:
    masks = np.clip(np.nan_to_num(values), 0, 1)
    write(folder / "key.exr", masks)
    objects = [{"name": "hero", "channel": "A"}, {"name": "chair", "channel": "G"}]
    by_payload = {"op": "push_key", "shot": "s1", "frame": 1001, "objects": objects, "image": image("RGBA")}
    _, first, second, lacking, bad = talk(
        tmp_path, EngineBackend, opening(tmp_path, scratch=str(folder)),
        push("key.exr", "push_key", objects=objects), by_payload,
        push("key.exr", "push_key", objects=[{"name": "hero", "channel": "Z"}]),
        push("lacking.exr", "push_key", objects=objects), data=masks.tobytes(),
    )  # fmt: skip
    assert first["changed"] and not second["changed"] and first["keys"] == second["keys"]
    assert lacking.code == "bad_request" and "no channel Z" in lacking.what
    assert bad.code == "file" and bad.frame == 1001 and "lacking.exr" in bad.path


def test_a_mask_file_with_values_that_are_no_numbers_is_refused(
    tmp_path: Path, folder: Path, values: Pixels
) -> None:
    write(folder / "key.exr", values)
    order = push("key.exr", "push_key", objects=[{"name": "hero", "channel": "A"}])
    _, refused = talk(tmp_path, ToyBackend, opening(tmp_path, scratch=str(folder)), order)
    assert refused.code == "mask" and refused.frame == 1001


def test_windows_aspect_and_time_code_of_the_header_are_the_plates(
    tmp_path: Path, folder: Path, values: Pixels
) -> None:
    code = (oiio.TypeDesc("timecode"), (0x10590723, 0))
    write(folder / "a.exr", values, "float", "RGBA")
    spec = oiio.ImageSpec(4, 4, 3, "half")
    spec.attribute("smpte:TimeCode", *code)
    timed = oiio.ImageOutput.create("a.exr")
    assert timed is not None and timed.open(str(folder / "timed.exr"), spec)
    assert timed.write_image(np.zeros((4, 4, 3), np.float32)) and timed.close()
    read = ScratchFolder(str(folder))
    found, with_code = read.read("a.exr", 1001), read.read("timed.exr", 1001)
    assert found.layout.data_window == DATA and found.display_window == DISPLAY
    assert found.pixel_aspect == pytest.approx(1.2) and found.time_code is None
    assert found.layout.channels == ("R", "G", "B", "A")
    assert with_code.time_code == "10:59:07:23"


def test_a_frame_that_leaves_the_canvas_says_its_window(tmp_path: Path, folder: Path, values: Pixels) -> None:
    write(folder / "a.exr", values)
    opened = opening(tmp_path, scratch=str(folder))
    opened["plate"]["canvas"] = list(DISPLAY)
    _, refused = talk(tmp_path, EngineBackend, opened, push("a.exr"))
    assert refused.code == "plate" and refused.frame == 1001
    assert refused.details == {"data_window": list(DATA)}


def test_without_a_scratch_folder_no_file_is_read(tmp_path: Path, folder: Path, values: Pixels) -> None:
    write(folder / "a.exr", values)
    _, refused = talk(tmp_path, ToyBackend, opening(tmp_path), push("a.exr"))
    assert refused.code == "bad_request" and "no scratch folder" in refused.what


def test_a_scratch_folder_that_is_not_private_is_refused(tmp_path: Path, folder: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(folder)
    file.touch(0o600)
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o750)
    for bad in (link, file, shared, tmp_path / "lacking"):
        (refused,) = talk(tmp_path, ToyBackend, opening(tmp_path, scratch=str(bad)))
        assert refused.code == "file" and refused.path == str(bad), bad
    (relative,) = talk(tmp_path, ToyBackend, opening(tmp_path, scratch="a/b"))
    assert relative.code == "bad_request"
    ours = ScratchFolder(str(folder))
    folder.chmod(0o770)  # after it was agreed on
    with pytest.raises(RequestError, match="not private"):
        ours.read("a.exr", 1)


@pytest.fixture
def attacked(folder: Path, values: Pixels, tmp_path: Path) -> Iterator[tuple[ScratchFolder, Path]]:
    """A scratch folder, and a valid picture outside of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    yield ScratchFolder(str(folder)), write(outside / "secret.exr", values)


def refusal(scratch: ScratchFolder, name: str) -> str:
    with pytest.raises(RequestError) as caught:
        scratch.read(name, 7)
    assert caught.value.code == "file" and caught.value.frame == 7 and name in str(caught.value.path)
    return caught.value.what


def test_links_pipes_folders_and_foreign_files_are_refused(
    attacked: tuple[ScratchFolder, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, secret = attacked
    (folder / "link.exr").symlink_to(secret)
    (folder / "sub").symlink_to(secret.parent)
    os.link(secret, folder / "hard.exr")
    os.mkfifo(folder / "pipe.exr")
    (folder / "folder.exr").mkdir()
    assert "cannot be opened" in refusal(scratch, "link.exr")
    assert "cannot be opened" in refusal(scratch, "sub/secret.exr")
    assert "not a plain file" in refusal(scratch, "hard.exr")
    assert "not a plain file" in refusal(scratch, "pipe.exr")
    assert "not a plain file" in refusal(scratch, "folder.exr")
    (folder / "own.exr").write_bytes(secret.read_bytes())
    assert scratch.read("own.exr", 7).layout.channels == ("R", "G", "B", "A")
    if os.geteuid() == 0:
        os.chown(folder / "own.exr", 65534, -1)
        assert "another user" in refusal(scratch, "own.exr")


def test_another_file_in_its_place_is_not_read(
    attacked: tuple[ScratchFolder, Path], folder: Path, values: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced between the check and the reading; the checked file is read."""
    scratch, secret = attacked
    write(folder / "a.exr", np.full_like(values, 0.25))
    check = scratch_module._check_file

    def exchange(file: int, path: Path, frame: int) -> None:
        check(file, path, frame)
        path.unlink()
        path.symlink_to(secret)

    monkeypatch.setattr(scratch_module, "_check_file", exchange)
    read = np.frombuffer(scratch.read("a.exr", 7).data, np.float32)
    np.testing.assert_array_equal(read, np.float32(0.25))


def test_a_file_that_changes_while_it_is_read_is_refused(
    attacked: tuple[ScratchFolder, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, secret = attacked
    (folder / "a.exr").write_bytes(secret.read_bytes())
    read = scratch_module._read_exr

    def grow(name: str, path: Path, frame: int) -> Any:
        found = read(name, path, frame)
        with open(path, "ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(scratch_module, "_read_exr", grow)
    assert "has changed" in refusal(scratch, "a.exr")


def test_a_file_that_grows_all_the_time_is_never_read_half(
    attacked: tuple[ScratchFolder, Path], folder: Path, values: Pixels
) -> None:
    scratch, secret = attacked
    whole = secret.read_bytes()
    ended = threading.Event()

    def rewrite() -> None:
        while not ended.is_set():
            with open(folder / "a.exr", "wb", buffering=0) as file:
                for start in range(0, len(whole), 4096):
                    file.write(whole[start : start + 4096])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(40):
            try:
                found = scratch.read("a.exr", 7)
            except RequestError as error:
                assert error.code == "file"
                continue
            np.testing.assert_array_equal(np.frombuffer(found.data, np.float32), values.ravel())
    finally:
        ended.set()
        writer.join()


def test_a_truncated_file_is_refused_wherever_it_ends(
    attacked: tuple[ScratchFolder, Path], folder: Path
) -> None:
    scratch, secret = attacked
    whole = secret.read_bytes()
    for kept in [0, 3, 4, 8, 60, 200, 320, 400, *range(500, len(whole), 997), len(whole) - 1]:
        (folder / "cut.exr").write_bytes(whole[:kept])
        refusal(scratch, "cut.exr")


def test_what_is_no_single_flat_half_or_float_exr_is_refused(
    attacked: tuple[ScratchFolder, Path], folder: Path, values: Pixels
) -> None:
    scratch, _ = attacked
    write_image(folder / "a.png", np.clip(np.nan_to_num(values), 0, 1), "uint8")
    (folder / "png.exr").write_bytes((folder / "a.png").read_bytes())
    (folder / "junk.exr").write_bytes(b"\x76\x2f\x31\x01" + os.urandom(5000))
    _deep(folder / "deep.exr")
    header = {"compression": OpenEXR.NO_COMPRESSION, "type": OpenEXR.scanlineimage}
    red = np.zeros((4, 4), np.float32)
    parts = [OpenEXR.Part(dict(header), {"R": red, "G": red, "B": red}, name) for name in ("a", "b")]
    OpenEXR.File(parts).write(str(folder / "parts.exr"))
    OpenEXR.File(dict(header), {"Z": np.zeros((4, 4), np.uint32)}).write(str(folder / "whole.exr"))
    OpenEXR.File(dict(header), {f"c{one:02}": red for one in range(17)}).write(str(folder / "many.exr"))
    refusal(scratch, "png.exr")
    refusal(scratch, "junk.exr")
    assert "deep" in refusal(scratch, "deep.exr")
    assert "several parts" in refusal(scratch, "parts.exr")
    assert "half or all float" in refusal(scratch, "whole.exr")
    assert "16" in refusal(scratch, "many.exr")


def test_a_header_that_promises_too_many_pixels_costs_no_memory(
    attacked: tuple[ScratchFolder, Path], folder: Path
) -> None:
    scratch, secret = attacked
    data = bytearray(secret.read_bytes())
    at = data.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    for right, bottom in ((60_000, 60_000), (2**31 - 2, 2**31 - 2), (-100, -100), (30_000, 6_000)):
        data[at + 8 : at + 16] = np.array([right, bottom], "<i4").tobytes()
        (folder / "huge.exr").write_bytes(data)
        refusal(scratch, "huge.exr")


def _deep(path: Path) -> None:
    spec = oiio.ImageSpec(4, 4, 1, "float")
    spec.channelnames = ("Z",)
    spec.deep = True
    output = oiio.ImageOutput.create("a.exr")
    samples = oiio.DeepData()
    samples.init(16, 1, (oiio.TypeDesc("float"),), ("Z",))
    assert output is not None and output.open(str(path), spec)
    assert output.write_deep_image(samples) and output.close()


@pytest.mark.slow
def test_four_k_in_floats_with_overscan_is_read_whole(folder: Path, rng: np.random.Generator) -> None:
    values = rng.random((2560, 4608, 3), np.float32)
    write_image(
        folder / "a.exr", values, "float", channels=("R", "G", "B"), data=(-256, -200),
        display=(0, 0, 4096, 2160), attributes={"compression": "none"},
    )  # fmt: skip
    found = ScratchFolder(str(folder)).read("a.exr", 1)
    assert found.layout.data_window == (-256, -200, 4608, 2560)
    np.testing.assert_array_equal(np.frombuffer(found.data, np.float32).reshape(values.shape), values)
