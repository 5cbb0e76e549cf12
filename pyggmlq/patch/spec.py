# SPDX-License-Identifier: MIT
"""The shape of ``ggml_patch/*.toml``: hooks (where a llama.cpp file is touched, and why) and copies.

The loader is strict: an unknown key, a missing reason or a path that leaves the tree is an error, and every error of
every file is reported at once. See docs/PATCHING.md for what each field means.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .._metal_source import as_c_string, flatten
from .finding import Finding, PatchError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLACES = ("before", "after", "replace")
EACH = ("type", "query", "type+query")
PLACEHOLDER = re.compile(r"@(\w+)@")
TYPE_NAMES = ("name", "NAME", "id", "block_length", "block_bytes")  # in `text`, one line of ggmlq-types.def
GLOBAL_NAMES = ("id_end", "cache_types")  # highest id + 1; "GGML_TYPE_A, GGML_TYPE_B"


@dataclass(frozen=True)
class Window:
    """The part of a file between the only match of ``start`` and the next match of ``end``, both included."""

    start: re.Pattern
    end: re.Pattern


@dataclass(frozen=True)
class Condition:
    """True if ``file`` (default: the hook's own) contains, or lacks, a match of ``pattern``."""

    pattern: re.Pattern
    wanted: bool
    file: str | None


@dataclass(frozen=True)
class Hook:
    """One place in llama.cpp, found by a regular expression that must match exactly ``count`` times."""

    id: str
    why: str
    files: tuple[str, ...]
    anchor: re.Pattern
    place: str
    head: str  # inserted is: head, text (for every type of `each`), tail
    text: str
    tail: str
    each: str | None
    count: int
    within: Window | None
    when: Condition | None
    variant: str | None
    absent: str | None
    mark: bool
    origin: str  # "core.toml:12", for messages

    @property
    def group(self) -> str:
        return self.origin.split(".", 1)[0]


@dataclass(frozen=True)
class Copy:
    """A file of ours that is copied byte for byte; both paths are relative, to our sources and to the tree.

    Or, if ``pasted``, one that becomes a C string, with what it includes in it: _metal_source.py.
    """

    source: str
    target: str
    why: str
    pasted: bool = False

    def content(self, root: Path) -> bytes:
        source = root / self.source
        return as_c_string(flatten(source)).encode() if self.pasted else source.read_bytes()


@dataclass(frozen=True)
class Spec:
    """Everything that ``ggml_patch`` says, and ``fingerprint``, a hash of it and of all copied bytes."""

    root: Path
    hooks: tuple[Hook, ...]
    copies: tuple[Copy, ...]
    left_out: tuple[tuple[str, str], ...]  # (file or folder/ of csrc, why it is not copied)
    fingerprint: str

    def hook(self, hook_id: str) -> Hook:
        for hook in self.hooks:
            if hook.id == hook_id:
                return hook
        near = difflib.get_close_matches(hook_id, [h.id for h in self.hooks], n=3)
        hint = f"nearest: {', '.join(near)}" if near else "`pyggmlq explain` without an id lists them"
        raise PatchError(Finding("unknown-hook", hook_id, f"There is no hook of this name; {hint}."))


def stays_inside(path: str) -> bool:
    """True for a relative path with forward slashes that can't lead out of its folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\\" not in path and ":" not in path


class _Table:
    """One TOML table: hands out typed values, remembers what was asked for, and collects complaints."""

    def __init__(self, data: dict, where: str, errors: list[Finding]) -> None:
        self._data, self._where, self._errors, self._known = data, where, errors, []

    def complain(self, message: str) -> None:
        self._errors.append(Finding("hook-file", self._where, message))

    def get(self, key: str, kinds: tuple, default=None, required: bool = False):
        self._known.append(key)
        if key not in self._data:
            if required:
                self.complain(f"`{key}` is missing.")
            return default
        value = self._data[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            self.complain(f"`{key}` is a {type(value).__name__}, wanted {wanted}.")
            return default
        return value

    def text(self, key: str, required: bool = False):
        value = self.get(key, (str,), required=required)
        if value is not None and not value.strip():
            self.complain(f"`{key}` is empty.")
        return value

    def pattern(self, key: str, required: bool = False):
        value = self.text(key, required)
        try:
            return None if value is None else re.compile(value, re.MULTILINE)
        except re.error as error:
            self.complain(f"`{key}` is not a regular expression: {error}.")
            return None

    def path(self, value: str) -> str:
        """A relative path with forward slashes that stays in the tree."""
        if not stays_inside(value):
            self.complain(f"path {value!r} must be relative, without `..`, with forward slashes.")
        return str(PurePosixPath(value))

    def finish(self) -> None:
        for key in self._data:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1, cutoff=0)
                self.complain(f"unknown key `{key}`; the nearest known one is `{near[0]}`.")


def load(root: Path) -> Spec:
    """Read ``root/ggml_patch/*.toml``; PatchError with every complaint if anything is wrong."""
    errors: list[Finding] = []
    hooks: list[Hook] = []
    copies: list[Copy] = []
    left_out: list[tuple[str, str]] = []
    digest = hashlib.sha256()
    for path in sorted((root / "ggml_patch").glob("*.toml")):
        raw = path.read_bytes()
        digest.update(path.name.encode() + b"\0" + raw)
        text = raw.decode("utf-8")
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            errors.append(Finding("hook-file", path.name, f"not valid TOML: {error}."))
            continue
        top = _Table(data, path.name, errors)
        if path.name == "copies.toml":
            for entry in top.get("copy", (list,), []):
                copies += _copies(_Table(entry, path.name, errors))
            for entry in top.get("leave", (list,), []):
                left_out += _left_out(_Table(entry, path.name, errors))
        else:
            for entry in top.get("hook", (list,), []):
                hook = _hook(entry, path.name, text, errors)
                if hook:
                    hooks.append(hook)
        top.finish()
    if not hooks:
        errors.append(Finding("hook-file", "ggml_patch", f"no hooks found in {root / 'ggml_patch'}."))
    _unique("hook id", [hook.id for hook in hooks], errors)
    _unique("copy target", [copy.target for copy in copies], errors)
    for copy in copies:
        source = root / copy.source
        if source.is_file():
            digest.update(copy.target.encode() + b"\0" + copy.content(root))
        else:
            errors.append(Finding("source-missing", copy.source, f"copies.toml names it, but {source} isn't there."))
    digest.update((root / "csrc" / "ggmlq-types.def").read_bytes())
    if errors:
        raise PatchError(*errors)
    return Spec(root, tuple(hooks), tuple(copies), tuple(left_out), digest.hexdigest())


def _copies(table: _Table) -> list[Copy]:
    why = table.text("why", required=True) or ""
    folder = table.path(table.text("to", required=True) or ".x")
    sources = [table.path(str(s)) for s in table.get("files", (list,), [], required=True)]
    pasted = table.text("paste")
    table.finish()
    if pasted:
        return [Copy(source, f"{folder}/{pasted}", why, True) for source in sources]
    return [Copy(source, f"{folder}/{PurePosixPath(source).name}", why) for source in sources]


def _left_out(table: _Table) -> list[tuple[str, str]]:
    why = table.text("why", required=True) or ""
    paths = [str(path) for path in table.get("files", (list,), [], required=True)]
    table.finish()
    return [(path, why) for path in paths]


def _hook(data: dict, file_name: str, file_text: str, errors: list[Finding]) -> Hook | None:
    hook_id = str(data.get("id", "?"))
    at = re.search(rf'^id\s*=\s*["\']{re.escape(hook_id)}["\']', file_text, re.MULTILINE)
    origin = f"{file_name}:{file_text.count(chr(10), 0, at.start()) + 1 if at else 1}"
    before = len(errors)
    table = _Table(data, f"{origin} {hook_id}", errors)

    table.text("id", required=True)
    stem = file_name.rsplit(".", 1)[0]
    if not re.fullmatch(rf"{re.escape(stem)}(-[a-z0-9]+)+", hook_id):
        table.complain(f"`id` must be lower-case words joined by `-` and begin with `{stem}-`.")
    files = table.get("file", (str, list), required=True)
    files = [files] if isinstance(files, str) else files or []
    place = table.text("place", required=True)
    if place is not None and place not in PLACES:
        table.complain(f"`place` is {place!r}, wanted one of {', '.join(PLACES)}.")
    each = table.text("each")
    if each is not None and each not in EACH:
        table.complain(f"`each` is {each!r}, wanted one of {', '.join(EACH)}.")
    count = table.get("count", (int,), 1)
    if count < 1:
        table.complain(f"`count` is {count}, wanted at least 1.")
    absent = table.text("absent")
    if absent is not None and not absent.startswith("ok: "):
        table.complain("`absent` must begin with `ok: ` and give the reason why it is fine that nothing is touched.")

    hook = Hook(
        id=hook_id,
        why=table.text("why", required=True) or "",
        files=tuple(table.path(str(f)) for f in files),
        anchor=table.pattern("anchor", required=True) or re.compile("(?!)"),
        place=place or "",
        text=table.text("text", required=True) or "",
        head=table.get("head", (str,), ""),
        tail=table.get("tail", (str,), ""),
        each=each,
        count=count,
        within=_window(table),
        when=_condition(table),
        variant=table.text("variant"),
        absent=absent[4:] if absent else None,
        mark=table.get("mark", (bool,), True),
        origin=origin,
    )
    if hook.variant and not hook.when:
        table.complain("`variant` needs `when`, to tell which of the variants is meant.")
    if hook.when and not hook.variant and not hook.absent:
        table.complain("`when` needs `variant` (one of several must apply) or `absent` (why it is fine if not).")
    for key in ("head", "text", "tail"):
        value = getattr(hook, key)
        if value and not value.endswith("\n"):
            table.complain(f"`{key}` must end with a newline: hooks insert whole lines.")
        allowed = [*hook.anchor.groupindex, *GLOBAL_NAMES, *(TYPE_NAMES if key == "text" and each else ())]
        for name in PLACEHOLDER.findall(value):
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, n=1, cutoff=0)[0]
                table.complain(f"unknown @{name}@ in `{key}`; the nearest known one is @{near}@.")
    if hook.place == "replace":
        for name in hook.anchor.groupindex:
            if f"@{name}@" not in hook.head + hook.text + hook.tail:
                table.complain(f"`replace` must keep what it captured, but @{name}@ is not inserted again.")
    table.finish()
    return hook if len(errors) == before else None


def _window(table: _Table) -> Window | None:
    data = table.get("within", (dict,))
    if data is None:
        return None
    inner = _Table(data, table._where + " within", table._errors)
    start, end = inner.pattern("from", required=True), inner.pattern("to", required=True)
    inner.finish()
    return Window(start, end) if start and end else None


def _condition(table: _Table) -> Condition | None:
    data = table.get("when", (str, dict))
    if data is None:
        return None
    if isinstance(data, str):
        data = {"contains": data}
    inner = _Table(data, table._where + " when", table._errors)
    contains, lacks = inner.pattern("contains"), inner.pattern("lacks")
    file = inner.text("file")
    inner.finish()
    if (contains is None) == (lacks is None):
        inner.complain("give exactly one of `contains` and `lacks`.")
        return None
    return Condition(contains or lacks, contains is not None, inner.path(file) if file else None)


def _unique(what: str, values: list[str], errors: list[Finding]) -> None:
    for value in sorted({v for v in values if values.count(v) > 1}):
        errors.append(Finding("hook-file", value, f"this {what} is used more than once."))
