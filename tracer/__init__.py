"""rmapd: watches a live kernel keep, or break, the promises of its reverse map."""

__version__ = "0.1.0"
