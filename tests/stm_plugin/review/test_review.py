"""The page of `stm review`: who may send requests, and the answers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
from stm_nuke.client import Engine

from stm_plugin.cli import shot as command_line
from stm_plugin.errors import MaskError, PlateError
from stm_plugin.farm.bundle import PLAIN_VALUES, TEMPLATE
from stm_plugin.review.ahead import MadeAhead
from stm_plugin.review.app import MOST_AT_ONCE, ReviewServer, make_server
from stm_plugin.review.connections import ImpatientProtocol
from stm_plugin.review.guard import MOST_BODY_BYTES
from stm_plugin.review.opening import open_for_review
from stm_plugin.review.proxies import (
    PROXY_WIDTH,
    PictureCache,
    decode_mask,
    encode_matte,
    encode_picture,
    sized,
)
from stm_plugin.review.session import ReviewSession
from stm_plugin.review.start_mask import Hints, first_mask
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray
from tests.conftest import REPOSITORY, PlateMaker
from tests.stm_plugin.server_process import ServerProcess, a_server
from tests.stm_plugin.small_network import WORKING_SIZE

WIDTH, HEIGHT, FRAMES = 64, 48, range(1001, 1005)


@dataclass
class Page:
    """A served session and requests like a browser's."""

    server: ReviewServer
    session: ReviewSession
    shot: Shot
    cookie: str = ""

    @property
    def port(self) -> int:
        return int(self.server.listening.getsockname()[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[HTTPResponse, bytes]:
        """One request of the page; `headers` replace its headers."""
        sent = {"Host": self.host, "Cookie": self.cookie, "Origin": f"http://{self.host}", **headers}
        link = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, body, {name: value for name, value in sent.items() if value})
            answer = link.getresponse()
            return answer, answer.read()
        finally:
            link.close()

    def enter(self) -> HTTPResponse:
        answer, _ = self.ask("GET", self.server.address.split(self.host, 1)[1])
        self.cookie = (answer.headers.get("set-cookie") or "").split(";")[0]
        return answer

    def state(self) -> dict[str, Any]:
        answer, body = self.ask("GET", "/api/state")
        assert answer.status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def paint(self, frame: int, name: str = "disc", **changes: str) -> tuple[HTTPResponse, bytes]:
        """Set a key as the page does: a PNG whose alpha is the mask."""
        pixels = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
        pixels[..., 3] = 0
        pixels[10:30, 20:40, 3] = 255
        pixels[10:30, 40, 3] = 128
        done, data = cv2.imencode(".png", pixels)
        assert done
        path = f"/api/key/{frame}?object={name}&width={WIDTH}&height={HEIGHT}&empty=0"
        return self.ask("POST", path, data.tobytes(), **changes)

    def wait(self) -> dict[str, Any]:
        """The state after a propagation has ended."""
        end = time.monotonic() + 60
        while (state := self.state())["run"]["running"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        return state


@pytest.fixture(scope="module")
def engine() -> Iterator[ServerProcess]:
    """The user's engine, with a runtime folder of its own."""
    with a_server(module="stm_plugin.server") as server:
        yield server


@pytest.fixture
def page(
    make_plate: PlateMaker, tmp_path: Path, engine: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Page]:
    monkeypatch.setenv("STM_RUNTIME_DIR", str(engine.folder))
    plate = PlateDescription("files", make_plate(frames=FRAMES, size=(WIDTH, HEIGHT)))
    settings = Settings(working_size=WORKING_SIZE, device="cpu")
    shot = Shot.create(tmp_path / "disc.stmshot", plate, settings)
    session = ReviewSession(shot, PictureCache(tmp_path / "pictures"))
    served = make_server(session)
    thread = threading.Thread(target=served.run)
    thread.start()
    try:
        yield Page(served, session, shot)
    finally:
        served.server.should_exit = True
        thread.join()
        served.listening.close()
        session.close()


def test_the_address_lets_one_browser_in_once(page: Page) -> None:
    answer = page.enter()
    assert answer.status == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert page.ask("GET", "/")[0].status == 200
    again, words = page.ask("GET", page.server.address.split(page.host, 1)[1], Cookie="")
    assert again.status == 403 and b"used" in words


def test_nobody_else_gets_a_byte(page: Page) -> None:
    for path in ("/", "/api/state", "/page/main.js", "/?token=wrong", "/api/plate/1001"):
        answer, words = page.ask("GET", path, Cookie="stm_review=guessed")
        assert answer.status == 403 and b"stm review" in words
    assert page.enter().status == 303  # a wrong token does not use up the right one


def test_no_other_page_may_change_anything(page: Page) -> None:
    page.enter()
    for origin in ("", "http://evil.example", "null", f"http://localhost:{page.port}"):
        answer, _ = page.paint(1001, Origin=origin)
        assert answer.status == 403
        assert page.ask("POST", "/api/propagate", Origin=origin)[0].status == 403
    assert page.state()["keys"] == []


def test_a_name_that_was_bent_to_this_machine_is_refused(page: Page) -> None:
    page.enter()
    assert page.ask("GET", "/api/state", Host="evil.example")[0].status == 421
    assert page.ask("GET", "/api/state", Host=f"localhost:{page.port}")[0].status == 200


def test_a_request_that_is_too_large_is_refused(page: Page) -> None:
    page.enter()
    answer, _ = page.ask("POST", "/api/start/1001", b"{}", **{"Content-Length": str(MOST_BODY_BYTES + 1)})
    assert answer.status == 413


def test_silent_connections_do_not_keep_the_user_out(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "silent_seconds", 0.3)
    silent = [socket.create_connection(("127.0.0.1", page.port), timeout=20) for _ in range(MOST_AT_ONCE + 8)]
    silent[0].sendall(b"GET / HTTP/1.1\r\nHost: ")
    for one in silent:
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
        one.close()
    assert page.enter().status == 303


def test_the_page_may_load_its_own_files_alone(page: Page) -> None:
    page.enter()
    answer, body = page.ask("GET", "/")
    rules = answer.headers["content-security-policy"]
    assert (
        "default-src 'none'" in rules and "script-src 'self'" in rules and "frame-ancestors 'none'" in rules
    )
    assert b"http://" not in body and b"https://" not in body
    assert page.ask("GET", "/page/../app.py")[0].status == 404
    assert page.ask("GET", "/page/%2e%2e/app.py")[0].status == 404


def test_paint_a_key_propagate_see_the_mattes_and_export(page: Page, tmp_path: Path) -> None:
    page.enter()
    assert page.state()["networkFrames"] == 0 and page.state()["keys"] == []
    assert page.paint(1001)[0].status == 200
    before = page.state()
    assert [key["frame"] for key in before["keys"]] == [1001] and before["networkFrames"] == 3
    assert page.ask("GET", "/api/matte/1003?object=disc")[0].status == 409
    answer, body = page.ask("POST", "/api/propagate")
    assert answer.status == 200 and json.loads(body) == {"started": True}
    after = page.wait()
    assert after["networkFrames"] == 0 and not after["run"]["failed"], after["run"]
    for frame in FRAMES:
        answer, picture = page.ask("GET", f"/api/matte/{frame}?object=disc&size=full")
        assert answer.status == 200 and answer.headers["content-type"] == "image/webp"
        alpha = decode_mask(picture, WIDTH, HEIGHT)
        np.testing.assert_allclose(alpha, page.shot.matte(frame).mattes["disc"], atol=0.003)
    answer, picture = page.ask("GET", "/api/confidence/1003?object=disc")
    uncertainty = 1 - page.shot.confidence(1003)["disc"]
    assert answer.status == 200 and uncertainty.max() > 0
    np.testing.assert_allclose(decode_mask(picture, WIDTH, HEIGHT), uncertainty, atol=0.003)
    assert page.shot.confidence(1001)["disc"].min() == 1  # a key is sure
    out = tmp_path / "out" / "matte.####.exr"
    answer, words = page.ask("POST", "/api/export", json.dumps({"out": str(out)}).encode())
    assert answer.status == 200 and b"4 frames" in words
    assert len(list((tmp_path / "out").glob("matte.*.exr"))) == 4
    answer, text = page.ask("GET", "/api/nuke")
    assert (
        answer.status == 200 and b"first 1001" in text and b"last 1004" in text and str(out).encode() in text
    )


def test_the_plate_is_never_written_over(page: Page, tmp_path: Path) -> None:
    page.enter()
    page.paint(1001)
    page.ask("POST", "/api/propagate")
    page.wait()
    before = (tmp_path / "plate.1001.exr").read_bytes()
    order = {"out": str(tmp_path / "plate.####.exr"), "overwrite": True}
    answer, words = page.ask("POST", "/api/export", json.dumps(order).encode())
    assert answer.status == 422 and b"plate" in words, words
    assert (tmp_path / "plate.1001.exr").read_bytes() == before


def test_an_export_without_a_name_is_refused_in_words(page: Page) -> None:
    page.enter()
    answer, body = page.ask("POST", "/api/export", json.dumps({"out": " "}).encode())
    assert answer.status == 422 and "no name" in json.loads(body)["error"]


def test_export_writes_layers_and_cryptomatte_as_the_command_line_does(page: Page, tmp_path: Path) -> None:
    page.enter()
    page.paint(1001)
    page.paint(1001, "second")
    page.ask("POST", "/api/propagate")
    page.wait()
    order = {"out": str(tmp_path / "page" / "matte.####.exr"), "cryptomatte": True}
    answer, words = page.ask("POST", "/api/export", json.dumps(order).encode())
    assert answer.status == 200, words
    settings = replace(page.shot.settings, cryptomatte=True)
    assert page.state()["cryptomatte"] is False
    page.shot.set_settings(settings)
    assert page.state()["cryptomatte"] is True
    command_line.export(page.shot.folder, str(tmp_path / "line" / "matte.####.exr"))
    for frame in FRAMES:
        ours, theirs = (
            oiio.ImageBuf(str(tmp_path / folder / f"matte.{frame}.exr")) for folder in ("page", "line")
        )
        assert ours.spec().channelnames == theirs.spec().channelnames
        assert {"disc.A", "second.A"} <= set(ours.spec().channelnames), ours.spec().channelnames
        assert any("00." in name for name in ours.spec().channelnames), "no Cryptomatte"
        np.testing.assert_array_equal(ours.get_pixels(), theirs.get_pixels())


def test_edges_are_chosen_and_nothing_is_computed_again(page: Page) -> None:
    page.enter()
    page.paint(1001)
    page.ask("POST", "/api/propagate")
    page.wait()
    before, _ = page.ask("GET", "/api/matte/1003?object=disc")
    answer, words = page.ask("POST", "/api/settings", b'{"finish.edges": "off", "foreground": true}')
    assert answer.status == 200, words
    chosen = page.state()
    assert chosen["settings"] == {"finish.edges": "off", "finish.width": 1.0, "foreground": True}
    assert chosen["networkFrames"] == 0
    after, _ = page.ask("GET", "/api/matte/1003?object=disc")
    assert after.status == 200 and after.headers["x-address"] != before.headers["x-address"]
    for wrong in (b'{"finish.edges": "hard"}', b'{"weights": "other"}'):
        answer, words = page.ask("POST", "/api/settings", wrong)
        assert answer.status == 422 and page.state()["settings"] == chosen["settings"], words


def test_the_farm_bundle_is_written_beside_the_shot(page: Page, tmp_path: Path) -> None:
    page.enter()
    answer, words = page.ask("POST", "/api/bundle", b"{}")
    assert answer.status == 422 and b"key" in words, words
    page.paint(1001)
    answer, words = page.ask("POST", "/api/bundle", b"{}")
    assert answer.status == 200 and b"1 pass, 1 chunk" in words and b"disc.bundle" in words, words
    bundle = tmp_path / "disc.bundle"
    assert Path(page.state()["bundle"]) == bundle
    given = json.loads((bundle / PLAIN_VALUES).read_text("utf-8"))
    assert given["Shot"] == str(page.shot.folder) and given["Mattes"] == str(tmp_path / "disc.####.exr")
    order = {"out": str(tmp_path / "farm" / "matte.####.exr")}
    assert page.ask("POST", "/api/bundle", json.dumps(order).encode())[0].status == 200
    assert json.loads((bundle / PLAIN_VALUES).read_text("utf-8"))["Mattes"] == order["out"]
    (bundle / TEMPLATE).write_text("somebody's")
    answer, words = page.ask("POST", "/api/bundle", b"{}")
    assert answer.status == 422 and TEMPLATE.encode() in words
    assert (bundle / TEMPLATE).read_text() == "somebody's"
    assert page.ask("POST", "/api/bundle", b'{"overwrite": true}')[0].status == 200
    plate = json.dumps({"out": str(tmp_path / "plate.####.exr"), "overwrite": True}).encode()
    answer, words = page.ask("POST", "/api/bundle", plate)
    assert answer.status == 422 and b"plate" in words


HOLDER = """
import sys
from stm_plugin.files.lock import StoreLock
with StoreLock(__import__("pathlib").Path(sys.argv[1]) / "LOCK"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_while_another_process_holds_the_shot_the_page_says_who_and_changes_nothing(page: Page) -> None:
    page.enter()
    page.paint(1001)
    heard: list[dict[str, Any]] = []
    end = page.session.listen(heard.append)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(page.shot.folder)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        wait_until(lambda: {"kind": "state"} in heard)  # without a request of the page
        assert f"process {holder.pid}" in page.state()["heldBy"]
        for answer, words in (page.paint(1002), page.ask("DELETE", "/api/key/1001")):
            assert answer.status == 422 and f"process {holder.pid}".encode() in words, words
        page.ask("POST", "/api/propagate")
        ended = page.wait()["run"]
        assert ended["failed"] and f"process {holder.pid}" in ended["message"]
        assert page.ask("GET", "/api/plate/1002")[0].status == 200
        assert [key["frame"] for key in page.state()["keys"]] == [1001]
        time.sleep(1.1)  # the watcher has seen the lock
        heard.clear()
    finally:
        holder.communicate("\n", timeout=30)
    wait_until(lambda: {"kind": "state"} in heard)
    end()
    assert page.state()["heldBy"] is None
    assert page.paint(1002)[0].status == 200


def test_small_pictures_are_made_ahead_from_the_frame_that_is_looked_at() -> None:
    made: list[int] = []
    go_on, busy = threading.Event(), threading.Event()
    busy.set()

    def make(frame: int) -> None:
        made.append(frame)
        if frame == 7:
            go_on.wait(20)
        if frame == 6:
            raise PlateError("damaged")

    ahead = MadeAhead(lambda: range(1, 11), make, busy.is_set, threads=1)
    ahead.look_at(7)
    time.sleep(0.1)
    assert made == []
    busy.clear()
    wait_until(lambda: made == [7])
    ahead.look_at(2)  # somebody scrubs while the first one is made
    go_on.set()
    wait_until(lambda: ahead.left == 0)
    ahead.close()
    assert made == [7, 2, 3, 1, 4, 5, 6, 8, 9, 10]


def test_several_small_pictures_are_made_at_once_and_each_one_once() -> None:
    made: list[int] = []
    both = threading.Barrier(2, timeout=20)

    def make(frame: int) -> None:
        made.append(frame)
        if frame in (5, 6):  # the first two: each waits for the other
            both.wait()

    ahead = MadeAhead(lambda: range(1, 21), make, lambda: False, threads=2)
    ahead.look_at(5)
    wait_until(lambda: ahead.left == 0)
    ahead.close()
    assert set(made[:2]) == {5, 6} and sorted(made) == list(range(1, 21))


def test_the_page_has_every_small_picture_made_ahead_and_each_only_once(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.enter()
    read: list[int] = []
    display = page.shot.display

    def counted(frame: int) -> FloatArray:
        read.append(frame)
        return display(frame)

    monkeypatch.setattr(page.shot, "display", counted)
    assert page.ask("POST", "/api/look/1003")[0].status == 200
    assert page.ask("GET", "/api/plate/1004")[0].status == 200
    wait_until(lambda: page.session.proxies_left == 0)
    for frame in FRAMES:
        assert page.ask("GET", f"/api/plate/{frame}")[0].status == 200
    assert sorted(read) == list(FRAMES)


@pytest.mark.slow
def test_a_change_by_another_process_comes_to_the_page(page: Page) -> None:
    page.enter()
    page.paint(1001)
    time.sleep(1.1)
    heard: list[dict[str, Any]] = []
    end = page.session.listen(heard.append)
    with Shot.open(page.shot.folder) as other:
        other.add_key(1003, {"disc": np.ones((HEIGHT, WIDTH), np.float32)})
    wait_until(lambda: {"kind": "state"} in heard)
    end()
    assert [key["frame"] for key in page.state()["keys"]] == [1001, 1003]


def wait_until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_bad_requests_are_answered_in_words(page: Page) -> None:
    page.enter()
    bad = [
        ("POST", f"/api/key/1001?object=disc&width={WIDTH}&height={HEIGHT}", b"no picture", 400),
        ("POST", "/api/key/1001?object=disc", b"", 400),
        ("POST", "/api/export", b"[]", 400),
        ("POST", "/api/export", b"not json", 400),
        ("POST", "/api/start/1001", b'{"box": 3}', 400),
        ("POST", "/api/start/1001", b"{}", 422),
        ("GET", "/api/plate/99", None, 422),
        ("GET", "/api/matte/1001", None, 400),
        ("DELETE", "/api/key/1002", None, 422),
        ("GET", "/api/nuke", None, 422),
    ]
    for method, path, body, status in bad:
        answer, words = page.ask(method, path, body)
        assert answer.status == status, (path, words)
        assert json.loads(words)["error"]


def test_a_plate_frame_that_went_is_named(page: Page, tmp_path: Path) -> None:
    page.enter()
    (tmp_path / "plate.1003.exr").unlink()
    answer, words = page.ask("GET", "/api/plate/1003")
    assert answer.status == 422 and b"1003" in words


def test_changes_are_told_as_they_happen(page: Page) -> None:
    page.enter()
    link = HTTPConnection("127.0.0.1", page.port, timeout=30)
    link.request("GET", "/api/events", headers={"Host": page.host, "Cookie": page.cookie})
    answer = link.getresponse()
    assert answer.readline() == b"retry: 1000\n"
    page.paint(1001)
    page.ask("POST", "/api/propagate")
    kinds: set[str] = set()
    while kinds < {"state", "frame", "progress"}:
        line = answer.readline()
        if line.startswith(b"data: "):
            kinds.add(json.loads(line[6:])["kind"])
    link.close()
    assert page.wait()["run"]["message"]


def test_a_node_and_the_page_share_one_engine_and_one_shot(page: Page) -> None:
    page.enter()
    page.paint(1001)
    with contextlib.closing(Engine("nuke", may_start=False)) as engine:  # as the node in Nuke has it
        node = engine.shot({"folder": str(page.shot.folder), "owner": "STM1"})
        engine.wait(node.propagate())
        assert page.session.engine_pid != 0
    assert page.wait()["networkFrames"] == 0 and page.state()["heldBy"] is None
    assert page.ask("GET", "/api/matte/1003?object=disc")[0].status == 200


@pytest.mark.slow
def test_an_engine_that_is_killed_is_started_again(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tempfile.mkdtemp(prefix="stm-", dir="/tmp")
    monkeypatch.setenv("STM_RUNTIME_DIR", folder)
    heard: list[dict[str, Any]] = []
    shot = Shot.open(page.shot.folder)
    with contextlib.closing(ReviewSession(shot, PictureCache(tmp_path / "more"))) as session:
        session.listen(heard.append)
        wait_until(lambda: session.state()["engine"] == "ready", 60)
        first = session.engine_pid
        os.kill(first, signal.SIGKILL)
        session.set_key(1001, "disc", np.ones((HEIGHT, WIDTH), np.float32))
        assert session.engine_pid != first and [key.frame for key in shot.keys] == [1001]
        wait_until(lambda: any(one["kind"] == "notice" and "started again" in one["text"] for one in heard))
        os.kill(session.engine_pid, signal.SIGTERM)
    shutil.rmtree(folder)


def test_two_windows_share_one_shot(page: Page) -> None:
    page.enter()
    other = Page(page.server, page.session, page.shot, page.cookie)
    page.paint(1001)
    other.paint(1001, "second")
    assert [set(key["objects"]) for key in page.state()["keys"]] == [{"disc", "second"}]
    page.ask("POST", "/api/propagate")
    answer, body = other.ask("POST", "/api/propagate")
    assert answer.status == 200 and json.loads(body)["started"] in (True, False)
    assert not page.wait()["run"]["failed"]


def test_pictures_are_small_ahead_and_whole_for_a_close_look() -> None:
    picture = np.zeros((100, 2 * PROXY_WIDTH, 3), np.float32)
    picture[:, PROXY_WIDTH:] = 0.5
    for size, width in (("proxy", PROXY_WIDTH), ("full", 2 * PROXY_WIDTH)):
        data = np.frombuffer(encode_picture(picture, size), np.uint8)  # type: ignore[arg-type]
        found = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert found is not None and found.shape[1] == width
        assert abs(int(found[-1, -1, 0]) - 128) <= 3


def test_small_pictures_are_means_over_squares_of_any_plate() -> None:
    for width, height, factor in ((4096, 4, 4), (2049, 5, 2), (1280, 3, 1), (2048, 1, 1)):
        picture = np.random.default_rng(1).random((height, width, 3), np.float32)
        rows, columns = height // factor, width // factor
        squares = picture[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
        np.testing.assert_allclose(sized(picture, "proxy"), squares.mean(axis=(1, 3)), atol=1e-6)


def test_a_mattes_picture_loses_nothing_of_eight_bits() -> None:
    matte = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(16, 16)
    np.testing.assert_array_equal(decode_mask(encode_matte(matte, "full"), 16, 16), matte)


def test_pictures_that_cannot_be_kept_cost_time_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    cache = PictureCache(blocked)
    cache.put(b"picture", "a")
    assert cache.get("a") is None
    kept = PictureCache(tmp_path / "folder")
    kept.put(b"picture", "a", "b")
    assert kept.get("a", "b") == b"picture" and kept.get("ab") is None


def test_a_box_round_the_object_gives_a_first_mask() -> None:
    rows, columns = np.mgrid[0:120, 0:160]
    disc = (np.hypot(columns - 80, rows - 60) < 30)[..., None]
    noise = np.random.default_rng(5).normal(0, 0.02, (120, 160, 3))
    picture = np.clip(np.where(disc, (0.8, 0.3, 0.1), (0.1, 0.2, 0.5)) + noise, 0, 1).astype(np.float32)
    mask = first_mask(picture, Hints(box=(40, 20, 120, 100)))
    overlap = ((mask > 0.5) & disc[..., 0]).sum() / ((mask > 0.5) | disc[..., 0]).sum()
    assert overlap > 0.97
    np.testing.assert_array_equal(mask, first_mask(picture, Hints(box=(40, 20, 120, 100))))
    picture[75:95, 85:105] = (0.1, 0.8, 0.2)
    hints = Hints(
        box=(40, 20, 120, 100), inside=[[(60, 60), (90, 60)]], outside=[[(90, 80), (100, 90)]], width=4
    )
    without = first_mask(picture, hints)
    assert without[85, 95] < 0.5 < without[60, 75]
    for nothing in (Hints(), Hints(box=(500, 500, 600, 600))):
        with pytest.raises(MaskError):
            first_mask(picture, nothing)


def test_the_address_is_said_at_once_into_a_pipe_too(
    make_plate: PlateMaker, tmp_path: Path, engine: ServerProcess
) -> None:
    code = (
        "import sys; from stm_plugin.review import serving; serving.serve_review(sys.argv[1], browser=False)"
    )
    serving = subprocess.Popen(
        [sys.executable, "-c", code, make_plate(frames=FRAMES)],
        cwd=REPOSITORY,
        env={**os.environ, "STM_RUNTIME_DIR": str(engine.folder), "XDG_CACHE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        lines = [serving.stdout.readline() for _ in range(2)]
        assert lines[0].strip().endswith(".stmshot") and "?token=" in lines[1]
    finally:
        serving.terminate()  # SIGINT may be ignored here, as in all that a shell starts behind itself
        serving.communicate(timeout=60)


def test_a_plate_gets_a_shot_beside_it_and_finds_it_again(make_plate: PlateMaker, tmp_path: Path) -> None:
    pattern = make_plate(frames=FRAMES)
    with contextlib.closing(open_for_review(pattern)) as made:
        assert made.folder == tmp_path / "plate.stmshot" and made.plate.frames == tuple(FRAMES)
        made.add_key(1001, {"disc": np.ones((HEIGHT, WIDTH), np.float32)})
    for named in (pattern, str(tmp_path / "plate"), str(tmp_path / "plate.stmshot")):
        with contextlib.closing(open_for_review(named)) as found:
            assert [key.frame for key in found.keys] == [1001]
    with pytest.raises(PlateError):
        open_for_review(str(tmp_path / "nothing.####.exr"))
