"""Settings of the documentation site; ``make docs`` builds it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import inrfast

project = "inrfast"
author = "The inrfast authors"
copyright = author
version = release = inrfast.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "benchmarks",
    "mathml",
    "outside",
    "references",
]
exclude_patterns = ["_build", "jupyter_execute"]
nitpicky = True
# Types of other packages have no page here, and their inventories are not fetched: the build needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(?!inrfast).*")]

autodoc_typehints = "none"  # the docstrings give shapes and units, which types do not
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
viewcode_line_numbers = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 4
# Words of attribute lists are no references; a name such as ``seconds`` has many homes.
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]
nb_execution_mode = os.environ.get("INRFAST_DOCS_NOTEBOOKS", "force")  # "off": pages without the notebooks' pictures
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"inrfast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7fb2ea", "color-brand-content": "#7fb2ea"},
}
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
linkcheck_timeout = 20
linkcheck_retries = 2
