"""Outputs of a running daemon: Prometheus metrics, the log of findings, the store, OTLP.

Modules here send values of results/ elsewhere and decide no verdict. Texts and pages for people
belong to report/ and web/.
"""
