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
        from stm_plugin.errors import was_interrupted
        from stm_plugin.exit_codes import ExitCode
    except ImportError as error:
        if os.environ.get("STM_DEBUG"):
            raise
        print(f"Error: A part of the program cannot be loaded: {error}. {_advice()}", file=sys.stderr)
        sys.exit(1)
    if not listens:
        command()
    sys.unraisablehook = _tell_unraisable
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except SystemExit:
        raise
    except BaseException as error:
        if not was_interrupted(error):
            raise
        sys.exit(int(ExitCode.INTERRUPTED))  # Ctrl-C once more, while the command said how it ended
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _tell_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """As Python does, but nothing of a Ctrl-C in a place that cannot pass it on: it will be pressed again."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _advice() -> str:
    found = [name for name in _LIBRARY_PATHS if os.environ.get(name)]
    if found:
        return f"{' and '.join(found)} may lead to other libraries: run it without."
    return "Run `python3 install.py --repair`."


if __name__ == "__main__":
    sys.argv[0] = "stm"
    main()
