"""How Sphinx builds the documentation: ``sphinx-build -W docs docs/_build``, with the package installed."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

from image_loader import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "image_loader"
author = "The image_loader authors"
copyright = "2026, The image_loader authors"  # noqa: A001  # the name that Sphinx looks for
version = release = __version__

extensions = ["sphinx.ext.autodoc", "from_settings"]
exclude_patterns = ["_build"]
autodoc_typehints = "description"
nitpicky = True  # What is referred to has to exist,
nitpick_ignore = [("py:class", "Path")]  # but for a signature's short name of pathlib's class.
# "--" in a text is that of an option.
smartquotes = False

html_theme = "alabaster"
html_sidebars = {"**": ["about.html", "localtoc.html", "navigation.html", "searchbox.html"]}


def setup(app: Sphinx) -> None:
    """Find the pictures of the README, which names them from where it stands."""
    app.connect("include-read", _from_here)


def _from_here(_app: Sphinx, _path: Path, _parent: str, content: list[str]) -> None:
    content[0] = content[0].replace(".. image:: docs/", ".. image:: ")
