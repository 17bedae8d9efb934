"""``python -m segcft`` is ``segcft``; so is this file run as a script, which launchers do."""

import sys
from pathlib import Path

if not __package__:  # as a script: its folder must not hide modules of the standard library, such as statistics
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from segcft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
