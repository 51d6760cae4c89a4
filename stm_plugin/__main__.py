"""The `stm` command as `python -I -m stm_plugin`, which is how the launcher starts it."""

import os
import sys

_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES")


def main() -> None:
    """Start the command; where its parts cannot be loaded, say what may be the cause."""
    try:
        from stm_plugin.cli import main as command
    except ImportError as error:
        if os.environ.get("STM_DEBUG"):
            raise
        print(f"Error: A part of the program cannot be loaded: {error}. {_advice()}", file=sys.stderr)
        sys.exit(1)
    command()


def _advice() -> str:
    found = [name for name in _LIBRARY_PATHS if os.environ.get(name)]
    if found:
        return f"{' and '.join(found)} may lead to other libraries: run it without."
    return "Run `python3 install.py --repair`."


if __name__ == "__main__":
    sys.argv[0] = "stm"
    main()
