"""How Sphinx makes a site of these pages: `tox -e docs`. Nothing is fetched from anywhere."""

from importlib.metadata import version as _version

project = "wendelin.core"
copyright = "the maintainers of wendelin.core"
version = release = _version("wendelin.core")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # `x` in docstrings

myst_heading_anchors = 3  # links to headings, checked

autoclass_content = "class"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Methods to define", "params_style")]

html_theme = "furo"
html_title = f"wendelin.core {release}"
html_show_sphinx = False
html_copy_source = False
