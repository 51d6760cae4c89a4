"""The `stm` command: the main job end to end on real footage, the artist's loop, and errors for people."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenEXR
import OpenImageIO as oiio
import PyOpenColorIO
import pytest

from stm_plugin.exit_codes import ExitCode
from stm_plugin.images.matte import read_matte
from stm_plugin.propagation.frame_finisher import FrameFinisher
from stm_plugin.windows import FloatArray, Window
from tests.conftest import PlateMaker, write_exr
from tests.stm_plugin.command import Command

FRAMES = range(1001, 1005)


# ---- real footage ----------------------------------------------------------------------------


class AcesClip:
    """Frames of `clips/chair` as an ACEScg EXR plate from 1001 on, with overscan of its own picture."""

    first, count, border = 1001, 6, (24, 16)

    def __init__(self, clip: Path, folder: Path) -> None:
        self.clip, self.folder = clip, folder
        config = PyOpenColorIO.Config.CreateFromFile("ocio://studio-config-v2.2.0_aces-v1.3_ocio-v2.4")
        to_aces = config.getProcessor("sRGB - Texture", "ACEScg").getDefaultCPUProcessor()
        x, y = self.border
        for frame in range(self.first, self.first + self.count):
            pixels = self.photograph(frame)
            height, width = pixels.shape[:2]
            to_aces.applyRGB(pixels)
            self.display = Window(0, 0, width - 2 * x, height - 2 * y)
            self.data = Window(-x, -y, width, height)
            write_exr(
                folder / f"plate.{frame}.exr",
                pixels,
                origin=(-x, -y),
                display=(0, 0, width - 2 * x, height - 2 * y),
                attributes={
                    "colorInteropID": "lin_ap1_scene",
                    "camera": "test camera",
                },
            )
            stamp_timecode(folder / f"plate.{frame}.exr", frame - self.first)
        mask = oiio.ImageBuf(np.ascontiguousarray(self.truth(self.first)[y:-y, x:-x, None]))
        assert mask.write(str(folder / "mask.1001.exr"), "half"), mask.geterror()

    def photograph(self, frame: int) -> FloatArray:
        """(H, W, 3) sRGB in [0, 1]."""
        pixels = cv2.imread(str(self.clip / "JPEGImages" / f"frame_{frame - self.first:06d}.jpg"))
        assert pixels is not None
        return np.ascontiguousarray(pixels[..., ::-1].astype(np.float32) / 255)

    def truth(self, frame: int) -> FloatArray:
        """(H, W) of the data window."""
        path = self.clip / "Annotations" / f"frame_{frame - self.first:06d}.png"
        labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert labels is not None
        return (labels > 0).astype(np.float32)


def stamp_timecode(path: Path, frame: int) -> None:
    """Gives an EXR the timecode 01:00:00:frame, with a writer that is not the product's."""
    with OpenEXR.File(str(path)) as file:
        header, channels = file.header(), file.channels()
        header["timeCode"] = OpenEXR.TimeCode(1, 0, 0, frame, *[0] * 14)
        stamped = OpenEXR.File(header, channels)
        stamped.write(str(path.with_suffix(".new")))
    path.with_suffix(".new").replace(path)


@pytest.fixture
def aces_clip(shared_data: Path, tmp_path: Path) -> AcesClip:
    return AcesClip(shared_data / "clips" / "chair", tmp_path)


def overlap(matte: FloatArray, truth: FloatArray) -> float:
    inside, true = matte > 0.5, truth > 0.5
    return float((inside & true).sum() / (inside | true).sum())


@pytest.mark.slow
def test_a_real_clip_as_an_acescg_plate_with_overscan_comes_back_as_it_went_in(
    aces_clip: AcesClip, tmp_path: Path, stm: Command
) -> None:
    said = stm(
        *("propagate", tmp_path / "plate.####.exr", "--key", f"1001={tmp_path / 'mask.1001.exr'}"),
        *("--out", tmp_path / "matte" / "matte.####.exr", "--working-size", 320),
        *("--overlay", tmp_path / "look"),
    )
    assert said.code == 0, said.err
    for frame in range(1001, 1001 + AcesClip.count):
        with OpenEXR.File(str(tmp_path / "matte" / f"matte.{frame}.exr"), separate_channels=True) as file:
            header, channels = file.header(), file.channels()
            matte = channels["A"].pixels
            assert matte.dtype == np.float16
            low, high = header["dataWindow"]
            assert (*low, *high) == (-24, -16, -24 + matte.shape[1] - 1, -16 + matte.shape[0] - 1)
            low, high = header["displayWindow"]
            assert (*low, *high) == (0, 0, aces_clip.display.width - 1, aces_clip.display.height - 1)
            assert header["camera"] == "test camera" and header["pixelAspectRatio"] == 1
            assert header["timeCode"].frame == frame - 1001
            assert "non-commercial" in header["stm:weights_licence"]
        values = matte.astype(np.float32)
        x, y = aces_clip.border
        inside, truth = values[y:-y, x:-x], aces_clip.truth(frame)[y:-y, x:-x]
        if frame == 1001:
            assert np.array_equal(inside, truth)  # keys are law
        else:
            assert overlap(inside, truth) > 0.6, frame
    assert (tmp_path / "look" / "contact_sheet.png").stat().st_size > 10_000
    assert len(list((tmp_path / "look").glob("overlay.*.jpg"))) == AcesClip.count


@pytest.mark.slow
def test_the_same_scene_as_acescg_and_as_srgb_gives_the_same_matte(
    aces_clip: AcesClip, tmp_path: Path, stm: Command
) -> None:
    mask = np.ascontiguousarray(aces_clip.truth(1001)[..., None])
    assert oiio.ImageBuf(mask).write(str(tmp_path / "whole.png"), "uint8")
    mattes = {}
    for name in ("aces", "srgb"):
        folder = tmp_path / name
        folder.mkdir()
        for frame in (1001, 1002, 1003):
            if name == "srgb":
                assert oiio.ImageBuf(aces_clip.photograph(frame)).write(
                    str(folder / f"p.{frame}.tif"), "float"
                )
            else:
                pixels = aces_clip.photograph(frame)
                config = PyOpenColorIO.Config.CreateFromFile("ocio://default")
                processor = config.getProcessor("sRGB - Texture", "ACEScg").getDefaultCPUProcessor()
                processor.applyRGB(pixels)
                write_exr(folder / f"p.{frame}.exr", pixels)
        said = stm(
            *("propagate", folder, "--key", f"1001={tmp_path / 'whole.png'}", "--working-size", 240),
            *("--colour-space", "ACEScg" if name == "aces" else "sRGB - Texture"),
            *("--out", folder / "matte" / "m.####.exr"),
        )
        assert said.code == 0, said.err
        mattes[name] = read_matte(folder / "matte" / "m.1003.exr").channels["A"]
    assert overlap(mattes["aces"], mattes["srgb"]) > 0.97
    assert np.abs(mattes["aces"] - mattes["srgb"]).mean() < 2e-3


@pytest.mark.slow
def test_eval_measures_the_network_and_results_alike(shared_data: Path, tmp_path: Path, stm: Command) -> None:
    clip = tmp_path / "clip"
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (clip / kind / "chair").mkdir(parents=True)
        for frame in range(4):
            source = shared_data / "clips" / "chair" / kind / f"frame_{frame:06d}.{ending}"
            (clip / kind / "chair" / source.name).symlink_to(source)
    out = tmp_path / "results"
    ran = stm("eval", clip, "--out", out, "--short-side", 240)
    assert ran.code == 0, ran.err
    measured = stm("eval", clip, "--results", out)
    assert measured.code == 0, measured.err
    scores = [re.findall(r"\d+\.\d+", said.out)[:3] for said in (ran, measured)]
    assert scores[0] == scores[1] and len(scores[0]) == 3
    assert list(out.glob("*.csv"))


# ---- the artist's loop -----------------------------------------------------------------------


def test_the_artists_loop_in_a_terminal(make_plate: PlateMaker, tmp_path: Path, stm: Command) -> None:
    plate = make_plate(frames=FRAMES)
    masks = {frame: tmp_path / f"plate.mask.{frame}.png" for frame in FRAMES}
    shot = tmp_path / "hero"
    made = stm("shot", "new", shot, plate, "--set", "working_size=48", "--set", "finish.edges=off")
    assert made.code == 0 and "frames 1001-1004" in made.out, made.err
    added = stm("shot", "key", "add", shot, 1001, masks[1001], "--object", "disc")
    assert added.code == 0 and "frames 1002-1004 will be computed" in added.out, added.err
    assert stm("shot", "export", shot, tmp_path / "early.####.exr").code == ExitCode.STORE
    ran = stm("shot", "propagate", shot)
    assert ran.code == 0 and "3 computed" in ran.out, ran.err
    corrected = stm("shot", "key", "add", shot, 1003, masks[1003], "--object", "disc")
    assert "1002" in corrected.out and "1004" in corrected.out and "1001" not in corrected.out
    again = stm("shot", "propagate", shot)
    assert again.code == 0 and "3 computed" in again.out, again.out  # 1002, 1001, where it arrives, and 1004
    exported = stm("shot", "export", shot, tmp_path / "final" / "m.####.exr")
    assert exported.code == 0 and "4 frames" in exported.out, exported.err
    mask = cv2.imread(str(masks[1003]), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    on_key = read_matte(tmp_path / "final" / "m.1003.exr").channels["A"]
    assert np.abs(on_key - mask / 255).max() < 1e-3
    assert "4 frames" not in stm("shot", "clean", shot).err
    status = stm("shot", "status", shot)
    assert status.code == 0 and "done" in status.out and "key 1003" in status.out


def test_a_correction_in_a_terminal_begins_from_the_matte(
    make_plate: PlateMaker, tmp_path: Path, stm: Command
) -> None:
    plate = make_plate(range(1001, 1005))
    shot = str(tmp_path / "hero")
    settings = ("--set", "working_size=64", "--set", "colour_space=lin_rec709_scene")
    assert stm("shot", "new", shot, plate, *settings).code == 0
    stm("shot", "key", "add", shot, 1001, plate.replace("####.exr", "mask.1001.png"))
    early = stm("shot", "fix", shot, 1003)
    assert early.code != 0
    assert "is not done" in early.err
    assert stm("shot", "propagate", shot).code == 0
    path = tmp_path / "hero.fix.1003.exr"
    said = stm("shot", "fix", shot, 1003)
    assert said.code == 0, said.err
    assert f"stm shot key add {shot} 1003 {path}" in said.out.replace("\n", " ")
    found = read_matte(path)
    assert list(found.channels) == ["A"]
    painted = found.channels["A"].copy()
    painted[4:10, 4:10] = 1.0
    write_exr(path, painted[..., None], channels=("A",))
    again = stm("shot", "fix", shot, 1003)
    assert again.code != 0, "what was painted is never written over unasked"
    assert "--overwrite" in again.err
    assert stm("shot", "key", "add", shot, 1003, path).code == 0
    assert stm("shot", "propagate", shot).code == 0
    assert stm("shot", "export", shot, tmp_path / "out.####.exr").code == 0
    np.testing.assert_array_equal(
        read_matte(tmp_path / "out.1003.exr").channels["A"], painted.astype(np.float16)
    )


def test_running_again_computes_nothing(make_plate: PlateMaker, tmp_path: Path, stm: Command) -> None:
    words = (
        *("propagate", make_plate(frames=FRAMES), "--key", f"1001={tmp_path / 'plate.mask.1001.png'}"),
        *("--out", tmp_path / "matte.####.exr", "--working-size", 48),
    )
    assert "4 written" in stm(*words).out
    before = {path: path.read_bytes() for path in tmp_path.glob("matte.*.exr")}
    again = stm(*words)
    assert again.code == 0 and "0 written" in again.out and "0 computed" in again.out
    assert len(before) == 4 and all(path.read_bytes() == old for path, old in before.items())


# ---- errors for people -----------------------------------------------------------------------


def test_every_wrong_input_is_an_error_that_names_it(
    make_plate: PlateMaker, tmp_path: Path, stm: Command
) -> None:
    plate = make_plate(frames=FRAMES)
    mask = tmp_path / "plate.mask.1001.png"
    wrong = np.zeros((9, 9, 1), np.float32)
    wrong[3:6, 3:6] = 1
    assert oiio.ImageBuf(wrong).write(str(tmp_path / "wrong.png"), "uint8")
    assert oiio.ImageBuf(np.zeros((48, 64, 1), np.float32)).write(str(tmp_path / "empty.png"), "uint8")
    out = ("--out", tmp_path / "m.####.exr", "--working-size", 48)
    cases: dict[tuple[object, ...], tuple[str, ...]] = {
        ("propagate", plate, "--key", f"1001={tmp_path / 'no.png'}", *out): ("frame 1001", "no.png"),
        ("propagate", plate, "--key", "mask.png", *out): ("--key 1001=mask.exr",),
        ("propagate", plate, "--key", f"1009={mask}", *out): ("frame 1009", "1001 to 1004"),
        ("propagate", plate, "--key", f"1001={tmp_path / 'wrong.png'}", *out): ("wrong.png", "9x9", "64x48"),
        ("propagate", plate, "--key", f"1001={tmp_path / 'empty.png'}", *out): ("1001", "empty"),
        ("propagate", tmp_path / "gone.####.exr", "--key", f"1={mask}", *out): ("gone.####.exr",),
        ("propagate", plate, "--key", f"1001={mask}", *out, "--colour-space", "ACESgc"): ("ACESgc", "ACEScg"),
        ("propagate", plate, "--key", f"1001={mask}", *out, "--weights", "no.pth"): ("no.pth", "stm-lite"),
        ("propagate", plate, "--key", f"1001={mask}", *out, "--memory", "some"): ("some", "every:N"),
        ("propagate", plate, "--key", f"1001={mask}", *out, "--device", "cuda:9"): ("cuda:9", "cpu"),
        ("propagate", plate, "--key", f"1001={mask}", *out, "--frames", "9-1"): ("9-1", "backwards"),
        ("propagate", plate, "--key", f"1001={mask}", "--out", plate): ("overwrite", "plate.1001.exr"),
        ("propagate", plate, "--key", f"1001={mask}", "-o", tmp_path / "j.#.jpg"): ("j.1001.jpg", ".exr"),
        ("propagate", plate, "--key", f"1001={tmp_path}", *out): ("frame 1001", "folder", "one picture"),
        ("eval", tmp_path / "none"): ("none",),
        ("shot", "status", tmp_path / "nowhere"): ("nowhere",),
    }
    for words, expected in cases.items():
        said = stm(*words)
        assert said.code in set(ExitCode) - {ExitCode.DONE}, (words, said)
        assert said.err.count("Error:") == 1, (words, said.err)
        for text in expected:
            assert text in said.err.replace("\n", ""), (words, said.err)


def test_a_truncated_frame_is_named_and_finished_frames_stay(
    make_plate: PlateMaker, tmp_path: Path, stm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FrameFinisher.write

    def slowly(finisher: FrameFinisher, frame: int, writer: Any) -> Any:
        if frame == 1002:
            time.sleep(0.5)  # frame 1003 still waits when frame 1004 cannot be read
        return write(finisher, frame, writer)

    monkeypatch.setattr(FrameFinisher, "write", slowly)
    monkeypatch.setattr("stm_plugin.propagation.propagation.most_workers", lambda: 1)
    plate = make_plate(frames=FRAMES)
    broken = tmp_path / "plate.1004.exr"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    words = (
        *("propagate", plate, "--key", f"1001={tmp_path / 'plate.mask.1001.png'}"),
        *("--out", tmp_path / "m.####.exr", "--working-size", 48),
    )
    said = stm(*words)
    assert said.code == ExitCode.PLATE and "frame 1004" in said.err and "plate.1004.exr" in said.err
    assert sorted(path.name for path in tmp_path.glob("m.*.exr")) == [
        f"m.{frame}.exr" for frame in (1001, 1002, 1003)
    ]
    assert read_matte(tmp_path / "m.1003.exr").channels["A"].max() > 0
    broken.write_bytes(whole)
    assert stm(*words).code == 0
    assert len(list(tmp_path.glob("m.*.exr"))) == 4


def test_info_says_device_versions_weights_licence_and_config(stm: Command) -> None:
    said = stm("info")
    assert said.code == 0
    for text in ("device", "torch", "OCIO config", "stm-lite", "non-commercial"):
        assert text in said.out


def test_the_command_starts_as_a_program_of_its_own(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from stm_plugin.cli import main; main()", "propagate", "--help"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "--key" in done.stdout
