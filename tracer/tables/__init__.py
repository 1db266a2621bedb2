"""BPF maps decoded: C layouts, the ledger, counters, parameters, windows, histograms.

A table turns bytes into values. It gives no verdict, and reads no kernel memory.
"""
