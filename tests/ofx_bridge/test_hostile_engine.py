"""The effect with a broken or silent engine, or with a server that is no engine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.ofx_fixtures import FIRST, HEIGHT, REPOSITORY, WIDTH, EngineHome, Rig, make_rig
from tests.hosts.ofx_host import OK, OfxHost, nodes_of
from tests.hosts.ofx_scripted_engine import (
    ERROR,
    MAGIC,
    PREFIX,
    REPLY,
    BusyEngine,
    Conversation,
    ScriptedEngine,
    message,
)


def answering(reply: Callable[[int, dict[str, Any]], bytes]) -> Conversation:
    """A script that answers every request with the bytes of `reply`."""

    def talk(link: socket.socket, number: int, header: dict[str, Any]) -> None:
        link.sendall(reply(number, header))

    return talk


def hang_up(link: socket.socket, number: int, header: dict[str, Any]) -> None:
    """Close the connection during a request."""
    link.shutdown(socket.SHUT_RDWR)


def half_a_message(link: socket.socket, number: int, header: dict[str, Any]) -> None:
    """Send a part of an answer and close."""
    link.sendall(message(REPLY, number, {"shot": "s1"})[:30])
    link.shutdown(socket.SHUT_RDWR)


WHOLE: dict[str, Any] = {
    "open_shot": {"shot": "s1"},
    "get_settings": {"settings": {}},
    "set_settings": {"settings": {}},
    "list_keys": {"keys": []},
    "plate_needed": {"needed": []},
}


def black_hole(number: int, header: dict[str, Any]) -> bytes:
    """A good engine, but its mattes are of another frame and of the wrong size."""
    if header["op"] in WHOLE:
        return message(REPLY, number, WHOLE[header["op"]])
    image = {"format": "float", "channels": ["A"], "data_window": [0, 0, 1, 1]}
    return message(REPLY, number, {"frame": header.get("frame", 0), "image": image}, b"\0" * 4)


def absurd(operation: str, field: str, value: object) -> Conversation:
    """A good engine whose answer to one operation has a number that makes no sense."""
    good = BusyEngine(keys=(FIRST,))

    def talk(link: socket.socket, number: int, header: dict[str, Any]) -> None:
        if header["op"] == operation:
            link.sendall(message(REPLY, number, {**WHOLE.get(operation, {}), field: value}))
        else:
            good(link, number, header)

    return talk


ABSURD: dict[str, Conversation] = {
    "a frame of a key": absurd("list_keys", "keys", [{"frame": 1e300}]),
    "a range of the shot": absurd("open_shot", "status", {"frames": [-1e300, 1e300]}),
    "the window of a matte": absurd("get_matte", "display_window", [1e300, 0, 1e300, 9]),
}
ENDLESS: dict[str, Conversation] = {
    "a plan of frames": absurd("plan", "plate_needed", [[0, 1 << 52]]),
    "a plan of huge numbers": absurd("plan", "plate_needed", [[-1e300, 1e300]]),
    "the version of a job": absurd("job", "version", 1e300),
    "the frames of a state": absurd("status", "stale", [[0, 1 << 52]]),
}


SCRIPTS: dict[str, Conversation] = {
    "hangs up": hang_up,
    "half a message": half_a_message,
    "no magic": answering(lambda number, header: b"GET / HTTP/1.1\r\n\r\n" * 4),
    "no JSON": answering(lambda number, header: message(REPLY, number, b"{nonsense")),
    "repeated names": answering(lambda number, header: message(REPLY, number, b'{"shot":"a","shot":"b"}')),
    "bad UTF-8": answering(lambda number, header: message(REPLY, number, b'{"shot":"\xff"}')),
    "deep nesting": answering(
        lambda number, header: message(REPLY, number, b'{"shot":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    ),
    "other types": answering(lambda number, header: message(REPLY, number, {"shot": 7, "status": []})),
    "nothing in it": answering(lambda number, header: message(REPLY, number, {})),
    "huge header": answering(lambda number, header: PREFIX.pack(MAGIC, REPLY, number, 1 << 31, 0)),
    "huge payload": answering(lambda number, header: PREFIX.pack(MAGIC, REPLY, number, 2, 1 << 40)),
    "answers to nobody": answering(lambda number, header: message(REPLY, number + 1, {"shot": "s1"})),
    "a wrong matte": answering(black_hole),
    "an unknown error": answering(
        lambda number, header: message(ERROR, number, {"code": "moon", "text": "It is 100% full."})
    ),
    "an error without words": answering(lambda number, header: message(ERROR, number, {})),
}


def rig_with_a_key(host: OfxHost, folder: Path) -> Rig:
    """A node with a store and a key, as loaded from a script."""
    rig = make_rig(host)
    rig.node.set("shotStore", str(folder / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))
    return rig


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_hostile_engine_gives_a_failed_render_in_words(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], script: Conversation, tmp_path: Path
) -> None:
    engine = scripted(script)
    rig = rig_with_a_key(host, tmp_path)
    with nodes_of(host, rig.node):
        status, image = rig.node.render(FIRST)
        assert status != OK
        assert rig.node.persistent
        assert (image.memory == 0xCD).all()
        assert "open_shot" in engine.asked


@pytest.mark.parametrize("script", ABSURD.values(), ids=ABSURD.keys())
def test_hostile_numbers_of_an_engine_give_a_failed_render_in_words(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], script: Conversation, tmp_path: Path
) -> None:
    scripted(script)
    rig = rig_with_a_key(host, tmp_path)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST)[0] != OK
        assert rig.node.persistent


@pytest.mark.parametrize("script", ENDLESS.values(), ids=ENDLESS.keys())
def test_hostile_numbers_of_an_engine_end_a_propagation_in_words(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], script: Conversation, tmp_path: Path
) -> None:
    scripted(script)
    rig = rig_with_a_key(host, tmp_path)
    rig.node.set("missingFrames", 1)
    with nodes_of(host, rig.node):
        began = time.monotonic()
        if script is ENDLESS["the frames of a state"]:
            assert rig.node.render(FIRST + 1)[0] != OK
        else:
            assert rig.node.press("propagateForward", FIRST) != OK
        assert rig.node.persistent and "json" not in rig.node.persistent
        assert time.monotonic() - began < 20.0, "it does not count to the end"


def test_a_mute_hostile_engine_does_not_hold_up_an_abort(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], tmp_path: Path
) -> None:
    engine = scripted(lambda link, number, header: None)
    rig = rig_with_a_key(host, tmp_path)
    calls = iter(range(1000))
    rig.node.abort_answer = lambda: int(next(calls) > 6)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST)[0] != OK
        assert host.messages == []
        assert next(calls) < 20, "it went on asking after the host had said stop"
        assert engine.asked == ["hello", "open_shot"]


def test_a_hostile_impostor_gets_nothing(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], tmp_path: Path
) -> None:
    engine = scripted(hang_up, answer="3" * 64)
    rig = rig_with_a_key(host, tmp_path)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST)[0] != OK
        assert rig.node.persistent is not None and "not the engine" in rig.node.persistent
        assert set(engine.asked) == {"hello"}


def test_the_engine_of_another_show_is_not_used_and_that_is_said(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], tmp_path: Path
) -> None:
    engine = scripted(hang_up)
    file = engine.path.with_name("endpoint.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "configuration": "/shows/blue/stm.toml"}))
    rig = rig_with_a_key(host, tmp_path)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST)[0] != OK
        assert rig.node.persistent is not None and "another show" in rig.node.persistent
        assert engine.asked == []


def test_the_engine_of_another_version_is_not_used_and_that_is_said(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], tmp_path: Path
) -> None:
    engine = scripted(hang_up, engine="9.8.7")
    rig = rig_with_a_key(host, tmp_path)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST)[0] != OK
        assert rig.node.persistent is not None and "is of version 9.8.7" in rig.node.persistent
        assert set(engine.asked) == {"hello"}


def test_a_runtime_folder_that_is_open_to_others_is_refused(
    host: OfxHost, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    folder.chmod(0o755)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(folder))
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) != OK
        assert rig.node.persistent is not None and "closed to others" in rig.node.persistent


def test_an_installation_that_is_not_there_is_said_in_words(
    host: OfxHost, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STM_ENGINE_PYTHON")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    rig = make_rig(host)
    rig.node.set("workingSize", WIDTH)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) != OK
        assert rig.node.persistent is not None and "install.py" in rig.node.persistent


STARTED = """#!/bin/sh
{{ env; echo "OPTION=$1"; }} > "{folder}/environment.$$"
exit 7
"""

DIES_AT_ONCE = """
import sys
from pathlib import Path
from tests.hosts.ofx_fixtures import *
from tests.hosts.ofx_host import *

host = OfxHost(Path(sys.argv[1]))
rig = make_rig(host)
rig.node.set("shotStore", sys.argv[2] + "/x.stmshot")
rig.node.set("keyFrames", str(FIRST))
said = []
with nodes_of(host, rig.node):
    for _ in range(4):
        assert rig.node.render(FIRST)[0] != OK
        said.append(rig.node.persistent)
assert "could not start" in said[0], said
assert "3 times in a row" in said[-1] and "engine.log" in said[-1], said
"""


@pytest.mark.slow
def test_an_engine_that_dies_at_once_is_started_three_times_in_a_clean_environment(
    effect_binary: Path, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starter = tmp_path / "python"
    starter.write_text(STARTED.format(folder=tmp_path))
    starter.chmod(0o755)
    hosts_own = {
        "QT_PLUGIN_PATH": "/host",
        "PYTHONHOME": "",
        "NUKE_PATH": "/host",
        "LD_LIBRARY_PATH": "/host",
    }
    environment = {**os.environ, **hosts_own, "STM_RUNTIME_DIR": str(tmp_path / "run"), "KEPT": "yes"}
    environment["STM_ENGINE_PYTHON"] = str(starter)
    isolated = "-sP" if "STM_ENGINE_ROOT" in environment else "-I"
    command = [sys.executable, "-c", DIES_AT_ONCE, str(effect_binary), str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = [file.read_text("utf-8").splitlines() for file in tmp_path.glob("environment.*")]
    assert len(seen) == 3
    for lines in seen:
        names = {line.partition("=")[0] for line in lines}
        assert not names & set(hosts_own)
        assert "PYTHONNOUSERSITE=1" in lines and "KEPT=yes" in lines
        assert f"OPTION={isolated}" in lines


def test_pixels_go_through_the_socket_when_there_is_no_shared_memory(
    host: OfxHost, scripted: Callable[..., ScriptedEngine], tmp_path: Path
) -> None:
    script = BusyEngine(keys=(FIRST,))
    engine = scripted(script, map_folder=str(tmp_path / "not there"))
    rig = rig_with_a_key(host, tmp_path)
    with nodes_of(host, rig.node):
        status, image = rig.node.render(FIRST)
        assert status == OK, rig.node.persistent
        assert (image.picture()[..., 3] == 0).all()
        assert engine.payloads["push_plate"] == WIDTH * HEIGHT * 4 * 4
        assert engine.payloads["push_key"] == WIDTH * HEIGHT * 4
