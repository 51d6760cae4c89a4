"""No output overwrites an input or a file of another program, under any of the file's names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio
import pytest

from stm_plugin.errors import OutputError
from stm_plugin.files.outputs import Given, WrittenList, place_of, refusal
from stm_plugin.images.matte import read_matte
from stm_plugin.images.overlay import write_picture
from stm_plugin.images.provenance import MAKER, inspect_matte, our_pictures
from stm_plugin.planning.values import Request
from stm_plugin.propagation.events import Event, Notice
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.inputs import Inputs, inputs_of
from stm_plugin.shot.propagate import KeyMask, RunOptions, Summary, propagate
from stm_plugin.shot.shot import Shot
from tests.conftest import PlateMaker, write_exr
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

SETTINGS = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene")
FRAMES = range(1001, 1005)
WHOLE = Request()


def nothing_is_ours(frame: int | None, path: Path) -> bool:
    return False


class Desk:
    """A plate, a mask, and a way to propagate."""

    def __init__(self, folder: Path, plate: str) -> None:
        self.folder, self.plate = folder, plate
        self.mask = folder / "plate.mask.1001.png"
        self.network = CountingNetwork()

    def run(
        self,
        out: Path | str,
        *,
        plate: str | Path | None = None,
        keys: Mapping[int, KeyMask] | None = None,
        request: Request = WHOLE,
        **running: Any,
    ) -> Summary:
        return propagate(
            plate or self.plate,
            keys or {1001: self.mask},
            out,
            settings=SETTINGS,
            request=request,
            run=RunOptions(network=self.network.factory, **running),
        )

    def snapshot(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def refused(self, out: Path | str, *names: str, **options: Any) -> None:
        """The run is refused with a message that names these files, and no byte has changed."""
        before = self.snapshot()
        with pytest.raises(OutputError) as caught:
            self.run(out, **options)
        for name in names:
            assert name in str(caught.value), str(caught.value)
        assert self.snapshot() == before


@pytest.fixture
def desk(tmp_path: Path, make_plate: PlateMaker) -> Desk:
    return Desk(tmp_path, make_plate(frames=FRAMES))


# ---- inputs are never outputs ----


def test_the_plate_is_refused_whatever_frames_would_be_written(desk: Desk) -> None:
    desk.refused(desk.plate, "plate.1001.exr", "overwrite the plate")
    desk.refused(desk.plate, "overwrite the plate", request=Request(1002, 1003), overwrite=True)
    stated = desk.plate.replace("####", "1001-1002#")
    desk.refused(desk.folder / "plate.%04d.exr", "plate.", "overwrite the plate", plate=stated)


@pytest.mark.parametrize("way", ["dots", "linked folder", "letter case", "hard link", "linked file"])
def test_the_plate_is_refused_by_whatever_name_it_is_reached(desk: Desk, way: str) -> None:
    out: Path | str = desk.folder / "other.####.exr"
    if way == "dots":
        (desk.folder / "sub").mkdir()
        out = f"{desk.folder}/sub/../plate.####.exr"
    elif way == "linked folder":
        (desk.folder / "door").symlink_to(desk.folder, target_is_directory=True)
        out = desk.folder / "door" / "plate.####.exr"
    elif way == "letter case":
        out = desk.folder / "Plate.####.EXR"
    elif way == "hard link":
        os.link(desk.folder / "plate.1003.exr", desk.folder / "other.1003.exr")
    else:
        (desk.folder / "other.1004.exr").symlink_to(desk.folder / "plate.1004.exr")
    desk.refused(out, "overwrite the plate", request=Request(1001, 1002), overwrite=True)


def test_a_mask_is_refused_before_and_after_it_became_a_key(desk: Desk) -> None:
    roto = desk.folder / "roto"
    roto.mkdir()
    pixels = np.zeros((48, 64, 4), np.float32)
    pixels[10:30, 10:30] = 1
    pixels[0, 0, 3] = 0.5
    mask = write_exr(roto / "roto.1001.exr", pixels, channels=("R", "G", "B", "A"))
    for request in (WHOLE, Request(1002, 1004)):
        desk.refused(
            roto / "roto.####.exr",
            "roto.1001.exr",
            "mask of the key on 1001",
            keys={1001: mask},
            request=request,
            overwrite=True,
        )
    summary = desk.run(desk.folder / "out" / "m.####.exr", keys={1001: mask})
    before = mask.read_bytes()
    with Shot.open(summary.shot, network=desk.network.factory) as shot:
        for overwrite in (False, True):
            writer = MatteWriter(roto / "roto.####.exr", shot.plate, overwrite=overwrite)
            with pytest.raises(OutputError, match=r"mask of the key on 1001.*roto\.1001\.exr"):
                shot.export(writer)
    assert mask.read_bytes() == before and [one.name for one in roto.iterdir()] == ["roto.1001.exr"]


def test_weights_and_the_colour_config_are_refused(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, config = tmp_path / "net.0001.exr", tmp_path / "net.0002.exr"
    for path in (weights, config):
        path.write_bytes(b"x")
    with Shot.open(desk.run(desk.folder / "o" / "m.####.exr").shot) as shot:
        monkeypatch.setenv("OCIO", str(config))
        inputs = inputs_of(shot.plate, Settings(weights=str(weights)), shot.folder)
        writer = MatteWriter(tmp_path / "net.####.exr", shot.plate, overwrite=True)
        for frame, what in ((1, "the weights"), (2, "the colour config")):
            with pytest.raises(OutputError, match=what):
                writer.check(inputs, shot.folder, [frame])


def test_nothing_is_written_into_a_shot_store(desk: Desk) -> None:
    store = desk.run(desk.folder / "out" / "m.####.exr").shot
    desk.refused(store / "keys" / "x.####.exr", "inside a shot store", overwrite=True)


# ---- files of other people ----


def test_files_that_stm_did_not_make_are_refused_unless_said(desk: Desk) -> None:
    out = desk.folder / "comp"
    out.mkdir()
    render = write_exr(out / "comp_v1.1003.exr", np.ones((48, 64, 3), np.float32))
    desk.refused(out / "comp_v1.####.exr", "comp_v1.1003.exr", "frame 1003", "--overwrite")
    assert not list(out.glob("*.stmshot"))
    desk.run(out / "comp_v1.####.exr", overwrite=True)
    assert inspect_matte(render).is_ours


def test_a_render_that_took_over_the_metadata_of_a_matte_is_not_ours(desk: Desk) -> None:
    summary = desk.run(desk.folder / "out" / "m.####.exr")
    path = summary.files[2].path
    edited = oiio.ImageBuf(str(path))
    edited.setpixel(5, 5, [0.75])
    assert edited.write(str(path)), edited.geterror()
    found = read_matte(path)
    assert found.metadata.get_string_attribute("stm:address") and not found.is_as_written
    desk.refused(desk.folder / "out" / "m.####.exr", "frame 1003", "m.1003.exr", "--overwrite")
    desk.run(desk.folder / "out" / "m.####.exr", overwrite=True)
    assert read_matte(path).is_as_written


def test_a_matte_that_was_changed_is_not_current_even_with_its_time_restored(desk: Desk) -> None:
    out = desk.folder / "out" / "m.####.exr"
    path = desk.run(out).files[2].path
    whole, status = path.read_bytes(), path.stat()
    edited = oiio.ImageBuf(str(path))
    edited.setpixel(5, 5, [0.75])
    assert edited.write(str(path)), edited.geterror()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    desk.refused(out, "frame 1003", "m.1003.exr")
    desk.run(out, overwrite=True)
    assert path.read_bytes() == whole


def test_a_truncated_matte_is_written_again(desk: Desk) -> None:
    out = desk.folder / "out" / "m.####.exr"
    path = desk.run(out).files[2].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert [one.frame for one in desk.run(out).files if one.written] == [1003]
    assert path.read_bytes() == whole


def test_what_is_no_plain_file_is_never_replaced(desk: Desk) -> None:
    out = desk.folder / "out"
    out.mkdir()
    (out / "m.1002.exr").symlink_to(desk.folder / "nowhere.exr")
    desk.refused(out / "m.####.exr", "m.1002.exr", "not a plain file", overwrite=True)
    (out / "m.1002.exr").unlink()
    (out / "m.1002.exr").mkdir()
    desk.refused(out / "m.####.exr", "m.1002.exr", "not a plain file", overwrite=True)


@pytest.mark.parametrize("name", ["a.png", "b.jpg"])
def test_a_picture_that_a_person_painted_in_is_not_ours_though_it_says_so(tmp_path: Path, name: str) -> None:
    picture, path = np.zeros((8, 8, 3), np.uint8), tmp_path / name
    write_picture(path, picture, listed=WrittenList(tmp_path))
    assert our_pictures([path]) == {path}
    write_picture(path, picture + 1, listed=WrittenList(tmp_path))
    assert our_pictures([path]) == {path}, "written again"
    painted = oiio.ImageBuf(str(path))
    painted.setpixel(3, 3, (1.0, 0.0, 0.0))
    assert painted.write(str(path)), "a program that keeps the header"
    assert oiio.ImageBuf(str(path)).spec().get_string_attribute("Software") == MAKER
    assert our_pictures([path]) == set()


def test_a_picture_is_ours_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path, new = tmp_path / "a.png", tmp_path / "new.png"
    write_picture(path, np.zeros((8, 8, 3), np.uint8), listed=WrittenList(tmp_path))
    write_picture(new, np.ones((8, 8, 3), np.uint8))
    WrittenList(tmp_path).finish_as(path, new)  # and then it was killed
    assert our_pictures([path]) == {path}
    new.replace(path)
    assert our_pictures([path]) == {path}


def test_listed_files_are_known_as_ours(tmp_path: Path) -> None:
    movie = tmp_path / "c.mp4"
    listed = WrittenList(tmp_path)
    listed.begin([movie])
    movie.write_bytes(b"half")
    assert our_pictures([movie]), "a run that was killed may be begun again"
    movie.write_bytes(b"movie")
    listed.finish([movie])
    assert our_pictures([movie])
    movie.write_bytes(b"somebody's")
    assert not our_pictures([movie])


# ---- one owner at a time ----


def test_a_row_of_mattes_belongs_to_one_shot(desk: Desk) -> None:
    out = desk.folder / "out" / "m.####.exr"
    first = desk.run(out).shot
    desk.refused(out, "belong to another shot", str(first), shot_folder=desk.folder / "b")
    heard: list[Event] = []
    desk.run(out, shot_folder=desk.folder / "b", overwrite=True, on_event=heard.append)
    told = [one.text for one in heard if isinstance(one, Notice)]
    assert any("from now on" in text and "b.stmshot" in text for text in told), told
    desk.refused(out, "belong to another shot", "b.stmshot")


def test_a_shot_that_is_at_work_keeps_its_row_even_if_overwriting_is_said(desk: Desk) -> None:
    out = desk.folder / "out" / "m.####.exr"
    first = desk.run(out).shot
    busy = pytest.raises(OutputError, match="is writing these files")
    with Shot.open(first) as shot, shot.store.lock, busy:
        desk.run(out, shot_folder=desk.folder / "b", overwrite=True)


def test_a_writer_stops_when_its_row_is_taken_over(desk: Desk) -> None:
    out = desk.folder / "out" / "m.####.exr"
    first = desk.run(out).shot
    desk.run(desk.folder / "b" / "m.####.exr", shot_folder=desk.folder / "b")
    network = desk.network.factory
    with Shot.open(first, network=network) as one, Shot.open(desk.folder / "b", network=network) as other:
        (desk.folder / "out" / "m.1002.exr").unlink()
        writer = MatteWriter(out, one.plate)

        def take_over(event: Event) -> None:
            MatteWriter(out, other.plate, overwrite=True).begin(_inputs(other), other.folder, [1001])

        with pytest.raises(OutputError, match=r"frame 1002.*taken these files over"):
            one.export(writer, on_event=take_over)


def test_a_folder_that_was_copied_or_moved_keeps_its_owner(desk: Desk, tmp_path: Path) -> None:
    work = desk.folder / "work"
    desk.run(work / "m.####.exr")
    shutil.copytree(work, tmp_path / "copy")
    desk.run(tmp_path / "copy" / "m.####.exr")
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert not any(one.written for one in desk.run(tmp_path / "moved" / "m.####.exr").files)


def _inputs(shot: Shot) -> Inputs:
    return inputs_of(shot.plate, shot.settings, shot.folder)


# ---- the decision is pure ----


def test_the_decision_needs_no_disk(tmp_path: Path) -> None:
    output, mask = place_of(tmp_path / "a.1.exr"), place_of(tmp_path / "A.1.EXR")
    assert output.kind == "nothing"
    found = refusal([(1, output)], [], [(Given("the mask", mask.path), mask)], is_ours=nothing_is_ours)
    assert found is not None and str(mask.path) in found.what and found.path == output.path
    assert refusal([(1, output)], [], [], is_ours=nothing_is_ours) is None
    data = Given("the data set", tmp_path)
    for folder, is_inside in ((output.folder, True), ("/", True), (f"{output.folder}-2", False)):
        found = refusal([(1, output)], [], [], folders=[(data, folder)], is_ours=nothing_is_ours)
        assert (found is not None) == is_inside, folder
