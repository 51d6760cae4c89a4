"""The `stm` command as `python -I -m stm_plugin`, which is how the launcher starts it."""

import sys

from stm_plugin.cli import main

if __name__ == "__main__":
    sys.argv[0] = "stm"
    main()
