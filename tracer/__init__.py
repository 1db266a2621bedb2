"""rmapd: checks at run time that the Linux kernel keeps the rules of its reverse map."""

__version__ = "0.1.0"
