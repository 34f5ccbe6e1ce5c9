"""HTML from plain functions. What is not `Html` already is text and is escaped: nothing in a run can become markup."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

VOID = ("img", "meta")
LONG = 36  # letters in a cell above which its line may be broken
BROAD = 420  # points: a picture above this is not made to fit a narrow screen
TAG, WIDTH = re.compile("<[^>]*>"), re.compile(rb'<svg[^>]* width="([\d.]+)pt"')
SHARP = 400_000  # bytes: an SVG above this is shown as PNG


class Html(str):
    """Text that is markup: made only by the functions below."""

    __slots__ = ()


def text(value: str) -> Html:
    """Escaped, unless it is markup; what no file in UTF-8 can hold (from a folder's name) becomes a question mark."""
    return value if isinstance(value, Html) else Html(escape(value.encode(errors="replace").decode()))


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Several pieces behind each other."""
    return Html(text(between).join(map(text, parts)))


def tag(name: str, /, *content: str, **attributes: str | None) -> Html:
    """`<name key="value">content</name>`; `class_` is class, `aria_label` is aria-label; None leaves one out."""
    said = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opened = "".join(f' {key}="{text(value)}"' for key, value in said.items())
    return Html(f"<{name}{opened}>" + ("" if name in VOID else f"{joined(content)}</{name}>"))


def link(path: Path, base: Path, shown: str | None = None) -> Html:
    """A link to a file or folder, relative to the folder `base` in which the page lies."""
    relative = os.path.relpath(path.absolute(), base.absolute())
    return tag("a", shown or relative, href=quote(os.fsencode(relative)))


def table(
    caption: str, headings: Sequence[str], body: Sequence[Sequence[str]], numeric: Sequence[bool], head: int = 0
) -> Html:
    """A table that scrolls by itself where the page is narrow. `head`: the column that names the rows."""
    top = [
        tag("th", name, scope="col", class_="n" if right else None)
        for name, right in zip(headings, numeric, strict=True)
    ]
    rows = [
        tag("tr", *(_cell(cell, right, place == head) for place, (cell, right) in
                    enumerate(zip(row, numeric, strict=True))))
        for row in body
    ]  # fmt: skip
    inside = tag("table", tag("caption", caption), tag("thead", tag("tr", *top)), tag("tbody", joined(rows, "\n")))
    return _scrolling(inside, caption)


def _cell(cell: str, right: bool, names_the_row: bool) -> Html:
    kind = "n" if right else "t" if len(TAG.sub("", cell)) > LONG else None
    return tag("th", cell, scope="row", class_=kind) if names_the_row else tag("td", cell, class_=kind)


def listed(items: Iterable[str]) -> Html:
    """An unordered list."""
    return tag("ul", joined((tag("li", item) for item in items), "\n"))


def folded(summary: str, *content: str) -> Html:
    """What only some readers want: closed at first, open on paper."""
    return tag("details", tag("summary", summary), *content)


def figure(picture: dict[str, bytes], caption: str, alt: str) -> Html:
    """A picture inside the page.

    As an image, not as markup: the identifiers in matplotlib's SVGs would clash with each other, and an image runs no
    script and loads nothing.
    """
    svg, png = picture.get("svg"), picture.get("png")
    sharp = svg is not None and (png is None or len(svg) <= SHARP)
    kind, data = ("svg+xml", svg) if sharp else ("png", png)
    assert data is not None
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    width = WIDTH.search(svg[:2000]) if svg else None
    broad = "broad" if width is not None and float(width[1]) > BROAD else None
    image = tag("img", src=source, alt=alt, class_=broad)
    return tag("figure", _scrolling(image, caption), tag("figcaption", caption))


def _scrolling(inside: Html, caption: str) -> Html:
    """What may be wider than the screen, so that it can be moved with the keyboard too."""
    return tag("div", inside, class_="wide", tabindex="0", role="region", aria_label=caption)
