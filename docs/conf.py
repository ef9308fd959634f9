"""How the pages of `docs/` become a site: `make docs`. Everything that a page needs is in the
repository, so that the built pages can be read without a network.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import vitattn_moe  # noqa: E402

project = "vitattn-moe"
author = "the authors of vitattn-moe"
copyright = "the authors of vitattn-moe, Apache-2.0"
version = release = vitattn_moe.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "generated_tables",
    "notebook_pages",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
suppress_warnings = [
    "misc.highlighting_failure",  # output of commands is no program
    "ref.python",  # both families have a LoadedModel
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

default_role = "literal"  # what docstrings have in single backquotes
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

smartquotes = False  # flags keep their two hyphens

html_theme = "furo"
html_title = "vitattn-moe"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
