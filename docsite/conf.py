"""The documentation as a site, by Sphinx: `make docs`. The order of the pages is in _toc.yml.

The pages are the repository's own, at the same paths, read by the parser that the daemon uses too.
"""

from __future__ import annotations

import tracer

project, release = "rmapd", tracer.__version__
html_title = f"rmapd {release}"
extensions = ["myst_parser", "sphinx_external_toc"]
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "dashboards/README.md",
    "docs/**",
]
external_toc_path = "docsite/_toc.yml"
myst_heading_anchors = 4
highlight_language = "none"
smartquotes = False
html_theme = "furo"
html_static_path = html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False
