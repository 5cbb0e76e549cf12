#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The running text of a folder of HTML pages, as a text for `pyggmlq kld`: paragraphs only, in the order of file names.

    python3 tools/html_prose.py /usr/share/doc/debian-handbook/html/en-US handbook.txt

Headings, lists' labels, tables and listings are left out: they are easy to predict and would flatter every cache.
"""
from __future__ import annotations

import hashlib
import sys
from html.parser import HTMLParser
from pathlib import Path

LEAST = 120
"""Characters of a paragraph that counts as running text."""


class Paragraphs(HTMLParser):
    """Collects the text of <p> and of <div class="para">, blanks folded."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[bool] = []
        self._text: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag in ("p", "div"):
            starts = tag == "p" or dict(attributes).get("class") == "para"
            self._finish()
            self._open.append(starts)
        elif tag in ("pre", "table", "ul", "ol", "dl"):
            self._finish()
            self._open.append(False)

    def handle_endtag(self, tag):
        if tag in ("p", "div", "pre", "table", "ul", "ol", "dl"):
            self._finish()
            if self._open:
                self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1]:
            self._text.append(data)

    def _finish(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if len(text) >= LEAST:
            self.found.append(text)


def main() -> None:
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: html_prose.py FOLDER OUTPUT, FOLDER holding .html files")
    paragraphs: list[str] = []
    for path in sorted(Path(sys.argv[1]).glob("*.html")):
        page = Paragraphs()
        page.feed(path.read_text(encoding="utf-8"))
        paragraphs += page.found
    text = "\n\n".join(dict.fromkeys(paragraphs)) + "\n"
    Path(sys.argv[2]).write_text(text, encoding="utf-8")
    print(f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
