"""`python -m dopd` is the command `dopd`."""

import sys

from dopd.cli import main

if __name__ == "__main__":
    sys.exit(main())
