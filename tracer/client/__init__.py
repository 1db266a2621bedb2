"""Clients of a running daemon, over its HTTP API: `rmapd status`, `events` and `top`.

They work from any machine, need no privilege and change nothing. What the API answers is decided in
results/ and served by web/. This package asks, and shows it on a terminal.
"""
