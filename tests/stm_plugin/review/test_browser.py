"""The page of `stm review` in a real browser: the whole loop, with mouse and keys, on a real clip."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from stm_nuke.client import Engine

from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.conftest import REPOSITORY

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
expect = playwright.expect

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COMMAND = "from stm_plugin.cli.main import main; main()"
FRAMES = 8
WAIT_MS = 120_000

pytestmark = pytest.mark.slow


@dataclass
class Running:
    """A running `stm review`."""

    shot: Path
    home: Path
    runtime: Path
    process: subprocess.Popen[str] | None = None

    def start(self, what: str | None = None) -> str:
        """Start it; returns the address that it prints. `what`: a shot or a plate; the shot if None."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "review", what or str(self.shot), "--no-browser"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "XDG_CACHE_HOME": str(self.home),
                "STM_RUNTIME_DIR": str(self.runtime),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"Open (\S+)", line):
                return found[1]
        raise AssertionError("the page did not start")

    @property
    def engine(self) -> int:
        """The engine's process."""
        return int(json.loads((self.runtime / "endpoint.json").read_text("utf-8"))["pid"])

    def end(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    found = next((shutil.which(name) for name in BROWSERS if shutil.which(name)), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=options)
        yield started
        started.close()


@pytest.fixture
def running(shared_data: Path, tmp_path: Path) -> Iterator[Running]:
    """A small shot of a real clip, and its page."""
    for index, path in enumerate(
        sorted((shared_data / "clips" / "chair" / "JPEGImages").rglob("*.jpg"))[:FRAMES]
    ):
        picture = cv2.imread(str(path))
        assert picture is not None
        small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(tmp_path / f"chair.{1001 + index}.jpg"), small)
    plate = PlateDescription("files", str(tmp_path / "chair.####.jpg"))
    Shot.create(tmp_path / "chair.stmshot", plate, Settings(working_size=96, device="cpu")).close()
    runtime = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))  # a socket's name must be short
    page = Running(tmp_path / "chair.stmshot", tmp_path / "cache", runtime)
    yield page
    page.end(signal.SIGKILL)
    with contextlib.suppress(OSError, ValueError):
        os.kill(page.engine, signal.SIGTERM)  # else it ends when it finds that the page has gone
    shutil.rmtree(runtime, ignore_errors=True)


def says(page: object, text: str) -> None:
    """Wait until the page shows a text."""
    expect(page.locator("#run")).to_contain_text(text, timeout=WAIT_MS)  # type: ignore[attr-defined]


def test_the_whole_loop_in_a_browser(browser: object, running: Running, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 720})  # type: ignore[attr-defined]
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(running.start())
    expect(page.locator("#dirty")).to_contain_text("no key yet", timeout=WAIT_MS)
    stage = page.locator("#view").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return stage["x"] + stage["width"] * x, stage["y"] + stage["height"] * y

    # Paint a mask with the brush, take a stroke back, and make it a key.
    page.locator("#size").fill("60")
    for start, end in (((0.45, 0.4), (0.55, 0.6)), ((0.1, 0.1), (0.2, 0.1))):
        page.mouse.move(*at(*start))
        page.mouse.down()
        page.mouse.move(*at(*end), steps=5)
        page.mouse.up()
    expect(page.locator("#note")).to_contain_text("Painted")
    page.keyboard.press("Control+z")
    page.click("#set-key")
    says(page, "Key 1001 is set")
    expect(page.locator("#dirty")).to_contain_text(f"computes {FRAMES - 1} frames")
    with Shot.open(running.shot) as shot:
        mask, _ = shot.store.mask(next(iter(shot.store.description().keys[0].masks.values())).hash)
    height, width = mask.shape
    assert mask[height // 2, width // 2] == 1.0 and mask[: height // 5, : width // 4].max() == 0.0
    assert ((mask > 0) & (mask < 1)).any()

    # Propagate, and go to the frame that the engine advises.
    page.click("#propagate")
    says(page, f"{FRAMES - 1} computed")
    expect(page.locator("#dirty")).to_contain_text("up to date")
    page.screenshot(path=str(tmp_path / "page.png"))

    # Correct another frame by a lasso, reload in the middle, and propagate again.
    page.keyboard.press("Control+ArrowRight")
    expect(page.locator("#frame")).to_contain_text(str(1000 + FRAMES))
    page.keyboard.press("g")
    page.mouse.move(*at(0.6, 0.6))
    page.mouse.down()
    for corner in ((0.7, 0.6), (0.7, 0.7), (0.6, 0.7), (0.6, 0.6)):
        page.mouse.move(*at(*corner), steps=3)
    page.mouse.up()
    expect(page.locator("#set-key")).to_be_enabled()
    page.keyboard.press("Enter")
    says(page, f"Key {1000 + FRAMES} is set")
    page.reload()
    expect(page.locator("#propagate")).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator("#dirty")).to_contain_text("computes")
    page.keyboard.press("r")
    says(page, "computed")

    # The panel stays in the window where that gets smaller.
    page.set_viewport_size({"width": 1920, "height": 1080})
    page.keyboard.press("Home")
    page.set_viewport_size({"width": 1280, "height": 720})
    panel = page.locator("aside").bounding_box()
    assert panel["x"] + panel["width"] <= 1280 and panel["y"] + panel["height"] <= 720

    # Every view draws; a second window of the same browser sees the same shot.
    for key in "acpdwfo":
        page.keyboard.press(key)
    other = context.new_page()
    other.goto(page.url)
    expect(other.locator("#dirty")).to_contain_text("up to date", timeout=WAIT_MS)
    other.close()

    # Hand on.
    page.locator("#out").fill(str(tmp_path / "out" / "matte.####.exr"))
    page.click("#export")
    says(page, f"{FRAMES} frames")
    assert len(list((tmp_path / "out").glob("matte.*.exr"))) == FRAMES
    page.locator("#out").fill(str(tmp_path / "chair.####.exr"))
    assert failures == []
    picture = cv2.imread(str(tmp_path / "page.png"))
    assert picture is not None and np.ptp(picture[60:600, 100:1050]) > 100
    page.close()


def test_a_plate_opens_and_a_box_and_a_scribble_make_its_first_key(
    browser: object, running: Running, tmp_path: Path
) -> None:
    shutil.rmtree(running.shot)
    context = browser.new_context(viewport={"width": 1280, "height": 720})  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto(running.start(str(tmp_path / "chair.####.jpg")))
    expect(page.locator("#dirty")).to_contain_text("no key yet", timeout=WAIT_MS)
    expect(page.locator("#bundle")).to_be_disabled()
    stage = page.locator("#view").bounding_box()
    strokes = (
        ("x", (0.3, 0.2), (0.7, 0.8)),
        ("n", (0.45, 0.45), (0.55, 0.55)),
        ("m", (0.31, 0.22), (0.31, 0.3)),
    )
    for key, *points in strokes:
        page.keyboard.press(key)
        (x, y), (to_x, to_y) = points
        page.mouse.move(stage["x"] + stage["width"] * x, stage["y"] + stage["height"] * y)
        page.mouse.down()
        page.mouse.move(stage["x"] + stage["width"] * to_x, stage["y"] + stage["height"] * to_y, steps=4)
        page.mouse.up()
    page.click("#from-hints")
    says(page, "A first mask")
    page.click("#undo")
    expect(page.locator("#undo")).to_be_disabled()
    page.click("#redo")
    expect(page.locator("#redo")).to_be_disabled()
    page.click("#set-key")
    says(page, "Key 1001 is set")
    with Shot.open(running.shot) as shot:
        mask, _ = shot.store.mask(next(iter(shot.store.description().keys[0].masks.values())).hash)
        assert shot.status().network_frames == FRAMES - 1, "nothing is computed yet"
    height, width = mask.shape
    assert mask[height // 2, width // 2] > 0.9 and mask[:, : width // 5].max() == 0.0
    expect(page.locator("#dirty")).to_contain_text(f"computes {FRAMES - 1} frames")

    # Another tab follows; another browser does not get in.
    other = context.new_page()
    other.goto(page.url)
    expect(other.locator("#dirty")).to_contain_text("computes", timeout=WAIT_MS)
    stranger = browser.new_context().new_page()  # type: ignore[attr-defined]
    assert stranger.goto(page.url).status == 403
    other.locator("#bundle").click()
    says(other, "chair.bundle")
    assert (tmp_path / "chair.bundle" / "template.yaml").is_file()

    # Reload in the middle: the propagation goes on, and both tabs say how it ends.
    page.click("#propagate")
    says(page, "steps")
    page.reload()
    for one in (page, other):
        expect(one.locator("#dirty")).to_contain_text("up to date", timeout=WAIT_MS)
    context.close()


def key_mask(running: Running, frame: int) -> np.ndarray:
    """The mask of the one object of a key, float32 (h, w)."""
    with Shot.open(running.shot) as shot:
        key = next(one for one in shot.store.description().keys if one.frame == frame)
        return shot.store.mask(next(iter(key.masks.values())).hash)[0]


def with_a_key(running: Running) -> None:
    """Give the shot a key on 1001: a rectangle in the middle."""
    with Shot.open(running.shot) as shot:
        canvas = shot.plate.canvas
        mask = np.zeros((canvas.height, canvas.width), np.float32)
        mask[canvas.height // 3 : -canvas.height // 3, canvas.width // 3 : -canvas.width // 3] = 1
        shot.add_key(1001, {"chair": mask})


def drag(page: object, *places: tuple[float, float]) -> None:
    """Draw with the mouse; places in parts of the picture's room."""
    stage, mouse = page.locator("#view").bounding_box(), page.mouse  # type: ignore[attr-defined]
    points = [(stage["x"] + stage["width"] * x, stage["y"] + stage["height"] * y) for x, y in places]
    mouse.move(*points[0])
    mouse.down()
    for point in points[1:]:
        mouse.move(*point, steps=4)
    mouse.up()


def test_a_polygon_and_an_eraser_make_a_mask_and_quick_hands_lose_nothing(
    browser: object, running: Running
) -> None:
    with_a_key(running)
    page = browser.new_page(viewport={"width": 1280, "height": 720})  # type: ignore[attr-defined]
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(running.start())
    expect(page.locator("#link")).to_have_text("connected", timeout=WAIT_MS)
    stage = page.locator("#view").bounding_box()

    # A polygon from nothing, with soft edges, and a bite out of it. Nothing is waited for.
    page.keyboard.press("ArrowRight")
    page.locator("#soft").fill("4")
    page.locator("#size").fill("30")
    page.keyboard.press("v")
    for x, y in ((0.4, 0.3), (0.6, 0.3), (0.6, 0.7), (0.4, 0.7)):
        page.mouse.click(stage["x"] + stage["width"] * x, stage["y"] + stage["height"] * y)
    page.keyboard.press("Enter")
    page.keyboard.press("e")
    drag(page, (0.5, 0.5), (0.5, 0.51))
    page.keyboard.press("Enter")
    says(page, "Key 1002 is set")
    mask = key_mask(running, 1002)
    middle, side = (mask.shape[0] // 2, mask.shape[1] // 2), round(mask.shape[0] * 0.35)
    assert mask[middle] == 0.0 and mask[side, middle[1]] == 1.0
    assert mask[0, 0] == 0.0 and ((mask > 0.2) & (mask < 0.8)).sum() > 200, "edges are soft"

    # Two quick strokes and Enter on a key, whose mask has to be loaded first: both are on it.
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("b")
    before = key_mask(running, 1001)
    corners = (0.1, 0.9)
    for y in corners:
        drag(page, (0.5, y), (0.52, y))
    page.keyboard.press("Enter")
    expect(page.locator("#run")).to_contain_text("Key 1001 is set", timeout=WAIT_MS)
    after = key_mask(running, 1001)
    assert all(after[round(after.shape[0] * y), after.shape[1] // 2] > 0.9 for y in corners)
    assert np.abs(after - before)[middle] < 0.01

    # Delete takes a key away.
    page.keyboard.press("Delete")
    says(page, "Key 1001 is removed")
    with Shot.open(running.shot) as shot:
        assert [key.frame for key in shot.keys] == [1002]
    page.close()


def test_stop_keeps_what_is_done_and_propagating_goes_on_from_there(
    browser: object, running: Running
) -> None:
    with_a_key(running)
    with Shot.open(running.shot) as shot:
        shot.set_settings(replace(shot.settings, working_size=240))  # slower
    page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(running.start())
    expect(page.locator("#link")).to_have_text("connected", timeout=WAIT_MS)
    page.click("#propagate")
    says(page, "Frame 100")
    os.kill(running.engine, signal.SIGSTOP)  # so that it is not done before the click
    page.click("#stop")
    os.kill(running.engine, signal.SIGCONT)
    says(page, "Stopped")
    with Shot.open(running.shot) as shot:
        left = shot.status().network_frames
    assert 0 < left <= FRAMES - 1
    expect(page.locator("#dirty")).to_contain_text(f"computes {left} frames")
    page.click("#propagate")
    says(page, f"{left} computed")
    page.close()


def test_locked_settings_are_grey_and_the_page_says_who_locked_them(
    browser: object, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studio.toml").write_text('locked = ["finish.edges"]\n[finish]\nedges = "learned"\n')
    monkeypatch.setenv("STM_CONFIG", str(tmp_path / "studio.toml"))
    page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(running.start())
    expect(page.locator("#locked")).to_contain_text("studio.toml", timeout=WAIT_MS)
    expect(page.locator("#edges")).to_be_disabled()
    assert "locked to" in page.locator("#edges").get_attribute("title")
    expect(page.locator("#foreground")).to_be_enabled()
    page.close()


def test_a_killed_engine_is_said_and_nothing_is_lost(
    browser: object, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    with_a_key(running)
    page.goto(running.start())
    expect(page.locator("#propagate")).to_be_enabled(timeout=WAIT_MS)
    expect(page.locator("#link")).to_have_text("connected", timeout=WAIT_MS)
    page.click("#propagate")
    says(page, "Frame 100")
    os.kill(running.engine, signal.SIGKILL)
    expect(page.locator("#notice")).to_contain_text("started again", timeout=WAIT_MS)
    says(page, "computed")  # it went on by itself
    with Shot.open(running.shot) as shot:
        assert shot.status().network_frames == 0

    # Another client of the engine changes a setting and propagates: the page follows.
    monkeypatch.setenv("STM_RUNTIME_DIR", str(running.runtime))
    with contextlib.closing(Engine("nuke", may_start=False)) as engine:  # as the node in Nuke has it
        node = engine.shot({"folder": str(running.shot), "owner": "STM1"})
        node.set_settings({"memory_rule": "first+previous"})
        expect(page.locator("#dirty")).to_contain_text("computes", timeout=WAIT_MS)
        engine.wait(node.propagate())
    expect(page.locator("#dirty")).to_contain_text("up to date", timeout=WAIT_MS)
    running.end(signal.SIGKILL)
    expect(page.locator("#link")).to_contain_text("not connected", timeout=WAIT_MS)
    page.close()


def test_a_plate_that_went_is_named_in_the_page(browser: object, running: Running, tmp_path: Path) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    page.goto(running.start())
    expect(page.locator("#dirty")).to_contain_text("no key yet", timeout=WAIT_MS)
    (tmp_path / "chair.1005.jpg").unlink()
    time.sleep(0.1)
    page.reload()
    expect(page.locator("#dirty")).to_contain_text("no key yet", timeout=WAIT_MS)
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#note")).to_contain_text("1005", timeout=WAIT_MS)
    page.close()


def test_a_wrong_token_is_refused_in_words(browser: object, running: Running) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    address = running.start()
    answer = page.goto(re.sub(r"token=.*", "token=guessed", address))
    assert answer is not None and answer.status == 403
    expect(page.locator("body")).to_contain_text("stm review")
    page.close()
