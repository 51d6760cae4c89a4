"""`python -m stm_plugin.server`: hosts start the engine with it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback

from stm_plugin.errors import StmError
from stm_plugin.server.main import serve
from stm_plugin.server.options import DEFAULT_IDLE_SECONDS, ServeOptions
from stm_plugin.server.runtime import EngineRunningError


def main(arguments: list[str] | None = None) -> int:
    """Serve; returns 0 at the end or if another engine runs already, 1 on an error."""
    parser = argparse.ArgumentParser(prog="stm_plugin.server", description="The engine of STM for Nuke.")
    parser.add_argument("--parent", type=int, help="end when this process has gone")
    parser.add_argument("--idle", type=float, default=DEFAULT_IDLE_SECONDS, help="seconds without a client")
    parser.add_argument("--foreground", action="store_true", help="log to standard error")
    given = parser.parse_args(arguments)
    try:
        serve(ServeOptions(given.idle, given.parent, to_log=not given.foreground))
    except EngineRunningError:
        return 0
    except StmError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:
        logging.getLogger("stm.server").exception("the engine failed")
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)  # everything is on disk: threads that still load or compute must not delay the end
