"""Kernel memory read by value, on demand: page tables, VMAs, folios.

Reads take no lock and cause no fault. What a value means for an invariant belongs to invariants/.
"""
