"""``python -m image_loader``, and the console script ``loader``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command; return its exit status."""
    # While the modules are imported, an interruption ends the process at once, and without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from image_loader import loader

    return loader.main()


if __name__ == "__main__":
    sys.exit(main())
