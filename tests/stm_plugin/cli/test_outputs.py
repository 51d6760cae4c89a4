"""The command damages no file, and reports every key that it ignores and every frame that it leaves out."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import Manifest, read_manifest, save_network, shipped_weights
from stm_plugin.exit_codes import ExitCode
from stm_plugin.images import movie as movies
from stm_plugin.images.overlay import OverlayWriter
from tests.conftest import PlateMaker, write_exr
from tests.stm_plugin.command import Command, Said

FRAMES = range(1001, 1005)
SMALL = ("--working-size", 48)


class Desk:
    """A plate with the mask of its first frame, and the words that propagate it."""

    def __init__(self, folder: Path, plate: str, stm: Command) -> None:
        self.folder, self.plate, self.stm = folder, plate, stm
        self.mask = folder / "plate.mask.1001.png"
        self.out = folder / "out" / "m.####.exr"
        self.shot = folder / "out" / "m.stmshot"

    def run(self, *words: object, plate: object = None, out: object = None) -> Said:
        return self.stm(
            *("propagate", plate or self.plate, "--key", f"1001={self.mask}", "-o", out or self.out, *SMALL),
            *words,
        )

    def snapshot(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }

    def refused(self, run: Callable[[], Said], *words: str) -> None:
        """The command ends with an error that contains these words, and no file is changed or new."""
        before = self.snapshot()
        said = run()
        assert said.code in set(ExitCode) - {ExitCode.DONE, ExitCode.FAILED}, said
        assert said.err.count("Error:") == 1, said
        for word in words:
            assert word in said.err.replace("\n", ""), said.err
        assert self.snapshot() == before


@pytest.fixture
def desk(make_plate: PlateMaker, tmp_path: Path, stm: Command) -> Desk:
    return Desk(tmp_path, make_plate(frames=FRAMES), stm)


def jpeg_plate(folder: Path) -> str:
    for frame in FRAMES:
        picture = np.full((48, 64, 3), frame % 7 * 30, np.uint8)
        assert oiio.ImageBuf(picture).write(str(folder / f"shot.{frame}.jpg"))
    return str(folder / "shot.####.jpg")


def movie_plate(path: Path, count: int = 4) -> Path:
    with OverlayWriter(path) as writer:
        for frame in range(count):
            picture = np.full((48, 64, 3), 40, np.uint8)
            picture[10:30, 10 + 4 * frame : 30 + 4 * frame] = 200
            writer.write(frame, picture)
    return path


# ---- the artist's files ----


def test_an_overlay_never_replaces_the_movie_that_is_the_plate(desk: Desk) -> None:
    plate = movie_plate(desk.folder / "pl.mp4")
    key = ("propagate", plate, "--key", f"1={desk.mask}", "-o", desk.out, *SMALL)
    for overwrite in ((), ("--overwrite",)):
        desk.refused(lambda: desk.stm(*key, "--overlay", plate, *overwrite), "overwrite the plate", "pl.mp4")  # noqa: B023
    assert desk.stm(*key).code == 0
    desk.refused(lambda: desk.stm("shot", "overlay", desk.shot, plate, "--overwrite"), "the plate", "pl.mp4")


def test_an_overlay_never_replaces_the_frames_of_the_plate_nor_a_mask(desk: Desk) -> None:
    plate = jpeg_plate(desk.folder)
    assert desk.run(plate=plate).code == 0
    for words in (("overlay", desk.shot, plate), ("overlay", desk.shot, plate, "--frames", "1003")):
        desk.refused(lambda: desk.stm("shot", *words, "--overwrite"), "overwrite the plate", "shot.100")  # noqa: B023
    row = desk.folder / "plate.mask.####.png"
    desk.refused(
        lambda: desk.stm("shot", "overlay", desk.shot, row, "--overwrite"), "mask of the key on 1001"
    )


def test_a_contact_sheet_of_somebody_else_is_kept(desk: Desk) -> None:
    assert desk.run().code == 0
    look = desk.folder / "look"
    look.mkdir()
    assert oiio.ImageBuf(np.zeros((4, 4, 3), np.uint8)).write(str(look / "contact_sheet.png"))
    overlay = ("shot", "overlay", desk.shot, look)
    desk.refused(lambda: desk.stm(*overlay), "contact_sheet.png", "--overwrite")
    desk.refused(lambda: desk.run("--overlay", look), "contact_sheet.png", "--overwrite")
    assert desk.stm(*overlay, "--overwrite").code == 0
    assert desk.stm(*overlay).code == 0, "its own pictures are replaced"
    movie = ("shot", "overlay", desk.shot, desk.folder / "film" / "look.mp4")
    assert desk.stm(*movie).code == 0 and desk.stm(*movie).code == 0
    (desk.folder / "film" / "look.mp4").write_bytes(b"somebody's film")
    desk.refused(lambda: desk.stm(*movie), "look.mp4", "--overwrite")


def test_an_export_over_foreign_renders_is_refused(desk: Desk) -> None:
    assert desk.run().code == 0
    write_exr(desk.folder / "comp_v1.1002.exr", np.ones((48, 64, 3), np.float32))
    words = ("shot", "export", desk.shot, desk.folder / "comp_v1.####.exr")
    desk.refused(lambda: desk.stm(*words), "frame 1002", "comp_v1.1002.exr", "--overwrite")
    desk.refused(lambda: desk.run(out=desk.folder / "comp_v1.####.exr"), "frame 1002", "comp_v1.1002.exr")
    assert desk.stm(*words, "--overwrite").code == 0


def small_data_set(data: Path) -> Path:
    rng = np.random.default_rng(1)
    for kind in ("JPEGImages", "Annotations"):
        (data / kind / "one").mkdir(parents=True)
    for frame in range(4):
        picture = rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)
        labels = np.zeros((40, 56), np.uint8)
        labels[8:24, 10:26] = 255
        assert cv2.imwrite(str(data / "JPEGImages" / "one" / f"{frame:05d}.jpg"), picture)
        assert cv2.imwrite(str(data / "Annotations" / "one" / f"{frame:05d}.png"), labels)
    return data


@pytest.mark.parametrize("inside", ["data/scores", "data/Annotations/new", "link/a/b", "Data", "x/../data/s"])
def test_no_folder_is_made_inside_a_data_set(tmp_path: Path, stm: Command, inside: str) -> None:
    data = small_data_set(tmp_path / "data")
    (tmp_path / "link").symlink_to(data / "JPEGImages")
    desk, out = Desk(tmp_path, "", stm), tmp_path / inside
    folders = sorted(tmp_path.rglob("*"))
    for words in (
        ("eval", data, "--out", out),
        ("eval", "submission", data, out),
        ("eval", "table5", data, "--out", out),
        ("eval", "figure5", data, "--out", out / "f.png"),
        ("train", "pack", out / "away.tar", "--videos", data),
        ("train", "video", out, "--videos", data, "--steps", 1),
        ("train", "clips", out, "--count", 1, "--pictures", data),
        ("train", "edges", out, "--pictures", data, "--steps", 1),
    ):
        again = () if words[1] in ("video", "clips", "edges") else ("--overwrite",)
        desk.refused(lambda: stm(*words, *again), "inside", inside.split("/")[-1], str(data))  # noqa: B023
    assert sorted(tmp_path.rglob("*")) == folders
    beside = tmp_path / "data-scores"
    assert stm("eval", data, "--short-side", 32, "--out", beside).code == 0
    assert (beside / "global.csv").is_file()


def test_eval_never_replaces_the_data_set_nor_foreign_tables(tmp_path: Path, stm: Command) -> None:
    data = small_data_set(tmp_path / "data")
    desk = Desk(tmp_path, "", stm)
    words = ("eval", data, "--short-side", 32, "--out")
    desk.refused(lambda: stm(*words, data / "Annotations", "--overwrite"), "an annotation", "00000.png")
    out = tmp_path / "scores"
    out.mkdir()
    (out / "per_frame.csv").write_text("mine\n")
    desk.refused(lambda: stm(*words, out), "per_frame.csv", "--overwrite")
    assert stm(*words, out, "--overwrite").code == 0
    assert stm(*words, out).code == 0, "its own tables and pictures are replaced"
    measured = ("eval", data, "--results", out, "--out", out)
    assert stm(*measured).code == 0


def test_weights_are_never_replaced_without_a_word(tmp_path: Path, stm: Command) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").write_bytes(b"x")
    desk = Desk(tmp_path, "", stm)
    words = ("--name", "n", "--licence", "l", "--data", "d")
    kept = tmp_path / "ours.safetensors"
    kept.write_bytes(b"precious")
    desk.refused(lambda: stm("weights", "export", run, kept, *words), "ours.safetensors", "--overwrite")
    desk.refused(lambda: stm("weights", "convert", kept, kept, "--overwrite"), "the weights", str(kept))
    parts = [f"{path.stem}=0.5" for path in shipped_weights()]
    desk.refused(lambda: stm("weights", "mean", kept, *parts, "--name", "n"), "--overwrite", str(kept))
    said = stm("weights", "mean", tmp_path / "mean.safetensors", "stm-lite", "--name", "n")
    assert said.code == ExitCode.USAGE and "stm-lite=0.7" in said.err
    assert stm("weights", "mean", tmp_path / "mean.safetensors", *parts, "--name", "n").code == 0
    assert read_manifest(tmp_path / "mean.safetensors").use == "non-commercial only"
    shipped = shipped_weights()[0]
    before = shipped.read_bytes()
    said = stm("weights", "export", run, shipped, *words, "--overwrite")
    assert said.code == ExitCode.STORE and "shipped weights" in said.err and shipped.read_bytes() == before


# ---- nothing is dropped without a word ----


def test_a_packed_run_never_replaces_its_training_data_nor_a_foreign_file(
    tmp_path: Path, stm: Command
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "stills" / kind).mkdir(parents=True)
    values = np.zeros((72, 96), np.uint8)
    values[20:50, 20:60] = 255
    picture = tmp_path / "stills" / "images" / "a.png"
    cv2.imwrite(str(picture), cv2.merge([values] * 3))
    cv2.imwrite(str(tmp_path / "stills" / "masks" / "a.png"), values // 255)
    before = picture.read_bytes()
    foreign = tmp_path / "roto.tar"
    foreign.write_bytes(b"of the artist")
    for target, words in ((picture, ("--overwrite",)), (foreign, ())):
        said = stm("train", "pack", target, "--stills", tmp_path / "stills", *words)
        assert said.code == ExitCode.STORE and target.name in said.err
    assert picture.read_bytes() == before and foreign.read_bytes() == b"of the artist"


def test_nothing_is_unpacked_over_the_files_of_a_folder(tmp_path: Path, stm: Command) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("mine")
    packed = tmp_path / "away.tar"
    with tarfile.open(packed, "w") as tar:
        for name in ("config.json", "start.pt", "checkpoint.pt"):
            tar.add(folder / "config.json", name)
    desk = Desk(tmp_path, "", stm)
    for words in (("timed", packed, folder, "--minutes", 1, "--device", "cpu"), ("collect", packed, folder)):
        desk.refused(lambda: stm("train", *words), "not empty", str(folder))  # noqa: B023


def test_a_key_that_was_added_by_hand_stays_when_the_command_is_repeated(desk: Desk) -> None:
    assert desk.run().code == 0
    mask = desk.folder / "plate.mask.1004.png"
    assert desk.stm("shot", "key", "add", desk.shot, 1004, mask).code == 0
    again = desk.run()
    assert again.code == 0 and "key on 1004" in again.err.replace("\n", " ") and "kept" in again.err
    assert "key 1004" in desk.stm("shot", "status", desk.shot).out
    removed = desk.stm("shot", "key", "remove", desk.shot, 1004)
    assert removed.code == 0 and "key 1004: removed" in removed.out
    assert "key on" not in desk.run().err


def test_replacing_a_key_says_which_objects_are_gone(desk: Desk) -> None:
    assert desk.run().code == 0
    add = ("shot", "key", "add", desk.shot, 1001, desk.mask)
    assert desk.stm(*add, "--object", "hand", "--keep-others").code == 0
    said = desk.stm(*add, "--object", "hand")
    assert said.code == 0 and "mask of object1 was removed" in said.out


def test_frames_that_the_plate_does_not_have_are_named(desk: Desk) -> None:
    asked = ("--frames", "990-1003")
    desk.refused(lambda: desk.run(*asked), "990-1000", "1001 to 1004")
    assert desk.run().code == 0
    for verb in (("propagate", desk.shot), ("export", desk.shot, desk.folder / "x.####.exr")):
        desk.refused(lambda: desk.stm("shot", *verb, *asked), "990-1000", "1001 to 1004")  # noqa: B023
    desk.refused(
        lambda: desk.stm("shot", "overlay", desk.shot, desk.folder / "l", "--frames", "1004-1005"), "1005"
    )


def test_frames_of_a_movie_mention_how_they_are_numbered(desk: Desk) -> None:
    plate = movie_plate(desk.folder / "pl.mp4", 3)
    desk.refused(lambda: desk.run(plate=plate), "frame 1001", "1 to 3", "--start-frame")


def test_frames_that_no_key_reaches_end_in_an_error_that_names_them(desk: Desk) -> None:
    mask = desk.folder / "plate.mask.1003.png"
    words = (
        "propagate",
        desk.plate,
        "--key",
        f"1003={mask}",
        "-o",
        desk.out,
        *SMALL,
        "--direction",
        "forward",
    )
    said = desk.stm(*words)
    assert said.code == ExitCode.KEY and "Not computed: frames 1001-1002" in said.err.replace("\n", " ")
    assert sorted(path.name for path in desk.out.parent.glob("*.exr")) == ["m.1003.exr", "m.1004.exr"]
    again = desk.stm("shot", "propagate", desk.shot, "--direction", "forward")
    assert again.code == ExitCode.KEY and "1001-1002" in again.err
    assert desk.stm("shot", "propagate", desk.shot).code == 0


def test_a_lone_empty_mask_says_how_it_is_allowed(desk: Desk) -> None:
    empty = desk.folder / "empty.png"
    assert oiio.ImageBuf(np.zeros((48, 64, 1), np.float32)).write(str(empty), "uint8")
    assert desk.run().code == 0
    desk.refused(lambda: desk.stm("shot", "key", "add", desk.shot, 1004, empty), "empty", "--allow-empty")
    assert desk.stm("shot", "key", "add", desk.shot, 1004, empty, "--allow-empty").code == 0


def test_the_contact_sheet_says_how_many_frames_it_shows(
    make_plate: PlateMaker, tmp_path: Path, stm: Command
) -> None:
    desk = Desk(tmp_path, make_plate(frames=range(1001, 1015)), stm)
    said = desk.run("--overlay", tmp_path / "look")
    assert said.code == 0 and "(12 of 14 frames)" in said.out
    assert "1 of 1 frame)" in desk.stm("shot", "overlay", desk.shot, tmp_path / "one", "--frames", "1003").out


LISTENING_TO_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
from stm_plugin.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent by a signal")
def test_ctrl_c_says_what_was_kept_and_how_to_go_on(
    make_plate: PlateMaker, tmp_path: Path, repository: Path
) -> None:
    plate = make_plate(frames=range(1001, 1101), size=(160, 120))
    words = (
        "propagate",
        plate,
        "--key",
        f"1001={tmp_path / 'plate.mask.1001.png'}",
        "-o",
        tmp_path / "m.####.exr",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING_TO_CTRL_C, *map(str, words)],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 300
    while not (tmp_path / "m.1003.exr").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    said = r"Stopped\. \d+ frames? finished in this run (is|are) kept.*continues"
    assert re.search(said, err, re.DOTALL), err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--colour-space", "nonsense"), "nonsense"),
        (("--region", "900,900,64,64"), "region"),
        (("--weights", "broken.safetensors"), "broken.safetensors"),
        (("--wait", "nan"), "nan"),
        (("--wait", "inf"), "inf"),
        (("--wait", "-1"), "-1"),
    ],
)
def test_where_a_run_is_refused_nothing_of_it_is_left(desk: Desk, words: tuple[str, str], named: str) -> None:
    (desk.folder / "broken.safetensors").write_bytes(b"no weights")
    option, value = words
    value = str(desk.folder / value) if "." in value else value
    desk.refused(lambda: desk.run(option, value), named)
    assert not desk.shot.parent.exists()


def test_a_shot_with_results_stays_where_a_later_run_is_refused(desk: Desk) -> None:
    assert desk.run().code == 0
    before = {name: data for name, data in desk.snapshot().items() if ".stmshot" not in name}
    assert desk.run("--colour-space", "nonsense").code != 0
    assert desk.shot.is_dir()
    assert {name: data for name, data in desk.snapshot().items() if ".stmshot" not in name} == before
    said = desk.run()
    assert said.code == 0 and "0 computed" in said.out, said


def test_the_second_command_on_a_movie_does_not_decode_it_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[Path] = []
    walk = movies._walked

    def counted(path: Path, threads: int) -> dict[str, object]:
        walks.append(path)
        return walk(path, threads)

    monkeypatch.setattr(movies, "_walked", counted)
    movie, shot = movie_plate(desk.folder / "pl.mp4"), desk.folder / "pl.stmshot"
    movies._indexes.clear()
    first = desk.stm("shot", "new", shot, movie)
    movies._indexes.clear()  # as in another process
    second = desk.stm("shot", "status", shot)
    assert (first.code, second.code, walks) == (0, 0, [movie]) and "4 frames" in second.out
    notes = shot / "movie.index"
    for damage in (b"", b"nonsense", notes.read_bytes()[:-9]):
        notes.write_bytes(damage)
        movies._indexes.clear()
        assert desk.stm("shot", "status", shot) == second
    assert len(walks) == 4
    movie_plate(movie, 6)
    movies._indexes.clear()
    assert "6 frames" in desk.stm("shot", "status", shot).out and len(walks) == 5


# ---- weights that give no numbers ----


def test_weights_that_are_not_numbers_are_named_with_the_frame(desk: Desk) -> None:
    network = SpaceTimeMemoryNetwork(network_config("stm-lite"))
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    broken = desk.folder / "broken.safetensors"
    save_network(network, Manifest("broken", "stm-lite", "mine", ("none",), ""), broken)
    said = desk.run("--weights", broken)
    assert said.code == ExitCode.ENGINE, said.err
    assert "frame 1002" in said.err and "broken.safetensors" in said.err, said.err
    assert [path.name for path in desk.out.parent.glob("m.*.exr")] in ([], ["m.1001.exr"])
    shutil.rmtree(desk.shot)


def test_info_fits_a_narrow_terminal(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from stm_plugin.cli import main; main()", "info"],
        cwd=repository,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 24 and all(len(line.rstrip()) <= 80 for line in lines), done.stdout
    assert not any(set(line) & set("┃│┏└") for line in lines)
