"""``python -m trio_wsstream``: the same as ``trio-wsstream``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
