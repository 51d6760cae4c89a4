"""`python -I -m stm_plugin` is the `stm` command; the launcher calls it so."""

import sys

from stm_plugin.cli import main

if __name__ == "__main__":
    sys.argv[0] = "stm"
    main()
