"""The `stm` command as `python -I -m stm_plugin`, which is how the launcher starts it."""

import os
import signal
import sys

_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES")


def main() -> None:
    """Start the command; where its parts cannot be loaded, say what may be the cause.

    Before the command begins and after it has ended, Ctrl-C ends the process at once: everything that is
    finished is on disk, and there is nothing to say.
    """
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else its caller ignores it
    if listens:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from stm_plugin.cli import main as command
    except ImportError as error:
        if os.environ.get("STM_DEBUG"):
            raise
        print(f"Error: A part of the program cannot be loaded: {error}. {_advice()}", file=sys.stderr)
        sys.exit(1)
    if not listens:
        command()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except KeyboardInterrupt:  # once more, while the command said how it ended
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _advice() -> str:
    found = [name for name in _LIBRARY_PATHS if os.environ.get(name)]
    if found:
        return f"{' and '.join(found)} may lead to other libraries: run it without."
    return "Run `python3 install.py --repair`."


if __name__ == "__main__":
    sys.argv[0] = "stm"
    main()
