"""`python -m lorasp` is the command `lorasp`."""

import sys

from lorasp.cli import main

if __name__ == "__main__":
    sys.exit(main())
