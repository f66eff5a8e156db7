"""``python -m image_loader``, and the console script ``loader``."""

from __future__ import annotations

import gc
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command, and end the process with its exit status."""
    # While the modules are imported, an interruption ends the process at once, and without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # No search for garbage while modules are imported: it finds none, and takes a twentieth of the start.
    gc.disable()
    from image_loader import loader

    loader.main()


if __name__ == "__main__":
    main()
