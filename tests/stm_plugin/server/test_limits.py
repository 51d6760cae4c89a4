"""Requests that are too large or make no sense are refused and do not disturb other clients."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from stm_nuke.wire import Connection, EngineError

from stm_plugin import protocol
from stm_plugin.protocol import Kind
from stm_plugin.server.connection import ByteBudget
from stm_plugin.server.main import MAX_STRANGERS
from tests.stm_plugin.server_process import (
    ServerProcess,
    a_server,
    ended_by_server,
    grey,
    mask,
    opening,
    receive,
    request,
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server for all tests that leave it in order."""
    with a_server("900") as running:
        yield running


@pytest.fixture
def crowded() -> Iterator[ServerProcess]:
    """A server for one test that fills it with connections."""
    with a_server("60") as running:
        yield running


@pytest.fixture(scope="module")
def engine() -> Iterator[ServerProcess]:
    """The real engine, started with a umask that lets others read."""
    with a_server(module="stm_plugin.server", umask=0o022) as running:
        yield running


def opened(client: Connection, folder: Path) -> str:
    """The handle of a new shot."""
    return str(client.call({"op": "open_shot", **opening(str(folder))})[0]["shot"])


def error_of(link: socket.socket) -> dict[str, Any]:
    answer = receive(link)
    assert answer.kind is Kind.ERROR
    return answer.header


@pytest.mark.parametrize("op", [[], {}, 1, None, True, ["ping"], "x" * 4000])
def test_an_operation_of_any_kind_is_answered_and_the_connection_goes_on(
    server: ServerProcess, op: object
) -> None:
    link = server.greeted()
    link.sendall(request(2, {"op": op}))
    assert error_of(link)["code"] == "bad_request"
    link.sendall(request(3, {"op": "ping"}))
    assert receive(link).kind is Kind.REPLY
    link.close()


@pytest.mark.parametrize("folder", ["/tmp/" + "a" * 256, "/tmp/" + "ä" * 128, "/" + "a/" * 2048, "/tmp/a\0b"])
def test_a_name_that_no_file_system_takes_is_a_bad_request(server: ServerProcess, folder: str) -> None:
    link = server.greeted()
    link.sendall(request(2, {"op": "open_shot", **opening(folder)}))
    told = error_of(link)
    assert told["code"] == "bad_request" and "folder" in told["text"]
    link.close()


def test_the_client_too_many_is_told_limit_and_strangers_do_not_count(crowded: ServerProcess) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(crowded.raw())
        for _ in range(protocol.MAX_CLIENTS):
            stack.enter_context(crowded.greeted())
        late = stack.enter_context(crowded.raw())
        hello = {"op": "hello", "protocol": list(protocol.VERSION), "token": crowded.endpoint()["token"]}
        late.sendall(request(1, {**hello, "client": "late", "pid": 0}))
        assert error_of(late)["code"] == "limit"
        assert ended_by_server(late)


def test_strangers_hold_up_no_client(crowded: ServerProcess) -> None:
    with ExitStack() as stack:
        strangers = [stack.enter_context(crowded.raw()) for _ in range(MAX_STRANGERS + 8)]
        with crowded.greeted() as link:
            link.sendall(request(2, {"op": "ping"}))
            assert receive(link).kind is Kind.REPLY
        assert ended_by_server(strangers[0])


def test_payloads_that_were_announced_and_do_not_come_hold_up_nobody(
    server: ServerProcess, tmp_path: Path
) -> None:
    width = height = 8000
    image: dict[str, Any] = {"format": "float", "channels": ["R", "G", "B"]}
    image |= {"data_window": [0, 0, width, height]}
    image |= {"layout": "interleaved", "row_bytes": width * 12}
    push = {"op": "push_plate", "shot": "s1", "frame": 1001, "image": image}
    header = protocol.encode_message(protocol.Message(Kind.REQUEST, 2, push, b""))
    header = header[:16] + protocol.MAX_PAYLOAD.to_bytes(8, "little") + header[24:]
    with ExitStack() as stack:
        for _ in range(4):
            idle = stack.enter_context(server.greeted())
            idle.sendall(header + b"\0" * 100)
        client = server.connect()
        shot = opened(client, tmp_path / "a.stmshot")
        inline = grey()
        asked = {"op": "push_plate", "shot": shot, "frame": 1001, "image": inline.to_json()}
        assert client.call(asked, bytes(inline.data), seconds=20)[0]["changed"]
        client.close()


def test_payloads_larger_than_the_budget_together_all_arrive() -> None:
    async def one(budget: ByteBudget, parts: int) -> int:
        async with budget.payload() as share:
            for _ in range(parts):
                await share.take(10)
                await asyncio.sleep(0)
            return share.bytes

    async def all_of_them() -> list[int]:
        budget = ByteBudget(50)
        async with asyncio.timeout(10):
            return await asyncio.gather(*(one(budget, parts) for parts in (5, 9, 7, 20)))

    assert asyncio.run(all_of_them()) == [50, 90, 70, 200]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_what_an_engine_writes_for_a_shot_has_the_callers_umask(
    engine: ServerProcess, tmp_path: Path
) -> None:
    client = engine.connect()
    folder = tmp_path / "a.stmshot"
    shot = opened(client, folder)
    client.call_with_image({"op": "push_plate", "shot": shot, "frame": 1001}, grey())
    key = {"op": "push_key", "shot": shot, "frame": 1001, "objects": [{"name": "a", "channel": "A"}]}
    client.call_with_image(key, mask())
    client.close()
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o644}
    assert any(path.suffix == ".mask" for path in written)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}
    assert stat.S_IMODE(engine.folder.stat().st_mode) == 0o700
    private = [path for path in engine.folder.iterdir() if path.name != "engine.sock"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_a_request_for_a_folder_that_cannot_be_used_says_which_and_what_to_do(
    engine: ServerProcess, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    client = engine.connect()
    with pytest.raises(EngineError) as told:
        opened(client, file / "a.stmshot")
    client.close()
    assert told.value.code == "store" and str(file) in str(told.value)
