"""`stm doctor --report`: one zip with the facts that a supporter needs, and no picture."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import time
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

from stm_plugin.installation.doctor import doctor, status_of
from stm_plugin.installation.prefix import InstallationError, Prefix

MOST_LOG_BYTES = 1 << 20
"""Of the end of each log."""
MOST_ERRORS = 50

_VARIABLES = ("STM_", "OCIO", "NUKE_PATH", "OFX_PLUGIN_PATH", "CUDA_VISIBLE_DEVICES", "XDG_", "LANG", "LC_")
_NEVER = ("TOKEN", "SECRET", "PASSWORD", "KEY")

README = """\
This report was written by `stm doctor --report`. It holds text only: no picture, no mask, no weights.

doctor.txt          what of the installation is in order
information.json    versions, device, weights with their licences, OCIO config (`stm info --json`)
configuration.json  every value with the file and line that says it (`stm config --json`)
environment.json    system, Python, and the variables that this program heeds
errors.txt          the last errors of all logs
logs/               the ends of the logs of the engine, of commands and of the installer

In all of it the home folder is written as ~. Logs name the files that were worked on: read them before you
send this on.
"""


def write_report(prefix: Prefix, python: Path, file: Path) -> list[str]:
    """Write the zip; the names of what is in it.

    Args:
        python: that of the engine.

    Raises:
        InstallationError: the file cannot be written, or something else is there.
    """
    if file.exists() and not _is_report(file):
        raise InstallationError(f"{file} is another file and was not changed.", hint="Give another name.")
    texts = report_texts(prefix, python)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.getvalue())
    except OSError as error:
        raise InstallationError(f"{file} cannot be written: {error.strerror}.") from error
    return list(texts)


def report_texts(prefix: Prefix, python: Path) -> dict[str, str]:
    """What is in a report, by name."""
    with redirect_stdout(io.StringIO()) as said:
        doctor(prefix)
    information = _asked(python, "info", "--json")
    logs = {f"logs/{path.name}": _end_of(path) for path in _logs(information, prefix)}
    texts = {
        "README.txt": README,
        "doctor.txt": said.getvalue(),
        "information.json": information,
        "configuration.json": _asked(python, "config", "--json"),
        "environment.json": json.dumps(_environment(), indent=1),
        "errors.txt": "\n".join(_errors(logs)) or "There is no error in any log.",
        **logs,
    }
    return {name: without_home(text) for name, text in texts.items()}


def without_home(text: str) -> str:
    """A text in which the home folder is `~`."""
    home = os.path.expanduser("~")
    return text if home in ("~", os.sep) else text.replace(home, "~")


def _asked(python: Path, *words: str) -> str:
    """What `stm` says; its error in words where it ends with one."""
    status, said = status_of([python, *_isolated(), "-m", "stm_plugin", *words], keep=True)
    return said if status == 0 else json.dumps({"failed": words[0], "exit_code": status, "said": said})


def _isolated() -> list[str]:
    """A checkout is found by PYTHONPATH, an installation without it."""
    return ["-sP"] if os.environ.get("PYTHONPATH") else ["-I"]


def _logs(information: str, prefix: Prefix) -> list[Path]:
    """The logs that `stm info` names, and the installer's."""
    try:
        named = [Path(one) for one in json.loads(information).get("logs", [])]
    except ValueError:
        named = []
    return [path for path in (*named, prefix.log) if path.is_file()]


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MOST_LOG_BYTES))
        return file.read().decode("utf-8", "replace")


def _errors(logs: dict[str, str]) -> list[str]:
    """The last lines of logs that tell of errors."""
    found = [
        f"{name}: {line}"
        for name, text in logs.items()
        for line in text.splitlines()
        if " ERROR " in line or '"level": "error"' in line or line.startswith("Error:")
    ]
    return found[-MOST_ERRORS:]


def _environment() -> dict[str, object]:
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES) and not any(word in name for word in _NEVER)
    }
    return {
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "python": sys.version,
        "variables": variables,
    }


def _is_report(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.read("README.txt").decode("utf-8") == without_home(README)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return False
