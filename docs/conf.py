"""How Sphinx builds this documentation: sphinx-build -W docs build/docs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import llama2cpp

HERE = Path(__file__).parent

# Sphinx reads only what is below this folder.
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)

project = "llama2cpp"
author = "the llama2cpp authors"
version = release = llama2cpp.__version__

extensions = ["myst_nb", "numpydoc", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = f"llama2cpp {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_heading_anchors = 3  # GitHub's anchors
myst_fence_as_directive = ["mermaid"]
nb_execution_mode = "off"  # notebooks are shown with the outputs that are stored in them, which tests check

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name the types
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False


def _as_sphinx_reads_it(
    _app: Sphinx, what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """Docstrings are read in terminals, too: what Sphinx wants otherwise is changed here."""
    # "<|im_end|>" would be a reference to a substitution.
    lines[:] = [re.sub(r'"<\|\w+\|>"', r"``\g<0>``", line) for line in lines]
    underlined = [i for i, line in enumerate(lines) if what == "module" and line and set(line) == {"-"}]
    for i in reversed(underlined):  # rubrics, as numpydoc makes of the headings of all but modules
        lines[i - 1 : i + 1] = [f".. rubric:: {lines[i - 1]}", ""]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _as_sphinx_reads_it)
