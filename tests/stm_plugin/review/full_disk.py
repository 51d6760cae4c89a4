"""Helper of the review page's full-disk test: a person works on the page while the disk is full.

    unshare --user --map-root-user --mount python full_disk.py PLATE FOLDER

Mounts a small disk of its own for the shot, the pictures of the page and the mattes. Exits with 0 when the
page went on, each change that did not fit was refused in words, and all of it works once there is room.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from stm_plugin.review.app import make_server
from stm_plugin.review.proxies import PictureCache
from stm_plugin.review.session import ReviewSession
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.stm_plugin.review.test_review import FRAMES, Page
from tests.stm_plugin.server_process import a_server
from tests.stm_plugin.small_network import WORKING_SIZE

DISK = 8 << 20


def main() -> int:
    plate, disk = PlateDescription("files", sys.argv[1]), Path(sys.argv[2])
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    with a_server(module="stm_plugin.server") as engine:
        os.environ["STM_RUNTIME_DIR"] = str(engine.folder)
        shot = Shot.create(disk / "disc.stmshot", plate, Settings(working_size=WORKING_SIZE, device="cpu"))
        session = ReviewSession(shot, PictureCache(disk / "pictures"))
        served = make_server(session)
        thread = threading.Thread(target=served.run)
        thread.start()
        try:
            page = Page(served, session, shot)
            page.enter()
            work(page, disk)
        finally:
            served.server.should_exit = True
            thread.join()
            served.listening.close()
            session.close()
    return 0


def work(page: Page, disk: Path) -> None:
    """What the person does, in three states of the disk."""
    fill(disk)
    assert page.ask("GET", f"/api/plate/{FRAMES[0]}")[0].status == 200, "pictures are shown, and not kept"
    assert refused(page.paint(FRAMES[0]))
    assert page.state()["keys"] == []

    (disk / "ballast").unlink()
    assert page.paint(FRAMES[0])[0].status == 200
    fill(disk)
    page.ask("POST", "/api/propagate", b"{}")
    ended = page.wait()["run"]
    assert ended["failed"] and "The disk is full." in ended["message"], ended
    assert "Traceback" not in ended["message"], ended
    before = page.state()["keys"]
    assert refused(page.paint(FRAMES[-1]))
    assert refused(page.ask("DELETE", f"/api/key/{FRAMES[0]}"))
    assert refused(page.ask("POST", "/api/settings", b'{"foreground": true}'))
    assert page.state()["keys"] == before

    (disk / "ballast").unlink()
    page.ask("POST", "/api/propagate", b"{}")
    ended = page.wait()["run"]
    assert not ended["failed"], ended
    out = json.dumps({"out": str(disk / "out" / "m.####.exr")}).encode()
    fill(disk)
    assert refused(page.ask("POST", "/api/export", out))
    assert page.ask("GET", f"/api/matte/{FRAMES[1]}?object=disc")[0].status == 200
    assert refused(page.ask("POST", "/api/bundle", b"{}"))
    (disk / "ballast").unlink()
    answer, words = page.ask("POST", "/api/export", out)
    assert answer.status == 200, words
    assert len(list((disk / "out").glob("m.*.exr"))) == len(FRAMES)
    assert not list(disk.rglob("*.part*"))


def refused(answered: tuple[object, bytes]) -> bool:
    """Whether a request was refused, because the disk is full."""
    answer, words = answered
    text = json.loads(words).get("error", "")
    assert getattr(answer, "status", 0) in (409, 422), (answer, words)
    assert "The disk is full." in text and "Free some space" in text, text
    return True


def fill(disk: Path) -> None:
    """Leave no room on the disk."""
    with (disk / "ballast").open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            return


if __name__ == "__main__":
    sys.exit(main())
