#!/usr/bin/env python3
"""How long a start takes: processor time, time and memory of what a person or a host waits for first.

    python benchmarks/start.py [--rounds 3]

Prints one row for `stm --help`, the completion of an option, `stm info`, and an engine from its start to its
answer of `hello` (and to the answer of `info`, which needs the engine itself). The least of the rounds
counts: what other programs take from the machine can only add.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from stm_plugin import protocol  # noqa: E402

STM = "import sys; from stm_plugin.cli.main import main; sys.argv[0] = 'stm'; main()"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Start:
    """One start: seconds of processor time (user and system), seconds, and MB at the peak."""

    processor: float
    seconds: float
    megabytes: float


def command(*arguments: str, **environment: str) -> Start:
    """Run `stm ARGUMENTS` and measure it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", STM, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"stm {' '.join(arguments)} ended with {process.returncode}")
    return Start(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1000)


def engine(ask: str) -> Start:
    """Start an engine and say hello; with `ask` "info", wait for the answer of `info` too."""
    folder = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))
    environment = {**os.environ, "STM_RUNTIME_DIR": str(folder), "STM_TRANSPORT": "unix"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "stm_plugin.server", "--idle", "30"], cwd=REPOSITORY, env=environment
    )
    try:
        link = _hello(folder, process)
        if ask == "info":
            _ask(link, 2, {"op": "info"})
        used = _processor_seconds(process.pid)
        measured = Start(used, time.perf_counter() - began, _peak_megabytes(process.pid))
        link.close()
        return measured
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _hello(folder: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            endpoint = json.loads((folder / "endpoint.json").read_text("utf-8"))
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.settimeout(START_SECONDS)
            link.connect(endpoint["path"])
            hello = {"op": "hello", "protocol": list(protocol.VERSION), "token": endpoint["token"]}
            _ask(link, 1, {**hello, "client": "benchmark", "pid": os.getpid()})
            return link
        if process.poll() is not None:
            break
        time.sleep(0.005)
    raise SystemExit("the engine did not come up")


def _ask(link: socket.socket, number: int, header: dict[str, object]) -> None:
    """Send a request and read its whole reply."""
    link.sendall(protocol.encode_message(protocol.Message(protocol.Kind.REQUEST, number, header)))
    prefix = protocol.decode_prefix(_exactly(link, protocol.PREFIX.size))
    answer = _exactly(link, prefix.header_bytes + prefix.payload_bytes)
    if prefix.kind is not protocol.Kind.REPLY:
        raise SystemExit(f"the engine refused {header['op']}: {answer.decode()}")


def _exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        if not part:
            raise SystemExit("the engine has closed the connection")
        data += part
    return data


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    completion = {
        "_STM_COMPLETE": "complete_bash",
        "COMP_WORDS": "stm propagate --work",
        "COMP_CWORD": "2",
    }
    cases = {
        "stm --help": lambda: command("--help"),
        "stm propagate --work<TAB>": lambda: command(**completion),
        "stm info": lambda: command("info"),
        "engine to hello": lambda: engine("hello"),
        "engine to info": lambda: engine("info"),
    }
    print(f"{'start':28} {'processor':>10} {'seconds':>10} {'MB':>8}   (least of {rounds})")
    for name, measure in cases.items():
        measured = [measure() for _ in range(rounds)]
        processor = min(one.processor for one in measured)
        seconds = min(one.seconds for one in measured)
        megabytes = max(one.megabytes for one in measured)
        print(f"{name:28} {processor:>8.2f} s {seconds:>8.2f} s {megabytes:>8.0f}")


if __name__ == "__main__":
    main()
