"""Sphinx configuration. Build: ``python -m sphinx -W -b html docs OUT``."""

import os
import pathlib
import sys

# For the notebooks' kernels, too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

import blackjax_smile

project = "blackjax_smile"
author = copyright = "The blackjax_smile developers"
version = release = blackjax_smile.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "docstring_sections",
    "linked_folders",
    "public_names",
]
root_doc = "index"
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "**/.jupyter_cache"]

# No intersphinx: the build needs no network.
default_role = "py:obj"
autodoc_typehints = "none"  # docstrings say it shorter than unions of trees
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

#: Modules whose ``__all__`` must be in the reference, with docstrings.
public_modules = [
    "blackjax_smile",
    "blackjax_smile.evaluation",
    "blackjax_smile.function_space",
    "blackjax_smile.interop",
    "blackjax_smile.plots",
    "blackjax_smile.preconditioners",
    "blackjax_smile.prediction",
]
#: Further public names, of modules whose other names stand elsewhere.
public_names = ["blackjax_smile.ensemble.REASONS"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# The notebooks run in every build; an error, a slow cell or a warning stops it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_output_stderr = "warn"
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "blackjax_smile"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_exclude = ".linenos, .gp, .go"
