"""Reports for people and CI: text, HTML, Markdown, KTAP, JUnit, `explain`, `diff`.

Everything here is made from results/ or from a stored report. Nothing reads the kernel.
"""
