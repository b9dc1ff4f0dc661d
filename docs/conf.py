"""How Sphinx makes a site of these pages: `tox -e docs`. Nothing is fetched from anywhere."""

from importlib.metadata import version as _version

project = "wendelin.core"
copyright = "the maintainers of wendelin.core"
version = release = _version("wendelin.core")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
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

# what is copied of ">>> x" and "$ x" is x, without what it prints
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_static_path = ["_static"]
html_extra_path = ["_extra"]  # 404.html: a server shows it for any missing page, so it stands alone
html_css_files = ["site.css"]
html_logo = html_favicon = "logo.svg"
html_title = f"wendelin.core {release}"
html_show_sphinx = False
html_copy_source = False
