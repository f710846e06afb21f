"""The documentation as a site, by Sphinx and MyST; `scripts/docs` builds it from the Markdown pages where they lie.

Sphinx rather than MkDocs: pages outside of docs/ (the README, the measured results) are pages of the site without being
copied, a link to a heading that is not there is an error, and all three packages are well kept.
"""

from __future__ import annotations

project = "trtforge"
extensions = ["myst_parser"]
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "benchmarks/results/*.md"]
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
html_theme = "furo"
html_title = "trtforge"
html_copy_source = False
html_show_copyright = False
