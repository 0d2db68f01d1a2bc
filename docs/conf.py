"""How the documentation is built: `make docs`."""

from atomhub import __version__

project = "atomhub"
author = "the atomhub authors"
copyright = "the atomhub authors, Apache-2.0"
release = __version__
extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without the network
]  # fmt: skip
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
smartquotes = False  # two dashes are an option
# notebooks keep no output: they are run anew, and one that fails fails the build
nb_execution_mode = "force"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "atomhub"
copybutton_exclude = ".linenos, .gp, .go"
