"""Configure the documentation: `sphinx-build -W docs build/docs`."""

project = "xqg-qdrant"
author = "the xqg-qdrant maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]

# Docstrings write names between single backquotes.
default_role = "code"

html_theme = "furo"
html_title = "xqg-qdrant"

myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_numpy_docstring = False
