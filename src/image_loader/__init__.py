"""image_loader: a list of image URLs becomes a directory of whole, current images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_loader.loader import load as load

__version__ = "2.0.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import ``load`` when it is first asked for: importing a module of the package stays cheap (PEP 562)."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from image_loader.loader import load

    return load
