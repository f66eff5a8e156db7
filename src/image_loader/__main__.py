"""``python -m image_loader``: the command, started as a module."""

from __future__ import annotations

import sys

from image_loader.loader import main

if __name__ == "__main__":
    sys.exit(main())
