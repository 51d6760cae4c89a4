"""`python -m stm_plugin.demo --out DIR`: builds a plate with a known matte, and makes its mattes."""

import sys

from stm_plugin.demo.demo import main

if __name__ == "__main__":
    sys.exit(main())
