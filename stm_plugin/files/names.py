"""Names of files that are valid text."""

from __future__ import annotations

from pathlib import Path

from stm_plugin.errors import SettingsError, StmError

_RENAME = "Rename the file or its folder."


def check_text(
    path: str | Path, what: str = "file", hint: str = _RENAME, error: type[StmError] = SettingsError
) -> None:
    """Refuse a name that is not UTF-8: OpenImageIO cannot open it, and no file of a shot can keep it.

    Args:
        what: whose name it is, for the message: "file", "output", "shot".

    Raises:
        StmError: of the kind `error`.
    """
    text = str(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as reason:
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        said = f"The {what}'s name is not valid text (UTF-8)."
        raise error(said, path=shown, hint=hint) from reason
