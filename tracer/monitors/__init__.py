"""The invariants: one module per family, found by discovery. None imports bcc, the loader or the metrics."""
