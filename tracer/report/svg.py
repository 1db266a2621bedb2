"""Draw with matplotlib and inline the SVG in a page, in the colours and the font of the page.

Each colour is a CSS variable of the page, so that a drawing follows the light, dark and print
styles. matplotlib draws with a placeholder colour, which is then replaced in the SVG.
"""

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
    description: str,
    paint: Callable[[Figure], dict[str, str] | None],
) -> str:
    """Return an <svg> element that scales to its container.

    name: unique on the page. width, height: in points. description: for screen readers. paint:
    draws on a figure and may return tooltips by the gid of the artist. RmapdError if matplotlib is
    not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = (
            f"{sys.executable} -m pip install matplotlib (the extra rmapd[report]); "
            "Markdown, --output FILE.md, needs none"
        )
        raise RmapdError(
            "cannot draw an HTML report", why=f"{error.name} is not installed", hint=hint
        ) from error
    with warnings.catch_warnings(), matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": name}):
        # Names may be too long for a plot, or have characters that its font lacks.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        titles = paint(figure)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(file.getvalue(), description, titles or {})


def _inline(text: str, description: str, titles: dict[str, str]) -> str:
    """Drop the parts of an SVG file that a page must not have.

    These are declarations, metadata, global styles, and ids, which two drawings may share.
    """
    root = ET.fromstring(text)  # noqa: S314 - matplotlib wrote it
    referenced = {*re.findall(r"#([\w-]+)", text)}
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _NOT_INLINE]:
            parent.remove(child)
    for each in root.iter():
        _tidy(each, titles, referenced)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": description}
    ET.register_namespace("", _SVG[1:-1])
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    out = ET.tostring(root, encoding="unicode")
    for colour, placeholder in COLOUR.items():
        out = out.replace(placeholder, f"var(--{colour})")
    return out


def _tidy(each: ET.Element, titles: dict[str, str], referenced: set[str]) -> None:
    """Use the page's font, round to two digits, keep only ids that are referenced, add tooltips."""
    gid = each.attrib.pop("id", "")
    if gid in referenced:
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
    """Remove tick marks and the left line of the frame."""
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=grid, axis="y")


def compact(count: float) -> str:
    """Format a count with three digits, such as 1.23k for 1,234."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
