"""Protocols that violate one invariant each, in any number of variants."""

from __future__ import annotations

from tests.support.native import LAYOUTS
from tracer.protocol.codec import Encoding
from tracer.protocol.text import parse

ENCODING = Encoding(LAYOUTS)
VIOLATING = {
    "L1": "vma_expand[file anon mmap:w]  {} anon↓w i_mmap↓w i_mmap↑w anon↑w",
    "L3": "do_brk_flags[anon mmap:w] -ENOMEM  {} anon↓w anon- → [mmap:w anon:w]",
    "L4": "unlink_anon_vmas[anon]  {} anon-(-)",
    "L5": (
        "vma_expand[anon=imported moved mmap:w ok follows]  {} anon_vma_clone() commit(mmap:w"
        " anon:-)"
    ),
    "L6": "rmap_walk_anon[folio:locked try_to_migrate]  {} visit(-)",
    "V1": "vma_expand[anon=imported moved mmap:w geometry=overlap]  {} commit_merge()",
    "V2": "do_brk_flags[anon moved mmap:w ok]  {} anon↓w commit(mmap:w anon:w) anon↑w",
    "V5": "copy_vma[anon mmap:w ok follows=missing]  {}",
    "V6": "move_vma[anon mmap:w kept=uffd]  {}",
}
_PAIRS = ("other↓r other↑r", "other↓w other↑w", "other↓rk other↑r", "other↓wk other↑w")


def variant(line: str, number: int) -> bytes:
    """Return the key of one of 256 variants of this protocol.

    Each takes and releases locks of no known class first, in an order that folding keeps distinct.
    """
    digits = [number >> 2 * n & 3 for n in range(4)]
    return ENCODING.encode(parse(line.format(" ".join(_PAIRS[digit] for digit in digits))))
