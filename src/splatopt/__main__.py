"""``python -m splatopt`` is the command ``splatopt``."""

from __future__ import annotations

import sys

from splatopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
