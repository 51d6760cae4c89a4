"""The server with a toy engine: access, order, jobs, start and end of the process."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stm_nuke.wire import Connection, EngineError, EngineGoneError, Image, MappedFile

from stm_plugin import protocol
from stm_plugin.protocol import Kind
from stm_plugin.server.runtime import (
    EngineRunningError,
    Parent,
    RuntimeFolderError,
    engine_lock,
    make_private_folder,
)
from stm_plugin.server.service import WORKER_THREADS
from tests.stm_plugin.server_process import (
    ServerProcess,
    a_server,
    ended_by_server,
    grey,
    mask,
    opening,
    receive,
    request,
    wait_for,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="unix sockets and signals")

FOLDERS = itertools.count()
PING = {"op": "ping"}


@pytest.fixture(scope="module", params=["unix", "tcp"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server for all tests of this file, one for each transport."""
    with a_server("900", transport=request.param) as one:
        yield one


over_unix = pytest.mark.parametrize("server", ["unix"], indirect=True)
"""For tests of what a server does with requests, by whichever transport they arrive."""


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Connection]:
    """A connection that has said hello."""
    one = server.connect()
    yield one
    one.close()


def new_shot(client: Connection, **changes: Any) -> str:
    """A new shot with a key on its first frame and all plate frames; its handle."""
    folder = f"/toy/{next(FOLDERS)}.stmshot"
    shot = str(client.call({"op": "open_shot", **opening(folder, **changes)})[0]["shot"])
    push(client, shot)
    return shot


def push(client: Connection, shot: str) -> None:
    """All plate frames and a key on the first."""
    status, _ = client.call({"op": "status", "shot": shot})
    first, last = status["frames"]
    for frame in range(first, last + 1):
        client.call_with_image({"op": "push_plate", "shot": shot, "frame": frame}, grey())
    key = {"op": "push_key", "shot": shot, "frame": first, "objects": [{"name": "hero", "channel": "A"}]}
    client.call_with_image(key, mask())


def wait_for_end(client: Connection, job: str) -> dict[str, Any]:
    """The last state of a job."""
    seen = 0
    while True:
        state, _ = client.call({"op": "job", "job": job, "wait_ms": 1000, "seen": seen})
        seen = state["version"]
        if state["state"] not in ("queued", "running"):
            return state


def code_of(client: Connection, header: dict[str, Any], payload: bytes = b"") -> str:
    """The code of the error that a request answers."""
    with pytest.raises(EngineError) as caught:
        client.call(header, payload)
    return caught.value.code


# ---- who gets in


def test_nothing_can_be_asked_before_hello(server: ServerProcess) -> None:
    with server.raw() as link:
        link.sendall(request(1, PING))
        assert receive(link).header["code"] == "hello"
        assert ended_by_server(link)


def test_a_wrong_token_is_refused(server: ServerProcess) -> None:
    for token in ("0" * 64, "f" * 64):
        with server.raw() as link:
            hello = {"op": "hello", "protocol": [1, 0], "token": token, "client": "x", "pid": 0}
            link.sendall(request(1, hello))
            answer = receive(link)
            assert (answer.kind, answer.request_id, answer.header["code"]) == (Kind.ERROR, 1, "token")
            assert ended_by_server(link)


def test_another_major_version_is_refused_with_the_engines_own(server: ServerProcess) -> None:
    with server.raw() as link:
        link.sendall(request(1, {"op": "hello", "protocol": [2, 7]}))
        answer = receive(link)
        assert answer.header["code"] == "version"
        assert answer.header["details"]["protocol"] == list(protocol.VERSION)
        assert ended_by_server(link)


def test_hello_and_status_say_what_the_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.toml"
    locked = "locked = ['memory_cap', 'log_level']\nmemory_cap = 7\n"
    site.write_text(f"{locked}cache_folder = 'fast'\ndevice = 'cpu'\n")
    monkeypatch.setenv("STM_CONFIG", str(site))
    with a_server("900") as server, server.raw() as link:
        hello = {"op": "hello", "protocol": [1, 4], "token": server.endpoint()["token"], "client": "raw"}
        link.sendall(request(1, {**hello, "pid": 0}))
        said = receive(link).header
        text = f"The setting memory_cap is locked to 7 by {site}, line 1."
        assert said["locked"] == {"memory_cap": {"value": 7, "text": text}}
        assert (said["protocol"], said["cache_folder"]) == ([1, 4], str(tmp_path / "fast"))
        assert said["configured"] == {"memory_cap": 7}  # the device is no setting that a shot takes over
        site.write_text("memory_cap = ")  # an error is named where a shot is opened, and ends no connection
        client = server.connect()
        shot = new_shot(client)
        now = client.call({"op": "status", "shot": shot})[0]
        assert (now["locked"], now["configured"], now["cache_folder"]) == ({}, {}, None)
        site.write_text("locked = ['memory_cap']\nmemory_cap = 20\n")
        assert client.call({"op": "status", "shot": shot})[0]["locked"]["memory_cap"]["value"] == 20
        client.close()


def test_a_second_hello_ends_the_connection(server: ServerProcess) -> None:
    with server.greeted() as link:
        hello = {
            "op": "hello",
            "protocol": list(protocol.VERSION),
            "token": server.endpoint()["token"],
            "client": "x",
            "pid": 0,
        }
        link.sendall(request(2, hello))
        assert receive(link).header["code"] == "hello"
        assert ended_by_server(link)


def test_long_headers_and_payloads_are_not_read_before_hello(server: ServerProcess) -> None:
    for header_bytes, payload_bytes in ((4097, 0), (20, 1)):
        with server.raw() as link:
            link.sendall(protocol.PREFIX.pack(b"STM\1", 1, b"\0\0\0", 1, header_bytes, payload_bytes))
            answer = receive(link)
            assert (answer.request_id, answer.header["code"]) == (0, "framing")
            assert ended_by_server(link)


def test_runtime_files_are_for_the_user_alone(server: ServerProcess) -> None:
    modes = {name: stat.S_IMODE((server.folder / name).stat().st_mode) for name in os.listdir(server.folder)}
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert modes.pop("engine.lock") == modes.pop("endpoint.json") == 0o600
    assert all(mode & 0o077 == 0 for mode in modes.values())


def test_nothing_listens_for_other_machines() -> None:
    with a_server("900", transport="tcp") as server:
        port = server.endpoint()["port"]
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex(("127.0.0.2", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("spoil", ["open", "link", "file"])
def test_a_runtime_folder_that_others_could_use_is_refused(tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "run"
    if spoil == "open":
        folder.mkdir()
        folder.chmod(0o755)
    elif spoil == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    else:
        folder.write_text("")
    with pytest.raises(RuntimeFolderError):
        make_private_folder(folder)


# ---- bad clients disturb no one


@pytest.mark.parametrize(
    "prefix",
    [
        protocol.PREFIX.pack(b"STM\1", 1, b"\0\0\0", 9, protocol.MAX_HEADER + 1, 0),
        protocol.PREFIX.pack(b"STM\1", 1, b"\0\0\0", 9, 20, protocol.MAX_PAYLOAD + 1),
        protocol.PREFIX.pack(b"STM\1", 1, b"\0\0\0", 9, 20, (1 << 64) - 1),
        protocol.PREFIX.pack(b"STM\1", 2, b"\0\0\0", 9, 2, 0) + b"{}",
        protocol.PREFIX.pack(b"STM\1", 1, b"\0\0\0", 9, 2, 0) + b"[]",
        protocol.PREFIX.pack(b"GET ", 1, b"\0\0\0", 9, 2, 0),
    ],
)
def test_a_breach_of_the_framing_ends_that_connection_and_no_other(
    server: ServerProcess, client: Connection, prefix: bytes
) -> None:
    with server.greeted() as link:
        link.sendall(prefix)
        answer = receive(link)
        assert (answer.kind, answer.request_id, answer.header["code"]) == (Kind.ERROR, 0, "framing")
        assert ended_by_server(link)
    assert client.call(PING)[0]["clients"] >= 1


def test_a_client_that_leaves_in_the_middle_of_a_message_is_forgotten(
    server: ServerProcess, client: Connection
) -> None:
    whole = request(5, {"op": "push_plate", "shot": "s1", "frame": 1}, b"x" * 5000)
    for cut in (1, 23, 24, 40, 200, len(whole) - 1):
        with server.greeted() as link:
            link.sendall(whole[:cut])
    assert wait_for(lambda: client.call(PING)[0]["clients"] == 1)


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=60),
            st.builds(
                lambda kind, number, header, more: protocol.PREFIX.pack(
                    b"STM\1", kind, b"\0\0\0", number, len(header), len(more)
                ) + header + more,
                st.integers(0, 5), st.integers(0, 9), st.binary(max_size=30), st.binary(max_size=30),
            ),
            st.builds(
                lambda op, fields, more: request(7, {**fields, "op": op}, more),
                st.sampled_from(sorted(set(protocol.REQUESTS) - {"shutdown"})),
                st.dictionaries(
                    st.sampled_from(["shot", "frame", "frames", "image", "job", "folder", "wait_ms"]),
                    st.integers(-5, 5) | st.text(max_size=5) | st.lists(st.integers(-3, 3), max_size=4),
                ),
                st.binary(max_size=20),
            ),
        ),
        max_size=4,
    ),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_server_outlives_malformed_messages(
    server: ServerProcess, chunks: list[bytes], greeted: bool
) -> None:
    with server.greeted() if greeted else server.raw() as link:
        try:
            for chunk in chunks:
                link.sendall(chunk)
            link.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has closed the connection already
        assert ended_by_server(link)
    with server.greeted() as link:
        link.sendall(request(3, PING))
        assert receive(link).header["clients"] >= 1


def test_a_bad_request_names_the_field_and_the_connection_goes_on(client: Connection) -> None:
    with pytest.raises(EngineError, match="wait_ms") as caught:
        client.call({"op": "job", "job": "j1", "wait_ms": -1})
    assert caught.value.code == "bad_request"
    assert code_of(client, {"op": "fly"}) == "bad_request"
    assert code_of(client, PING, b"surplus") == "bad_request"
    assert "time" in client.call(PING)[0]


def test_handles_of_another_connection_are_unknown(server: ServerProcess, client: Connection) -> None:
    shot = new_shot(client)
    other = server.connect()
    assert code_of(other, {"op": "status", "shot": shot}) == "unknown_shot"
    assert code_of(other, {"op": "cancel", "job": "j999999"}) == "unknown_job"
    other.close()


def test_a_client_that_does_not_read_does_not_slow_the_others(
    server: ServerProcess, client: Connection
) -> None:
    shot = new_shot(client, width=4)
    with server.greeted() as link:
        opened = request(2, {"op": "open_shot", **opening("/toy/deaf.stmshot")})
        link.sendall(opened)
        handle = receive(link).header["shot"]
        link.settimeout(1)
        asked = request(0xFFFF, {"op": "info"}) + b"".join(
            request(number, {"op": "get_settings", "shot": handle}) for number in range(10, 30_000)
        )
        with pytest.raises(TimeoutError):
            for _ in range(100):
                link.sendall(asked)  # the server stops reading: this is the back-pressure
        for _ in range(20):
            assert client.call({"op": "status", "shot": shot})[0]["shot"] == shot


# ---- requests and their order


def test_many_requests_at_once_are_all_answered_in_order(server: ServerProcess) -> None:
    with server.greeted() as link:
        shot = {"op": "open_shot", **opening("/toy/order.stmshot")}
        link.sendall(request(2, shot))
        handle = receive(link).header["shot"]
        numbers = range(10, 210)
        asked = b"".join(
            request(number, {"op": "set_settings", "shot": handle, "settings": {"last": number}})
            for number in numbers
        )
        thread = threading.Thread(target=link.sendall, args=(asked,))
        thread.start()
        answers = [receive(link) for _ in numbers]
        thread.join()
    assert [one.request_id for one in answers] == list(numbers)
    assert [one.header["settings"]["last"] for one in answers] == list(numbers)


def test_a_request_id_in_use_is_a_breach(server: ServerProcess) -> None:
    with server.greeted() as link:
        shot = request(2, {"op": "open_shot", **opening("/toy/ids.stmshot")})
        link.sendall(shot + shot)
        kinds = {receive(link).header.get("code") for _ in range(1)}
        assert kinds == {"framing"} or ended_by_server(link)


@over_unix
def test_a_waiting_request_does_not_hold_up_later_ones(server: ServerProcess) -> None:
    client = server.connect()
    shot = new_shot(client, last=1060)
    client.call({"op": "propagate", "shot": shot})
    link = client._socket
    link.sendall(request(500, {"op": "get_matte", "shot": shot, "frame": 1060, "wait_ms": 30_000}))
    link.sendall(request(501, {"op": "status", "shot": shot}))
    link.settimeout(30)
    first, second = receive(link), receive(link)
    assert (first.request_id, second.request_id) == (501, 500)
    assert second.kind is Kind.REPLY
    client.close()


def test_pixels_arrive_whole_inline_and_mapped(server: ServerProcess, client: Connection) -> None:
    width, height = 300, 200
    values = np.random.default_rng(3).random((height, width, 3), np.float32)
    data = values.tobytes()
    shot = new_shot(client, width=width, height=height)
    image = Image("float", ("R", "G", "B"), (0, 0, width, height), data)
    header = {"op": "push_plate", "shot": shot, "frame": 1002}
    mapped = client.call_with_image(header, image)
    inline, _ = client.call({**header, "image": image.to_json()}, data)
    assert client._files, "a mapped file was used"
    assert (mapped["changed"], inline["changed"]) == (True, False)
    assert mapped["content"] == inline["content"] == f"{float(np.nansum(values)):.3f}"


def test_a_matte_comes_back_inline_and_mapped_in_either_order_of_rows(client: Connection) -> None:
    width, height = 320, 240
    shot = new_shot(client, width=width, height=height)
    ramp = np.linspace(0, 1, width * height, dtype=np.float32).reshape(height, width)
    key = {"op": "push_key", "shot": shot, "frame": 1003, "objects": [{"name": "hero", "channel": "A"}]}
    client.call_with_image(key, Image("float", ("A",), (0, 0, width, height), ramp.tobytes()))
    for rows, expected in (("down", ramp), ("up", ramp[::-1])):
        asked = {"op": "get_matte", "shot": shot, "frame": 1003, "format": "float", "rows": rows}
        reply, data = client.call(asked)
        np.testing.assert_array_equal(np.frombuffer(data, np.float32).reshape(height, width), expected)
        _, mapped = client.call_for_image(asked, len(data))
        assert mapped == bytes(data)
        assert reply["source"] == "key"


def test_a_matte_seen_through_another_window_is_zero_outside(client: Connection) -> None:
    shot = new_shot(client)
    asked = {"op": "get_matte", "shot": shot, "frame": 1001, "format": "float", "window": [-1, 1, 3, 4]}
    _, data = client.call(asked)
    matte = np.frombuffer(data, np.float32).reshape(4, 3)
    np.testing.assert_array_equal(matte, [[0, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]])


# ---- mapped files


@pytest.fixture
def mapped(client: Connection) -> Iterator[MappedFile]:
    """A legal mapped file of 36 bytes."""
    assert client._map_folder is not None
    file = MappedFile(client._map_folder, client._map_prefix, 36)
    yield file
    file.close()


def push_mapped(client: Connection, shot: str, name: str, size: int = 36) -> dict[str, Any]:
    image = {**grey().to_json(), "mapped": {"name": name, "bytes": size}}
    return client.call({"op": "push_plate", "shot": shot, "frame": 1001, "image": image})[0]


@pytest.mark.parametrize(
    "spoil", ["absent", "link", "hard link", "open to others", "shorter", "folder", "fifo"]
)
def test_a_mapped_file_that_is_not_what_it_should_be_is_refused(
    client: Connection, mapped: MappedFile, spoil: str
) -> None:
    shot = new_shot(client)
    assert "content" in push_mapped(client, shot, mapped.name)
    path = Path(mapped._path)
    if spoil == "absent":
        path.unlink()
    elif spoil == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    elif spoil == "hard link":
        os.link(path, path.with_name(mapped.name + "2"))
    elif spoil == "open to others":
        path.chmod(0o644)
    elif spoil == "shorter":
        os.truncate(path, 35)
    elif spoil == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(EngineError) as caught:
        push_mapped(client, shot, mapped.name)
    assert caught.value.code == "map"
    if spoil == "folder":
        path.rmdir()


def test_a_mapped_file_of_another_connection_is_refused(
    server: ServerProcess, client: Connection, mapped: MappedFile
) -> None:
    other = server.connect()
    shot = new_shot(other)
    with pytest.raises(EngineError) as caught:
        push_mapped(other, shot, mapped.name)
    assert caught.value.code == "map"
    other.close()


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", "", "a" * 65, "a\0b"])
def test_the_name_of_a_mapped_file_cannot_leave_the_folder(client: Connection, name: str) -> None:
    shot = new_shot(client)
    with pytest.raises(EngineError) as caught:
        push_mapped(client, shot, client._map_prefix + name)
    assert caught.value.code in ("bad_request", "map")


def test_a_mapped_file_too_small_for_the_matte_is_an_error_and_not_an_overrun(
    client: Connection, mapped: MappedFile
) -> None:
    shot = new_shot(client)
    into = {"name": mapped.name, "bytes": 36, "offset": 20}
    asked = {"op": "get_matte", "shot": shot, "frame": 1001, "into": into}
    assert code_of(client, asked) == "map"
    reply, payload = client.call({**asked, "into": {**into, "offset": 12}})
    assert len(payload) == 0
    assert reply["image"]["offset"] == 12
    assert mapped.read(36)[12:] == np.ones(12, "<f2").tobytes()


def test_the_files_of_a_client_that_has_gone_are_removed(server: ServerProcess) -> None:
    gone = server.connect()
    assert gone._map_folder is not None
    file = MappedFile(gone._map_folder, gone._map_prefix, 100)
    assert Path(file._path).exists()
    gone._socket.close()
    assert wait_for(lambda: not Path(file._path).exists())


# ---- shots and jobs


@over_unix
def test_two_clients_share_one_shot_and_its_jobs(server: ServerProcess, client: Connection) -> None:
    shot = new_shot(client)
    folder = client.call({"op": "open_shot", **opening("/toy/shared.stmshot")})[0]["folder"]
    other = server.connect()
    same = other.call({"op": "open_shot", "folder": folder})[0]
    assert same["created"] is False
    mine = client.call({"op": "open_shot", "folder": folder})[0]["shot"]
    assert same["shot"] == mine != shot
    push(client, mine)
    job = client.call({"op": "propagate", "shot": mine})[0]["job"]
    assert wait_for_end(other, job)["state"] == "finished"
    assert other.call({"op": "get_matte", "shot": mine, "frame": 1007})[0]["source"] == "propagated"
    other.close()


def test_two_owners_cannot_have_one_shot(server: ServerProcess, client: Connection) -> None:
    asked = {"op": "open_shot", **opening("/toy/owned.stmshot")}
    client.call({**asked, "owner": "STM1"})
    other = server.connect()
    assert code_of(other, {**asked, "owner": "STM2"}) == "shot_open"
    assert "shot" in other.call({**asked, "owner": "STM1"})[0]
    other.close()


def test_a_new_shot_begins_with_what_another_has_and_leaves_it_alone(client: Connection) -> None:
    first = client.call({"op": "open_shot", **opening("/toy/first.stmshot"), "owner": "STM1"})[0]["shot"]
    push(client, first)
    asked = {"op": "open_shot", **opening("/toy/second.stmshot"), "owner": "STM2"}
    opened = client.call({**asked, "copy_of": "/toy/first.stmshot"})[0]
    assert opened["created"] is True and opened["status"]["keys"] == [1001]
    client.call({"op": "remove_key", "shot": opened["shot"], "frame": 1001})
    assert client.call({"op": "status", "shot": first})[0]["keys"] == [1001]
    gone = {**asked, "folder": "/toy/third.stmshot", "copy_of": "/toy/nowhere.stmshot"}
    assert client.call(gone)[0]["status"]["keys"] == []
    assert code_of(client, {**gone, "folder": "/toy/fourth.stmshot", "copy_of": "toy"}) == "bad_request"


def test_a_removed_key_is_restored_by_the_content_of_its_masks(client: Connection) -> None:
    opened = client.call({"op": "open_shot", **opening("/toy/kept.stmshot"), "owner": "STM1"})[0]
    shot = opened["shot"]
    push(client, shot)
    (key,) = client.call({"op": "list_keys", "shot": shot})[0]["keys"]
    asked = {"op": "restore_key", "shot": shot, "frame": 1001, "objects": key["objects"]}
    client.call({"op": "remove_key", "shot": shot, "frame": 1001})
    assert client.call(asked)[0]["keys"] == [key]
    unknown = [{**one, "content": "1" * 64} for one in key["objects"]]
    assert code_of(client, {**asked, "objects": unknown}) == "mask"
    for wrong in ([], key["objects"] * 2, [{"name": "a", "content": "../../shot"}]):
        assert code_of(client, {**asked, "objects": wrong}) == "bad_request"


@over_unix
def test_a_job_reports_every_step_and_ends(server: ServerProcess) -> None:
    client = server.connect(events=True)
    shot = new_shot(client)
    answer, _ = client.call({"op": "propagate", "shot": shot})
    assert (answer["compute"], answer["frames"]) == (9, [[1002, 1010]])
    state = wait_for_end(client, answer["job"])
    assert (state["state"], state["done"], state["total"]) == ("finished", 9, 9)
    assert state["finished"] == [[1002, 1010]]
    events: list[dict[str, Any]] = []

    def the_end_has_come() -> bool:
        events.extend(client.events())
        return bool(events) and events[-1]["event"] == "ended"

    assert wait_for(the_end_has_come)
    assert {one["job"] for one in events} == {answer["job"]}
    assert [one["version"] for one in events] == sorted({one["version"] for one in events})
    client.close()


@over_unix
def test_cancel_stops_a_job_between_two_frames_and_keeps_what_is_finished(client: Connection) -> None:
    shot = new_shot(client, last=1500)
    job = client.call({"op": "propagate", "shot": shot})[0]["job"]
    while client.call({"op": "job", "job": job})[0]["done"] < 2:
        pass
    client.call({"op": "cancel", "job": job})
    state = wait_for_end(client, job)
    assert state["state"] == "cancelled"
    assert 2 <= state["done"] < 499
    status, _ = client.call({"op": "status", "shot": shot})
    assert status["done"] == [[1001, 1001 + state["done"]]]


@over_unix
def test_a_matte_that_is_being_computed_can_be_waited_for_and_one_that_is_not_is_missing_at_once(
    client: Connection,
) -> None:
    shot = new_shot(client, last=1030)
    asked = {"op": "get_matte", "shot": shot, "frame": 1020}
    with pytest.raises(EngineError, match="frame 1020") as caught:
        client.call({**asked, "wait_ms": 60_000})
    assert (caught.value.code, caught.value.details["state"]) == ("matte_missing", "missing")
    client.call({"op": "propagate", "shot": shot})
    assert code_of(client, asked) == "timeout"
    assert client.call({**asked, "wait_ms": 60_000})[0]["frame"] == 1020
    with pytest.raises(EngineError) as caught:
        client.call({**asked, "frame": 2000, "wait_ms": 60_000})
    assert caught.value.details["state"] == "outside"


def test_a_propagation_that_lacks_plate_frames_names_them_and_does_not_start(client: Connection) -> None:
    folder = f"/toy/{next(FOLDERS)}.stmshot"
    shot = client.call({"op": "open_shot", **opening(folder)})[0]["shot"]
    assert code_of(client, {"op": "propagate", "shot": shot}) == "key"
    key = {"op": "push_key", "shot": shot, "frame": 1001, "objects": [{"name": "hero", "channel": "A"}]}
    client.call_with_image(key, mask())
    client.call_with_image({"op": "push_plate", "shot": shot, "frame": 1004}, grey())
    with pytest.raises(EngineError, match="1002-1003, 1005-1010") as caught:
        client.call({"op": "propagate", "shot": shot})
    assert caught.value.details["frames"] == [[1002, 1003], [1005, 1010]]
    assert client.call({"op": "status", "shot": shot})[0]["jobs"] == []


@over_unix
def test_a_shot_that_is_computed_is_not_edited_unless_the_edit_interrupts(client: Connection) -> None:
    shot = new_shot(client, last=1900)
    job = client.call({"op": "propagate", "shot": shot})[0]["job"]
    edit = {"op": "set_settings", "shot": shot, "settings": {"a": 1}}
    assert code_of(client, edit) == "busy"
    assert code_of(client, {"op": "propagate", "shot": shot}) == "busy"
    assert client.call({**edit, "interrupt": True})[0]["settings"]["a"] == 1
    assert wait_for_end(client, job)["state"] == "cancelled"


@over_unix
def test_two_shots_take_turns_on_one_device(client: Connection) -> None:
    shots = [new_shot(client, last=1040) for _ in range(2)]
    jobs = [client.call({"op": "propagate", "shot": shot})[0]["job"] for shot in shots]
    while (second := client.call({"op": "job", "job": jobs[1]})[0])["done"] < 10:
        assert second["state"] != "failed"
    first = client.call({"op": "job", "job": jobs[0]})[0]
    assert first["done"] < 39, "the second began before the first had ended"
    assert [wait_for_end(client, job)["state"] for job in jobs] == ["finished", "finished"]


@over_unix
def test_a_third_job_waits_for_a_place(client: Connection) -> None:
    shots = [new_shot(client, last=1040) for _ in range(3)]
    jobs = [client.call({"op": "propagate", "shot": shot})[0]["job"] for shot in shots]
    states = [client.call({"op": "job", "job": job})[0]["state"] for job in jobs]
    assert states[2] == "queued"
    client.call({"op": "cancel", "job": jobs[2]})
    assert wait_for_end(client, jobs[2])["state"] == "cancelled"
    for job in jobs[:2]:
        client.call({"op": "cancel", "job": job})


@over_unix
def test_a_job_ends_with_its_client_unless_it_is_detached(server: ServerProcess, client: Connection) -> None:
    results = {}
    for detach in (False, True):
        folder = f"/toy/{next(FOLDERS)}.stmshot"
        watched = client.call({"op": "open_shot", **opening(folder, last=1050)})[0]["shot"]
        starter = server.connect()
        shot = starter.call({"op": "open_shot", "folder": folder})[0]["shot"]
        push(starter, shot)
        job = starter.call({"op": "propagate", "shot": shot, "detach": detach})[0]["job"]
        starter.close()
        assert client.call({"op": "status", "shot": watched})[0]["shot"] == watched
        results[detach] = wait_for_end(client, job)["state"]
    assert results == {False: "cancelled", True: "finished"}


@over_unix
def test_a_failing_job_says_why_and_a_bug_points_to_the_log(
    server: ServerProcess, client: Connection
) -> None:
    shot = new_shot(client)
    client.call({"op": "set_settings", "shot": shot, "settings": {"speed": "fail"}})
    job = client.call({"op": "propagate", "shot": shot})[0]["job"]
    state = wait_for_end(client, job)
    assert (state["state"], state["error"]["text"]) == ("failed", "frame 1002: The toy is broken.")
    client.call({"op": "set_settings", "shot": shot, "settings": {"speed": "crash"}})
    job = client.call({"op": "propagate", "shot": shot})[0]["job"]
    state = wait_for_end(client, job)
    assert (state["error"]["code"], "engine.log" in state["error"]["text"]) == ("internal", True)
    assert "RuntimeError: a bug" in (server.folder / "engine.log").read_text()


@over_unix
def test_export_is_a_job_that_writes_files(client: Connection, tmp_path: Path) -> None:
    shot = new_shot(client)
    pattern = str(tmp_path / "m.%04d.exr")
    answer, _ = client.call({"op": "export", "shot": shot, "pattern": pattern, "frames": [1002, 1004]})
    assert answer["frames"] == [[1002, 1004]]
    assert wait_for_end(client, answer["job"])["state"] == "finished"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.1002.exr", "m.1003.exr", "m.1004.exr"]
    assert code_of(client, {"op": "export", "shot": shot, "pattern": "m.%04d.exr"}) == "bad_request"


@over_unix
def test_shapes_are_a_job_that_writes_a_file(client: Connection, tmp_path: Path) -> None:
    shot = new_shot(client)
    asked = {"op": "shapes", "shot": shot, "file": str(tmp_path / "hero.nk"), "frames": [1002, 1004]}
    answer, _ = client.call({**asked, "objects": ["hero"], "tolerance": 0.5})
    assert (answer["compute"], answer["frames"]) == (3, [[1002, 1004]])
    ended = wait_for_end(client, answer["job"])
    assert (ended["state"], ended["kind"], ended["done"]) == ("finished", "shapes", 3)
    assert (tmp_path / "hero.nk").read_text() == "nuke 0.5 hero"
    for wrong in ({"file": "hero.nk"}, {"format": "dxf"}, {"tolerance": 0}):
        assert code_of(client, {**asked, **wrong}) == "bad_request"


@over_unix
def test_plate_frames_are_told_apart_by_the_hosts_digest(client: Connection) -> None:
    folder = f"/toy/{next(FOLDERS)}.stmshot"
    shot = client.call({"op": "open_shot", **opening(folder, last=1004)})[0]["shot"]
    client.call_with_image({"op": "push_plate", "shot": shot, "frame": 1002, "digest": "a"}, grey())
    asked = {"op": "plate_needed", "shot": shot}
    assert client.call(asked)[0]["needed"] == [[1001, 1001], [1003, 1004]]
    assert client.call({**asked, "digests": {"1002": "a"}})[0]["needed"] == [[1001, 1001], [1003, 1004]]
    assert client.call({**asked, "digests": {"1002": "b"}})[0]["needed"] == [[1001, 1004]]


# ---- the life of the process


def test_of_two_servers_started_at_once_one_wins_and_the_other_ends_well() -> None:
    server = ServerProcess()
    try:
        processes = [server.start("900") for _ in range(3)]
        assert wait_for(lambda: sum(one.poll() is None for one in processes) == 1)
        winner = next(one for one in processes if one.poll() is None)
        server.wait_until_reachable(winner)
        assert [one.wait() for one in processes if one is not winner] == [1, 1]
        client = server.connect()
        assert client.call(PING)[0]["clients"] == 1
        client.close()
    finally:
        server.clean()


def test_the_lock_is_told_as_what_it_is(tmp_path: Path) -> None:
    with engine_lock(tmp_path), pytest.raises(EngineRunningError), engine_lock(tmp_path):
        pytest.fail("two held it")
    with engine_lock(tmp_path):
        assert (tmp_path / "engine.lock").exists()


def test_a_killed_server_leaves_nothing_that_a_new_one_stumbles_over() -> None:
    with a_server("900") as server:
        before = server.connect()
        assert before._map_folder is not None
        left = MappedFile(before._map_folder, before._map_prefix, 100)
        server.processes[0].kill()
        server.processes[0].wait()
        assert (server.folder / "engine.sock").exists()
        with pytest.raises(EngineGoneError):
            before.call(PING)
        server.start_and_wait("900")
        after = server.connect()
        assert after.call(PING)[0]["clients"] == 1
        assert not Path(left._path).exists()
        after.close()


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM", "SIGINT"])
def test_an_ordered_end_removes_the_traces_and_stops_jobs(how: str) -> None:
    with a_server("900") as server:
        client = server.connect()
        shot = new_shot(client, last=1900)
        client.call({"op": "propagate", "shot": shot})
        if how == "shutdown":
            client.call({"op": "shutdown"})
        else:
            server.processes[0].send_signal(getattr(signal, how))
        assert server.processes[0].wait(30) == 0
        assert sorted(os.listdir(server.folder)) == ["engine.lock", "engine.log"]
        assert "Traceback" not in (server.folder / "engine.log").read_text(), "a client was still connected"
        assert client._map_folder is not None
        assert not Path(client._map_folder).exists()
        with pytest.raises(EngineGoneError):
            client.call(PING)


def test_an_engine_whose_threads_are_all_blocked_ends_all_the_same_and_says_what_they_did() -> None:
    with a_server("900", "0", "0", "2") as server:
        first = server.connect()
        folder = f"/toy/{next(FOLDERS)}.stmshot"
        stuck = {**opening(folder), "settings": {"speed": "stuck"}}
        shot = first.call({"op": "open_shot", **stuck})[0]["shot"]
        links = [server.greeted() for _ in range(WORKER_THREADS)]
        for link in links:
            link.sendall(request(2, {"op": "open_shot", "folder": folder}))
            assert receive(link).header["shot"] == shot
            link.sendall(request(3, {"op": "get_settings", "shot": shot}))
            link.sendall(request(4, PING))  # its reply comes after the one before was begun
            assert receive(link).request_id == 4
        first.call({"op": "shutdown"})
        assert server.processes[0].wait(30) == 1
        log = (server.folder / "engine.log").read_text()
        assert "the engine ends" in log and log.count("toy_engine.py") >= WORKER_THREADS
        first.close()
        for link in links:
            link.close()
        server.start_and_wait("900")
        after = server.connect()
        assert after.call(PING)[0]["clients"] == 1
        after.close()


def test_an_idle_server_ends_and_a_used_one_does_not() -> None:
    with a_server("0.3") as server:
        client = server.connect()
        assert not wait_for(lambda: server.processes[0].poll() is not None, 1.0)
        client.close()
        assert wait_for(lambda: server.processes[0].poll() == 0)


def test_a_detached_job_keeps_an_idle_server_alive_until_it_ends() -> None:
    with a_server("0.1") as server:
        client = server.connect()
        shot = new_shot(client, last=1060)
        client.call({"op": "propagate", "shot": shot, "detach": True})
        client.close()
        assert wait_for(lambda: server.processes[0].poll() == 0)
        log = (server.folder / "engine.log").read_text()
        assert "nobody needs the engine" in log


@pytest.mark.slow
def test_a_server_without_work_gives_memory_back_once_and_again_after_the_next_work() -> None:
    with a_server("900", "0", "0.2") as server:
        client = server.connect()

        def rests() -> int:
            label: str = client.call({"op": "info"})[0]["devices"][0]["label"]
            return int(label.split()[2])

        assert not wait_for(lambda: rests() > 0, 0.7), "nothing has been done yet"
        shot = new_shot(client, last=1060)
        client.call({"op": "propagate", "shot": shot})
        assert wait_for(lambda: rests() > 0)
        assert client.call({"op": "status", "shot": shot})[0]["missing"] == [], "not while it worked"
        assert not wait_for(lambda: rests() > 1, 0.7), "looking is no work"
        client.call({"op": "get_matte", "shot": shot, "frame": 1003, "format": "half"})
        assert wait_for(lambda: rests() == 2)
        client.call({"op": "close_shot", "shot": shot})
        assert wait_for(lambda: rests() == 3)
        client.close()


SLEEP = "import time; time.sleep(600)"


def test_the_server_dies_with_its_parent_once_no_other_client_is_there() -> None:
    server = ServerProcess()
    parent = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        process = server.start_and_wait("900", str(parent.pid))
        client = server.connect()
        parent.kill()
        parent.wait()
        assert not wait_for(lambda: process.poll() is not None, 1.0), "another client still uses it"
        client.close()
        assert wait_for(lambda: process.poll() == 0)
    finally:
        parent.kill()
        parent.wait()
        server.clean()


def test_the_server_dies_with_the_process_that_started_it() -> None:
    server = ServerProcess()
    script = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'tests.stm_plugin.toy_engine', '900', str(os.getpid())])\n"
        "time.sleep(600)\n"
    )
    from tests.stm_plugin.server_process import REPOSITORY

    host = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, env=server.environment)
    try:
        assert wait_for(lambda: (server.folder / "endpoint.json").exists())
        assert Parent(host.pid).is_alive()
        host.send_signal(signal.SIGKILL)
        host.wait()
        assert wait_for(lambda: not (server.folder / "endpoint.json").exists())
    finally:
        host.kill()
        host.wait()
        server.clean()


def test_a_process_that_has_gone_is_not_a_living_parent() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    watched = Parent(gone.pid)
    gone.wait()
    assert not watched.is_alive()
    assert not replace_pid(watched, os.getpid()).is_alive(), "another process with its number is not it"


def replace_pid(parent: Parent, pid: int) -> Parent:
    """A parent watch whose process id belongs to another process."""
    parent.pid = pid
    return parent
