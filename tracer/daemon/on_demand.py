"""Switches for hooks that are attached only while something needs them (levels.ON_DEMAND)."""

from __future__ import annotations

from collections.abc import Callable

from tracer.attach.attached import AttachedProbes
from tracer.daemon.levels import ON_DEMAND


def switch(loaded: AttachedProbes, probe_object: str, hook: str) -> Callable[[bool], str]:
    """Return the function that attaches the paused hooks of a probe object, or detaches them.

    hook: the one that matters. The function returns why it is not attached, or an empty text.
    """

    def attach(on: bool) -> str:
        if not on:
            loaded.pause({probe_object}, ON_DEMAND[probe_object])
            return ""
        refused = loaded.resume({probe_object})
        found = next((one for one in loaded.hooks if one.hook.name == hook), None)
        attached = found is not None and found.on
        return "; ".join(refused) or ("" if attached else found.reason if found else "no program")

    return attach
