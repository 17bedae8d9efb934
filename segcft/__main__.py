"""``python -m segcft`` is ``segcft``."""

import sys

from segcft.cli import main

if __name__ == "__main__":
    sys.exit(main())
