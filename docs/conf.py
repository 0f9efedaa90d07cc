"""How Sphinx builds this documentation: sphinx-build -W docs build/docs."""

from __future__ import annotations

import shutil
from pathlib import Path

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

myst_heading_anchors = 3  # GitHub's anchors
myst_fence_as_directive = ["mermaid"]
nb_execution_mode = "off"  # notebooks are shown with the outputs that are stored in them, which tests check

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name the types
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False
