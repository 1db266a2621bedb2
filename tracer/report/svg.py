"""Drawings as SVG inside of a page: matplotlib's, in the page's colours and type, so that they follow light, dark and paper.

A colour here is the name of a CSS variable of the page. matplotlib gets a stand-in for each, which is replaced in what it wrote."""

from __future__ import annotations

import io
import re
import sys
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tracer.errors import RmapdError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("ink", "muted", "line", "paper", "good", "bad", "warn", "blue", "soft")
COLOUR = {name: f"#0{number:x}0{number:x}f{number:x}" for number, name in enumerate(NAMES, 1)}
POINT = 9.0
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": POINT,
    "text.color": COLOUR["ink"],
    "axes.edgecolor": COLOUR["line"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOUR["line"],
    "ytick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["muted"],
    "ytick.labelcolor": COLOUR["muted"],
    "legend.frameon": False,
    "figure.facecolor": "none",
    "figure.dpi": 72,
}
_SVG = "{http://www.w3.org/2000/svg}"
_NOT_INLINE = {f"{_SVG}metadata", f"{_SVG}style"}
_NUMBERS = {"d", "x", "y", "points", "transform"}
_DIGITS = re.compile(r"(\.\d\d)\d+")


def draw(
    name: str,
    width: float,
    height: float,
    said: str,
    paint: Callable[[Figure], dict[str, str] | None],
) -> str:
    """An <svg> of this size in points that scales to its place. said: what it shows, for those who do not see it; name: one on its page.
    paint may return titles, shown when a pointer rests on an artist, by the artist's gid."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = f"{sys.executable} -m pip install matplotlib (the extra rmapd[report]); Markdown, --output FILE.md, needs none"
        raise RmapdError(
            "cannot draw an HTML report", why=f"{error.name} is not installed", hint=hint
        ) from error
    with warnings.catch_warnings(), matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": name}):
        warnings.simplefilter(
            "ignore", UserWarning
        )  # names that are too long for a plot, or in letters that its font lacks
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        titles = paint(figure)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(file.getvalue(), said, titles or {})


def _inline(text: str, said: str, titles: dict[str, str]) -> str:
    """Without what an SVG file has and a page must not: declarations, metadata, a style for all, ids that two drawings share."""
    root = ET.fromstring(text)  # noqa: S314 - matplotlib wrote it
    referred = {*re.findall(r"#([\w-]+)", text)}
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _NOT_INLINE]:
            parent.remove(child)
    for each in root.iter():
        _tidy(each, titles, referred)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": said}
    ET.register_namespace("", _SVG[1:-1])
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    out = ET.tostring(root, encoding="unicode")
    for colour, stand_in in COLOUR.items():
        out = out.replace(stand_in, f"var(--{colour})")
    return out


def _tidy(each: ET.Element, titles: dict[str, str], referred: set[str]) -> None:
    """The page's type, two digits are enough, and an id only where something refers to it."""
    gid = each.attrib.pop("id", "")
    if gid in referred:
        each.set("id", gid)
    for name in each.attrib.keys() & _NUMBERS:
        each.set(name, _DIGITS.sub(r"\1", each.attrib[name]))
    if "style" in each.attrib:
        each.set("style", each.attrib["style"].replace("font-family: 'DejaVu Sans'; ", ""))
    if gid in titles:
        title = ET.Element(f"{_SVG}title")
        title.text = titles[gid]
        each.insert(0, title)


def plain(axes: Axes, *, grid: bool = True) -> None:
    """No ticks' marks, and a frame only where values stand on."""
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=grid, axis="y")


def compact(count: float) -> str:
    """1,234 as 1.2k: room is scarce in a drawing."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def duration(seconds: float) -> str:
    """Two digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return (
                f"{seconds / size:.0f} {unit}"
                if seconds / size >= 9.5
                else f"{seconds / size:.2g} {unit}"
            )
    return f"{seconds / 1e-9:.0f} ns"
