"""The configuration of Sphinx: ``nox -s docs`` builds the documentation."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from trio_wsstream._version import VERSION  # noqa: E402

project = "trio-wsstream"
author = "the authors of trio-wsstream"
copyright = author
version = release = VERSION

extensions = ["diagrams", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True  # A reference to a name of this library that does not exist is an error.
nitpick_ignore_regex = [
    # The documentation of other packages is not linked, because the build needs no network.
    (r"py:.*", r"(?!trio_wsstream).*"),
    # The reference has this class under its public name; type aliases name it by its module.
    (r"py:class", r"trio_wsstream\._handshake\.WsRequest"),
]
default_role = "py:obj"
highlight_language = "python"
smartquotes = False  # Options such as --help keep their hyphens.

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # Attributes are listed with their class, and not a second time.

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False


def show_private_constants(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show the value of a default such as ``_MAX_PENDING``, whose name readers do not know."""
    if not signature:
        return None
    function = obj.__init__ if isinstance(obj, type) else obj
    names = getattr(function, "__globals__", {})
    return re.sub(r"(?<== )_[A-Z_]+\b", lambda found: repr(names[found[0]]), signature), returns


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", show_private_constants)
