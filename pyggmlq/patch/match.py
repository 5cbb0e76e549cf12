# SPDX-License-Identifier: MIT
"""One hook against one file's text. Pure: reads and writes nothing."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from .._types import cache_types, query_types
from .finding import Finding
from .spec import PLACEHOLDER, Hook

_MAX_SHOWN_LINES = 5


class Text:
    """A file as lines. ``normal`` is what anchors see: no byte-order mark, every line ends in one ``\\n``.

    Whatever no edit touches keeps its bytes: mixed newlines, a missing final newline, bytes that aren't UTF-8.
    """

    def __init__(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "surrogateescape")
        self._mark = "\ufeff" if text.startswith("\ufeff") else ""
        parts = text[len(self._mark) :].split("\n")
        self._lines = [(part[:-1], "\r\n") if part.endswith("\r") else (part, "\n") for part in parts[:-1]]
        self._open_end = parts[-1] != ""  # the last line has no newline; give it its neighbour's while we work
        if self._open_end:
            self._lines.append((parts[-1], self._lines[-1][1] if self._lines else "\n"))
        self.normal = "".join(line + "\n" for line, _ in self._lines)

    def line_of(self, offset: int) -> int:
        """Index of the line that holds character ``offset`` of ``normal``."""
        return self.normal.count("\n", 0, offset)

    def starts_line(self, offset: int) -> bool:
        return offset == 0 or self.normal[offset - 1] == "\n"

    def line(self, index: int) -> str:
        return self._lines[index][0]

    def __len__(self) -> int:
        return len(self._lines)

    def apply(self, edits: list[Edit]) -> bytes:
        """The file's bytes after ``edits``, which don't overlap; inserted lines take their neighbour's newline."""
        out: list[tuple[str, str]] = []
        done = 0
        for edit in sorted(edits, key=lambda e: (e.start, e.end)):
            out += self._lines[done : edit.start]
            newline = self._lines[min(edit.start, len(self._lines) - 1)][1]
            out += [(line, newline) for line in edit.lines]
            done = edit.end
        out += self._lines[done:]
        if self._open_end and out:
            out[-1] = (out[-1][0], "")
        return (self._mark + "".join(line + newline for line, newline in out)).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Edit:
    """Lines ``start`` to ``end`` (exclusive; equal for an insertion) of a file become ``lines``.

    ``anchor`` is the first line that the anchor touches."""

    hook: Hook
    anchor: int
    start: int
    end: int
    lines: tuple[str, ...]


def find(hook: Hook, file: str, text: Text) -> tuple[list[Edit], list[Finding]]:
    """The edits of ``hook`` in ``file``, or why there are none. Every count is exact."""
    begin, end = 0, len(text.normal)
    if hook.within:
        heads = list(hook.within.start.finditer(text.normal))
        if len(heads) != 1:
            return [], [_count_finding("window-count", hook, file, text, hook.within.start, heads, 1)]
        foot = hook.within.end.search(text.normal, heads[0].end())
        if not foot:
            return [], [_count_finding("window-end", hook, file, text, hook.within.end, [], 1)]
        begin, end = heads[0].start(), foot.end()
    matches = [m for m in hook.anchor.finditer(text.normal, begin, end) if m.end() > m.start()]
    if len(matches) != hook.count:
        return [], [_count_finding("anchor-count", hook, file, text, hook.anchor, matches, hook.count)]

    edits, findings = [], []
    for match in matches:
        first, last = text.line_of(match.start()), text.line_of(match.end() - 1)
        whole = text.starts_line(match.start()) and text.normal[match.end() - 1] == "\n"
        if hook.place == "replace" and not whole:
            findings.append(
                Finding(
                    "anchor-partial",
                    hook.id,
                    "the anchor covers part of a line, and `replace` would lose the rest",
                    (
                        (file, f"{first + 1}: {text.line(first).strip()}"),
                        ("do", f"let the anchor in ggml_patch/{hook.origin} begin with ^ and end with \\n"),
                    ),
                )
            )
            continue
        start = last + 1 if hook.place == "after" else first
        stop = last + 1 if hook.place == "replace" else start
        edits.append(Edit(hook, first, start, stop, tuple(_render(hook, file, match))))
    return edits, findings


def _render(hook: Hook, file: str, match: re.Match) -> list[str]:
    groups = {name: value or "" for name, value in match.groupdict().items()}
    groups.update(id_end=str(max(t.id for t in cache_types() + query_types()) + 1))
    groups.update(cache_types=", ".join(f"GGML_TYPE_{t.name.upper()}" for t in cache_types()))

    def fill(text: str, values: dict[str, str]) -> str:
        return PLACEHOLDER.sub(lambda m: values[m[1]], text)

    middle = "".join(fill(hook.text, {**groups, **values}) for values in _each(hook))
    lines = (fill(hook.head, groups) + middle + fill(hook.tail, groups))[:-1].split("\n")
    if hook.mark:
        indent = re.match(r"[ \t]*", lines[0])[0]
        sign = comment_sign(file)
        lines = [f"{indent}{sign} pyggmlq:begin {hook.id}", *lines, f"{indent}{sign} pyggmlq:end {hook.id}"]
    return lines


def _each(hook: Hook) -> list[dict[str, str]]:
    """One set of placeholder values for every repetition of ``text``."""
    if hook.each is None:
        return [{}]
    chosen = (cache_types() if "type" in hook.each else ()) + (query_types() if "query" in hook.each else ())
    return [
        {
            "name": t.name,
            "NAME": t.name.upper(),
            "id": str(t.id),
            "block_length": str(t.block_length),
            "block_bytes": str(t.block_bytes),
        }
        for t in chosen
    ]


def comment_sign(file: str) -> str:
    path = PurePosixPath(file)
    return "#" if path.suffix in (".py", ".cmake", ".sh") or path.name == "CMakeLists.txt" else "//"


def _count_finding(
    code: str, hook: Hook, file: str, text: Text, pattern: re.Pattern, matches: list[re.Match], wanted: int
) -> Finding:
    label = "anchor" if pattern is hook.anchor else "window"
    if matches:
        lines = [text.line_of(m.start()) for m in matches]
        shown = [f"{i + 1}: {text.line(i).strip()}" for i in lines[:_MAX_SHOWN_LINES]]
        shown += ["..."] if len(lines) > _MAX_SHOWN_LINES else []
        details = [("found", line) for line in shown]
    else:
        details = [("nearest", line) for line in _nearest(pattern, text)]
    return Finding(
        code,
        hook.id,
        f"found {len(matches)}, wanted {wanted}",
        (
            (file, f"{label} {pattern.pattern}"),
            ("why", hook.why),
            *details,
            ("do", f"if upstream moved or renamed this, adapt ggml_patch/{hook.origin}; docs/PATCHING.md says how"),
        ),
    )


def _nearest(pattern: re.Pattern, text: Text) -> list[str]:
    """Up to three lines that look most like what the regular expression would match."""
    plain = re.sub(r"\(\?P<\w+>", "(", pattern.pattern)
    plain = re.sub(r"\\n|\^|\$|\[[^\]]*\][*+?]?|\\[sdwSDW][*+?]?|\(\?[:=!]|(?<!\\)[()?*+|]", " ", plain)
    plain = " ".join(re.sub(r"\\(.)", r"\1", plain).split())
    scored = []
    matcher = difflib.SequenceMatcher(None, "", plain, autojunk=False)
    for index in range(len(text)):
        line = text.line(index).strip()
        if not line or len(line) > 400:
            continue
        matcher.set_seq1(line)
        if matcher.real_quick_ratio() > 0.6 and matcher.quick_ratio() > 0.6 and matcher.ratio() > 0.6:
            scored.append((-matcher.ratio(), index, line))
    return [f"{index + 1}: {line}" for _, index, line in sorted(scored)[:3]]
