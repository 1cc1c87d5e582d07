"""Sphinx's settings. `python -m sphinx -W docs build/docs` builds the site."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the modules beside this file

project = "onepass"
version = release = installed_version("onepass")
html_title = f"onepass {version}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_docstrings",
    "sphinx_mathml",
    "sphinx_pages",
    "sphinx_pictures",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # a name in single backticks links where there is something to link to

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_mock_imports = ["thinc"]  # what a page is about, where it is not installed
autodoc_typehints = "none"  # the docstrings say more
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Code and commands, and not what they print.
_copied = ("bash", "bibtex", "c", "cmake", "console", "cpp", "python")
copybutton_selector = ", ".join(f"div.highlight-{language} pre" for language in _copied)

html_math_renderer = "mathml"
html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
toc_object_entries_show_parents = "hide"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["onepass.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
