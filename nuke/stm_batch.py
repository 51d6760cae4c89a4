"""Makes the mattes of a comp without a window:

    nuke -t stm_batch.py --script shot.nk --node STM1 --frames=1001-1100
    nuke -t stm_batch.py --script a.nk --script b.nk --json results.json --write Out
    nuke -t stm_batch.py --script shot.nk --farm-bundle /jobs/shot --stm /tools/stm/bin/stm

Write --frames= as one word: Nuke itself reads a last argument that is a bare number or range.

Without --node all STM nodes of a script are done. After an error the other nodes are still done. A table
shows the result of each, and --json FILE writes the results: {"results": [{"script", "node", "view", "first",
"last", "ready", "mattes", "baked", "bundle", "seconds", "error", "exit_code"}, ...]}. The exit code is that
of the first error.

--farm-bundle makes no mattes: it writes a job bundle for a farm, into a folder or into the node's cache.

Progress goes to standard output as `Frame 1013 (12 of 53)` and `Progress: 22%`. Exit codes: 0 done, 1 failed,
2 bad arguments, 3 the script, 4 no such node, 5 keyframes, 6 plate, 7 engine, 8 stopped, 9 cache; 100 is
Nuke's code for a missing licence.
"""

import sys

if sys.version_info < (3, 9):  # noqa: UP036 - Nuke 13 has an older one
    sys.stderr.write("Error: STM for Nuke needs Nuke 14.0 or newer.\n")
    sys.exit(2)

import os

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from stm_nuke.commandline import main

if __name__ == "__main__":
    sys.exit(main())
