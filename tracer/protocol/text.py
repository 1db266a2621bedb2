"""The notation of protocols in logs, reports and tests; docs/PROTOCOLS.md explains it to users.

    vma_expand[file anon mmap:w]  i_mmap↓w anon↓w anon- file- commit(mmap:w i_mmap:w anon:w) file+
    anon+ anon↑w i_mmap↑w
    do_brk_flags[anon mmap:w] -ENOMEM  anon↓w anon- → [mmap:w anon:w]

Head: the window, and its context in brackets. `anon=imported`: the anon_vma was taken from a
neighbour in this window. `mmap:w`, `i_mmap:r`: lock states at entry, without free ones.
`moved`: a boundary changed. `rebuilt`: the window is derived from the hooks around it. `ok`: the
geometry holds, `geometry=…`: what is wrong with it. `follows`: the anon_vma followed its pages,
`follows=…`: it did not. `kept`: a merge, split or move changed nothing else, `kept=…`: what it did
change. A walk has the name of its walker, or `other_walker`. Then the error: the
name of an errno, or -NULL for NULL and false.

Steps: `anon↓w`, `anon↓wk` (killable), `anon↓r?` (trylock), `anon↑w`, `mmap⇓` (downgrade). `file-`,
`anon+`: removal from and insertion into a tree with its lock held for write, otherwise with the
owner, as in `anon+(r)`, `(x)`, `(-)`, or `(new)` if no other task can reach the tree. `commit(…)`,
`visit(r)`. `anon_vma_clone()`: an inner window. `{…}*`: repeated two or more times. `?`: an event
was lost. `…`: the rest did not fit.

A trailing `→ […]` has the lock states at return, if they differ from those at entry. ASCII form:
lock(anon:w) lock(anon:w killable) trylock(anon:r) unlock(anon:w) downgrade(mmap) ... -> [...].
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

from tracer.errors import RmapdError
from tracer.protocol.model import (
    FLAGS,
    NULL,
    Call,
    Commit,
    Context,
    Follows,
    Geometry,
    Group,
    Held,
    Kept,
    Kind,
    Lock,
    Locking,
    Lost,
    Overlong,
    Owner,
    Part,
    Protocol,
    Step,
    Tree,
    TreeStep,
    Visit,
    Walker,
    joined,
)

ACQUIRED, RELEASED = "↓", "↑"
"""The arrow in each step that acquires a lock, and in each that releases one."""
_ARROWS = {
    Kind.DOWN_READ: f"{ACQUIRED}r",
    Kind.DOWN_WRITE: f"{ACQUIRED}w",
    Kind.DOWN_READ_KILLABLE: f"{ACQUIRED}rk",
    Kind.DOWN_WRITE_KILLABLE: f"{ACQUIRED}wk",
    Kind.DOWN_READ_TRYLOCK: f"{ACQUIRED}r?",
    Kind.DOWN_WRITE_TRYLOCK: f"{ACQUIRED}w?",
    Kind.UP_READ: f"{RELEASED}r",
    Kind.UP_WRITE: f"{RELEASED}w",
    Kind.DOWNGRADE_WRITE: "⇓",
}
_ASCII = {
    Kind.DOWN_READ: "lock({}:r)",
    Kind.DOWN_WRITE: "lock({}:w)",
    Kind.DOWN_READ_KILLABLE: "lock({}:r killable)",
    Kind.DOWN_WRITE_KILLABLE: "lock({}:w killable)",
    Kind.DOWN_READ_TRYLOCK: "trylock({}:r)",
    Kind.DOWN_WRITE_TRYLOCK: "trylock({}:w)",
    Kind.UP_READ: "unlock({}:r)",
    Kind.UP_WRITE: "unlock({}:w)",
    Kind.DOWNGRADE_WRITE: "downgrade({})",
}
_FLAG_WORDS = {
    name: {"imported": "anon=imported", "folio_locked": "folio:locked"}.get(name, name)
    for name in FLAGS
}
_GEOMETRY_WORDS = {each: f"geometry={each}" for each in Geometry} | {
    Geometry.NONE: "",
    Geometry.HOLDS: "ok",
}
_FOLLOWS_WORDS = {each: f"follows={each}" for each in Follows} | {
    Follows.NONE: "",
    Follows.HOLDS: "follows",
}
_KEPT_WORDS = {each: f"kept={each}" for each in Kept} | {Kept.NONE: "", Kept.HOLDS: "kept"}
_WALKER_WORDS = {each: str(each) for each in Walker} | {
    Walker.NONE: "",
    Walker.OTHER: "other_walker",
}
_HELD_NAMES = tuple(each.name for each in fields(Held))


def text(protocol: Protocol, *, ascii: bool = False) -> str:
    """Return the protocol in one line."""
    head, steps = parts(protocol, ascii=ascii)
    error = f" -{_error_name(protocol.error)}" if protocol.error else ""
    return f"{protocol.window}[{' '.join(head)}]{error}  {steps}".rstrip()


def parts(protocol: Protocol, *, ascii: bool = False) -> tuple[list[str], str]:
    """Return the words of the context, and the steps with the lock states at return."""
    context = protocol.context
    head = [word for name, word in _FLAG_WORDS.items() if getattr(context, name)]
    head += [
        _WALKER_WORDS[context.walker],
        _states(context.entry),
        _GEOMETRY_WORDS[context.geometry],
        _FOLLOWS_WORDS[context.follows],
        _KEPT_WORDS[context.kept],
    ]
    steps = " ".join(words(protocol.steps, ascii=ascii))
    if context.exit != context.entry:
        steps += f" {'->' if ascii else '→'} [{_states(context.exit)}]"
    return " ".join(head).split(), steps.strip()


def words(steps: Iterable[Step], *, ascii: bool = False) -> list[str]:
    """Return the text of each step."""
    return [_step(step, ascii) for step in steps]


def _states(held: Held) -> str:
    return " ".join(f"{lock}:{owner}" for lock, owner in held.items() if owner is not Owner.FREE)


def _error_name(error: int) -> str:
    return "NULL" if error == NULL else errno.errorcode.get(error, str(error))


def _step(step: Step, ascii: bool) -> str:
    match step:
        case Locking(lock, kind):
            return _ASCII[kind].format(lock) if ascii else f"{lock}{_ARROWS[kind]}"
        case TreeStep(tree, enters, owner):
            state = "" if owner is Owner.SELF else f"({owner or 'new'})"
            return f"{tree}{'+' if enters else '-'}{state}"
        case Commit(parts):
            return f"commit({' '.join(f'{part}:{owner}' for part, owner in parts)})"
        case Visit(owner):
            return f"visit({owner})"
        case Call(window):
            return f"{window}()"
        case Lost():
            return "?"
        case Overlong():
            return "..." if ascii else "…"
        case Group(steps):
            return f"{{{' '.join(words(steps, ascii=ascii))}}}*"


_LINE = re.compile(
    r"\s*(\w+)(?:\[([^\[\]]*)\])?(?:\s+-(\w+)(?=\s|$))?(.*?)(?:(?:→|->)\s*\[([^\[\]]*)\])?\s*", re.S
)
_TOKEN = re.compile(r"\s*(\{|\}\*|[^\s{}()\[\]]+(?:\([^()]*\))?)")


def parse(line: str) -> Protocol:
    """Parse a protocol in either form; RmapdError names the part that is invalid."""
    matched = _LINE.fullmatch(line)
    if not matched:
        raise _bad(line, "it does not begin with a window and its [context]")
    window, words, error, steps, leaving = matched.groups()
    context = _context(line, words or "")
    context = replace(
        context, exit=context.entry if leaving is None else _held(line, leaving.split())
    )
    return Protocol(window, context, _error(line, error), _steps(line, steps))


def _bad(line: str, why: str) -> RmapdError:
    return RmapdError(
        f"cannot read the protocol {line.strip()!r}", why=why, hint="see docs/PROTOCOLS.md"
    )


_WORDS: dict[str, dict[str, Any]] = (
    {word: {name: True} for name, word in _FLAG_WORDS.items()}
    | {word: {"geometry": each} for each, word in _GEOMETRY_WORDS.items() if word}
    | {word: {"follows": each} for each, word in _FOLLOWS_WORDS.items() if word}
    | {word: {"kept": each} for each, word in _KEPT_WORDS.items() if word}
    | {word: {"walker": each} for each, word in _WALKER_WORDS.items() if word}
)


def _context(line: str, words: str) -> Context:
    known, states = dict[str, Any](), []
    for word in words.split():
        if word in _WORDS:
            known |= _WORDS[word]
        else:
            states.append(word)
    return Context(**known, entry=_held(line, states))


def _held(line: str, words: list[str]) -> Held:
    states = {}
    for word in words:
        name, _, state = word.partition(":")
        if name not in _HELD_NAMES or state not in tuple(Owner):
            raise _bad(line, f"the context has no word {word!r}")
        states[name] = Owner(state)
    return Held(**states)


def _error(line: str, name: str | None) -> int:
    if name is None:
        return 0
    if name == "NULL":
        return NULL
    found = (
        getattr(errno, name, None)
        if name.isidentifier() and name.startswith("E")
        else int(name)
        if name.isdecimal()
        else None
    )
    if not isinstance(found, int) or not 0 < found < NULL:
        raise _bad(line, f"there is no error {name!r}")
    return found


def _tokens(line: str, steps: str) -> Iterator[str]:
    at, end = 0, len(steps.rstrip())
    while at < end:
        matched = _TOKEN.match(steps, at, end)
        if not matched:
            raise _bad(line, f"at {steps[at:].strip()!r}")
        at = matched.end()
        yield matched[1]


def _steps(line: str, steps: str) -> tuple[Step, ...]:
    open_groups: list[list[Step]] = [[]]
    for word in _tokens(line, steps):
        if word == "{":
            open_groups.append([])
        elif word == "}*":
            inner = open_groups.pop()
            if not open_groups or not inner:
                raise _bad(line, "a }* without a {, or without steps between them")
            open_groups[-1].append(Group(joined(inner)))
        else:
            open_groups[-1].append(_one(line, word))
    if len(open_groups) > 1:
        raise _bad(line, "a { without a }*")
    return joined(open_groups[0])


_MARKS: dict[str, Step] = {"?": Lost(), "…": Overlong(), "...": Overlong()}
_SIMPLE: dict[str, Step] = (
    _MARKS
    | {f"{lock}{arrow}": Locking(lock, kind) for lock in Lock for kind, arrow in _ARROWS.items()}
    | {form.format(lock): Locking(lock, kind) for lock in Lock for kind, form in _ASCII.items()}
    | {f"{tree}{sign}": TreeStep(tree, sign == "+", Owner.SELF) for tree in Tree for sign in "+-"}
    | {f"{tree}{sign}(new)": TreeStep(tree, sign == "+", None) for tree in Tree for sign in "+-"}
    | {
        f"{tree}{sign}({owner})": TreeStep(tree, sign == "+", owner)
        for tree in Tree
        for sign in "+-"
        for owner in Owner
    }
    | {f"visit({owner})": Visit(owner) for owner in Owner}
)


def _one(line: str, word: str) -> Step:
    step = _SIMPLE.get(re.sub(r"\s+", " ", word))
    if step:
        return step
    if re.fullmatch(r"\w+\(\)", word) and word != "commit()":
        return Call(word[:-2])
    if word.startswith("commit("):
        return Commit(_parts(line, word))
    raise _bad(line, f"there is no step {word!r}")


def _parts(line: str, word: str) -> tuple[tuple[Part, Owner], ...]:
    parts: list[tuple[Part, Owner]] = []
    for part in word[len("commit(") : -1].split():
        name, _, state = part.partition(":")
        if name not in tuple(Part) or state not in tuple(Owner):
            raise _bad(line, f"a commit has no part {part!r}")
        parts.append((Part(name), Owner(state)))
    order = [tuple(Part).index(each) for each, _ in parts]
    if not parts or order != sorted(set(order)):
        raise _bad(
            line,
            f"the parts of {word!r} must be some of {' '.join(Part)}, each once, in this order",
        )
    return tuple(parts)
