"""Reports for people and CI: text, HTML, Markdown, KTAP, JUnit, `explain` and `diff`.

Modules here format values of results/, or of a stored report that load.py reads. They never read
the kernel, and they decide no verdict.
"""
