"""What one window did with locks and trees, in order: the model, its bytes, its text.

Whether a protocol breaks a rule belongs to invariants/.
"""
