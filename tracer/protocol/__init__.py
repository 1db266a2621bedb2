"""Protocols: what one window did with locks and interval trees, in order.

model.py has the classes, codec.py the bytes of the kernel's table, text.py the notation. Whether a
protocol violates a rule is decided in invariants/.
"""
