"""The demo: keys are kept, a correction recomputes only what depends on it, the figures are correct."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from rich.console import Console

from model.inference.fast_network import FastNetwork
from model.weights_file import load_network
from stm_plugin.demo import demo
from stm_plugin.demo.demo import Round, run_demo
from stm_plugin.demo.plate import PlateSettings
from stm_plugin.exit_codes import ExitCode
from stm_plugin.settings import Settings

PLATE = PlateSettings(
    frame_count=8, width=240, height=136, overscan_x=8, overscan_y=4, shutter_samples=2, first_frame=1001
)
SETTINGS = Settings(working_size=144, device="cpu")


@dataclass(frozen=True)
class Shown:
    """A finished demo and its output."""

    out: Path
    one: Round
    two: Round
    text: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    out = tmp_path_factory.mktemp("demo")
    told = io.StringIO()
    network, _ = load_network()
    fast = FastNetwork(network, device="cpu")
    console = Console(file=told, width=200)
    one, two = run_demo(out, PLATE, SETTINGS, console, network=lambda _settings, _device: fast)
    yield Shown(out, one, two, told.getvalue())


def alpha(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    pixels = oiio.ImageBuf(str(path)).get_pixels("float")
    return np.asarray(pixels, np.float32)[..., 0]


def test_every_frame_of_both_rounds_has_a_matte_over_the_plates_windows(shown: Shown) -> None:
    for folder in ("one_key", "two_keys"):
        for frame in range(1001, 1009):
            spec = oiio.ImageBuf(str(shown.out / folder / f"matte.{frame}.exr")).spec()
            assert spec.channelnames == ("A",)
            assert (spec.x, spec.y, spec.width, spec.height) == (-8, -4, 256, 144)
            assert (spec.full_x, spec.full_y, spec.full_width, spec.full_height) == (0, 0, 240, 136)


def test_keys_come_back_as_they_were_given(shown: Shown) -> None:
    assert len(shown.two.keys) == 2
    for frame in shown.two.keys:
        given = alpha(shown.out / "truth" / f"truth.{frame}.exr")
        np.testing.assert_array_equal(alpha(shown.out / "two_keys" / f"matte.{frame}.exr"), given)


def test_the_mattes_follow_the_cup(shown: Shown) -> None:
    for result in (shown.one, shown.two):
        region, error = result.means(without=shown.two.keys)
        assert region > 0.75 and error < 0.3


def test_the_correction_goes_where_the_status_advises_and_its_cost_is_said(shown: Shown) -> None:
    advised = shown.one.advised
    assert advised is not None and advised != 1001
    assert shown.two.keys == (1001, advised)
    assert f"A correction key on {advised}, which `stm shot status` advises" in shown.text
    assert f"the mask on {advised} was added" in shown.text
    assert shown.one.network_frames == 7
    assert shown.two.network_frames == 7, "the two passes of the new key; the pass of the first key is kept"


def test_the_scores_are_those_of_the_files(shown: Shown) -> None:
    with (shown.out / "scores.csv").open(encoding="utf-8") as file:
        rows = {int(row["frame"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == list(range(1001, 1009))
    for frame, row in rows.items():
        truth = alpha(shown.out / "truth" / f"truth.{frame}.exr")
        for folder in ("one_key", "two_keys"):
            matte = alpha(shown.out / folder / f"matte.{frame}.exr")
            inside, outside = (truth > 0.5) & (matte > 0.5), (truth > 0.5) | (matte > 0.5)
            assert float(row[f"{folder}_j"]) == pytest.approx(inside.sum() / outside.sum(), abs=1e-4)
            either = (truth > 0) | (matte > 0)
            assert float(row[f"{folder}_error"]) == pytest.approx(
                np.abs(truth - matte)[either].mean(), abs=1e-4
            )


def test_it_says_where_everything_is(shown: Shown) -> None:
    for place in ("one_key/matte.####.exr", "two_keys/contact_sheet.png", "scores.csv"):
        assert str(shown.out / place) in shown.text
    for folder in ("one_key", "two_keys"):
        sheet = oiio.ImageBuf(str(shown.out / folder / "contact_sheet.png"))
        assert sheet.spec().width > 240 and np.asarray(sheet.get_pixels("uint8")).std() > 10


def test_a_folder_that_cannot_be_written_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file" / "demo")]) == ExitCode.STORE
    assert capsys.readouterr().err.startswith("Error: ")


def test_a_folder_with_other_files_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shot = tmp_path / "cup.stmshot"
    shot.mkdir()
    (shot / "shot.json").write_text("somebody's shot")
    assert demo.main(["--out", str(tmp_path)]) == ExitCode.STORE
    assert "the demo did not make" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["cup.stmshot", "shot.json"]


def test_review_opens_the_page_on_the_demos_shot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(demo, "run_demo", lambda out: None)
    monkeypatch.setattr(demo, "serve_review", opened.append)
    assert demo.main(["--out", str(tmp_path)]) == 0 and opened == []
    assert demo.main(["--out", str(tmp_path), "--review"]) == 0
    assert opened == [str(tmp_path / f"{demo.OBJECT}.stmshot")]
