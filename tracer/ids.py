"""Ids that a user types: in any case, and with a suggestion where there is no such id.

An invariant's id is a letter and a number (`M1`), a violation's id begins with it (`L1-3f…`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from tracer.errors import RmapdError

_MOST = 3
LIST_COMMAND = "rmapd explain --list"


def canonical(text: str) -> str:
    """Return an id as rmapd writes it: the letter in capitals, a violation's digits in small."""
    invariant, dash, digits = text.strip().partition("-")
    return invariant.upper() + dash + digits.lower()


def all_canonical(texts: Iterable[str]) -> list[str]:
    """Return ids as rmapd writes them, each once, in their order."""
    return list(dict.fromkeys(map(canonical, texts)))


def similar(text: str, known: Collection[str]) -> list[str]:
    """Return at most three known ids that are similar to a text, the most similar first.

    known: ids, or a mapping of ids to titles; where no id is similar, a title may have the text.
    """
    found = difflib.get_close_matches(canonical(text), known, _MOST, cutoff=0.5)
    if not found and isinstance(known, Mapping) and text.strip():
        part = text.strip().casefold()
        found = [id for id, title in known.items() if part in title.casefold()]
    return found[:_MOST]


def unknown(
    what: str,
    ids: Iterable[str],
    known: Collection[str],
    lacks: str = "no invariant",
    hint: str = LIST_COMMAND,
) -> RmapdError:
    """Return the error for invariants that do not exist, with the ids that are similar.

    what: the action that fails; empty: to name an invariant. known: as in similar(). lacks: what
    does not have them, before their names.
    """
    wrong = list(ids)
    near = list(dict.fromkeys(one for id in wrong for one in similar(id, known)))
    missing = f"{lacks} {', '.join(wrong)}"
    question = f"did you mean {_alternatives(near)}?" if near else ""
    if not what:
        return RmapdError(missing, why=question, hint=hint)
    return RmapdError(what, why=": ".join(filter(None, (missing, question))), hint=hint)


def _alternatives(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
