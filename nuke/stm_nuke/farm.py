"""A job bundle for a render farm, written by the engine's own command line (`stm farm bundle`).

It does not use `nuke`, so it runs in any thread. The shot must be closed in this process's engine only for
the tasks of the farm; the bundle itself takes no lock.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from stm_nuke.errors import EngineFailure, Stopped
from stm_nuke.frames import Range
from stm_nuke.launch import Installation, scrubbed_environment
from stm_nuke.wire import Aborted

STEP_SECONDS = 0.2
_END_SECONDS = 10.0
_PREFIX = "Error: "


def write_bundle(store: Path, out: Path, mattes: str, frames: Range, stm: str, aborted: Aborted) -> str:
    """Write the bundle of a shot store.

    Args:
        out: the folder of the bundle.
        mattes: the matte sequence that the farm writes.
        stm: the command `stm` on the farm's machines.

    Returns:
        A line for people: the folder and its tasks.

    Raises:
        EngineFailure: it cannot be written; the text is the command line's. Stopped.
    """
    found = Installation.find()
    isolated = "-I" if found.root is None else "-sP"
    command = [
        *(found.python, isolated, "-m", "stm_plugin", "farm", "bundle", str(store)),
        *("--out", str(out), "--mattes", mattes, "--frames", f"{frames[0]}-{frames[1]}", "--stm", stm),
    ]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=scrubbed_environment(found.root),
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise EngineFailure(f"The engine's Python cannot be started: {error.strerror}.") from error
        _wait(process, aborted)
        said.seek(0)
        text = said.read().strip()
    if process.returncode != 0:
        raise EngineFailure(f"The bundle cannot be written: {_reason(text)}")
    return text.partition("\n")[0]


def _wait(process: subprocess.Popen[bytes], aborted: Aborted) -> None:
    while process.poll() is None:
        if aborted():
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise Stopped
        time.sleep(STEP_SECONDS)


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = " ".join(lines[-1:]) or "no reason given"
    return last[len(_PREFIX) :] if last.startswith(_PREFIX) else last
