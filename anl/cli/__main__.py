"""`python -m anl.cli`, for launchers of several processes."""

import sys

from anl.cli import main

if __name__ == "__main__":  # not in the processes that a training spawns
    sys.exit(main())
