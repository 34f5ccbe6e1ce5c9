"""Tables and pictures in docs/ from docs/results/*.json: `python docs/generate.py`; --check compares tables only.

A page says where a table belongs, by two comments around it: `<!-- study NAME -->` and `<!-- end -->`. Between
`<!-- measured -->` and `<!-- end -->` are all numbers of all studies beside which a published one stands.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from advml.report.published import as_markdown, beside_reported, words
from advml.report.published_pictures import pictures

DOCS = Path(__file__).resolve().parent
PLACE = re.compile(r"(<!-- study (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
OVERVIEW = re.compile(r"(<!-- measured -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page with each table as its document says it."""

    def table(found: re.Match[str]) -> str:
        said = json.loads((DOCS / f"results/{found[2]}.json").read_text())
        return f"{found[1]}\n{as_markdown(said)}\n{found[3]}"

    return OVERVIEW.sub(lambda found: f"{found[1]}\n{measured()}\n{found[2]}", PLACE.sub(table, page))


def measured() -> str:
    """A table for each study with published numbers: what was measured beside them."""
    parts = []
    for document in sorted(DOCS.glob("results/*.json")):
        said = json.loads(document.read_text())
        if rows := beside_reported(said):
            unit = f" ({said['unit']})" if said["unit"] else ""
            count = len(said["seeds"])
            seeds = f", {count} seeds" if count > 1 else ", one run"
            heading = f"| {said['title']} | {words(said['metric'])}{unit}{seeds} | reported |"
            body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            pages = [
                page.name for page in sorted(DOCS.glob("*.md")) if f"<!-- study {said['study']} -->" in page.read_text()
            ]
            whole = "".join(f" The whole table: [{page}]({page})." for page in pages)
            parts.append(f"{heading}\n| --- | ---: | ---: |\n{body}\n\nReported: {said['source']}.{whole}\n")
    return "\n".join(parts)


def main() -> int:
    """Exit code 1 if --check finds a table that its document does not say."""
    pages = {path: path.read_text() for path in sorted(DOCS.glob("*.md"))}
    stale = [path for path, text in pages.items() if filled(text) != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path}: not what docs/results says; run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(filled(pages[path]))
        print(path)
    for document in sorted(DOCS.glob("results/*.json")):
        for name, picture in pictures(json.loads(document.read_text())).items():
            (DOCS / f"pictures/{name}.png").write_bytes(picture["png"])
            print(DOCS / f"pictures/{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
