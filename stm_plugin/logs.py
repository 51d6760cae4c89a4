"""Logs of the engine and of commands: levels, several files in turn, and JSON lines on request.

The configuration says level and form (`log_level`, `log_format`); `STM_LOG_LEVEL` and `STM_LOG` (`text`,
`json`) say it for one process, where no lock forbids that. With `STM_LOG=json` a command writes its events to
standard error as JSON lines, too, instead of words and bars.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

from stm_plugin.configuration import FOLDER_NAME, OPTIONS, Configuration, configuration
from stm_plugin.errors import SettingsError

FORM_VARIABLE: Final = "STM_LOG"
LEVEL_VARIABLE: Final = "STM_LOG_LEVEL"
FOLDER_VARIABLE: Final = "STM_LOG_FOLDER"
COMMAND_LOG: Final = "stm.log"
JSON: Final = "json"
DEBUG, WARNING, ERROR = logging.DEBUG, logging.WARNING, logging.ERROR

MOST_BYTES: Final = 4 << 20
OLDER_FILES: Final = 3
"""Beside the present file: NAME.1 is the newest of them."""

ROOT: Final = "stm"
"""The logger of which all others of this product are children."""

_TEXT = "%(asctime)s %(levelname)s %(message)s"
_FIELDS = "fields"


_handlers: list[logging.Handler] = []
"""Those of `start_log`."""


def event(logger: logging.Logger, name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its values: a JSON line has each by name, a line of text has them behind the name."""
    if logger.isEnabledFor(level):
        words = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
        logger.log(level, "%s", f"{name} {words}".strip(), extra={_FIELDS: {"event": name, **fields}})


def log_folder() -> Path:
    """Where commands keep their logs; it need not be there."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    from platformdirs import user_log_path

    return user_log_path(FOLDER_NAME, appauthor=False)


def log_files(folder: Path, name: str) -> list[Path]:
    """The existing logs of that name, the present one first."""
    names = [name, *(f"{name}.{number}" for number in range(1, OLDER_FILES + 1))]
    return [folder / one for one in names if (folder / one).is_file()]


def wants_json_lines() -> bool:
    """Whether a command is asked for JSON lines on standard error."""
    return os.environ.get(FORM_VARIABLE) == JSON


def start_log(file: Path | None, stream: TextIO | None = None) -> None:
    """Send what is logged to a file, which is the user's alone, and to a stream. It replaces an earlier call.

    A file that cannot be written is done without: a log never stops the work.
    """
    layers = _layers()
    form, level = _chosen(layers, "log_format", FORM_VARIABLE), _chosen(layers, "log_level", LEVEL_VARIABLE)
    handlers: list[logging.Handler] = [] if stream is None else [logging.StreamHandler(stream)]
    if file is not None:
        with contextlib.suppress(OSError):
            handlers.append(_private_files(file))
    root = logging.getLogger(ROOT)
    for old in _handlers:
        root.removeHandler(old)
        old.close()
    _handlers[:] = handlers
    for handler in handlers:
        handler.setFormatter(JsonLines() if form == JSON else logging.Formatter(_TEXT))
        root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


def start_command_log() -> logging.Logger:
    """The logger of a command, with its file, and its lines on standard error if they are asked for."""
    logger = logging.getLogger(f"{ROOT}.command")
    if not _handlers:
        folder = log_folder()
        file = folder / COMMAND_LOG if folder.is_absolute() else None  # a user without a home has no log
        with contextlib.suppress(OSError):
            if file is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        start_log(file, sys.stderr if wants_json_lines() else None)
        event(logger, "command", arguments=sys.argv[1:])
    return logger


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, process, message, the event and its values."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _private_files(file: Path) -> logging.Handler:
    """Files in turn that only their user reads; a link in their place is taken away first. OSError."""
    from logging.handlers import RotatingFileHandler

    class PrivateFiles(RotatingFileHandler):
        def _open(self) -> Any:
            stream = super()._open()
            with contextlib.suppress(OSError):
                os.chmod(self.baseFilename, 0o600)
            return stream

        def handleError(self, record: logging.LogRecord) -> None:
            """A full disk, for instance: the work goes on without the line."""

    if file.is_symlink():
        file.unlink()
    return PrivateFiles(
        file, maxBytes=MOST_BYTES, backupCount=OLDER_FILES, encoding="utf-8", errors="backslashreplace"
    )


def _layers() -> Configuration:
    """The configuration; the built-in one where a file is wrong, which is said elsewhere."""
    try:
        return configuration()
    except SettingsError:
        return Configuration()


def _chosen(layers: Configuration, name: str, variable: str) -> str:
    """What the configuration says, or the variable, where that is no nonsense and nothing is locked."""
    asked = os.environ.get(variable, "").lower()
    if layers.values[name].lock is None and asked in OPTIONS[name].choices:
        return asked
    return str(layers[name])
