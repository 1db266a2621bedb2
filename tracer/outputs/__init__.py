"""Where a running daemon sends what it finds: metrics, the log, the store, OTLP.

Texts and pages for readers of a finished run belong to report/ and web/.
"""
