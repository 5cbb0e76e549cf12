# SPDX-License-Identifier: MIT
"""The command line. Exit codes: 0 fine, 1 findings, 2 usage."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Iterator, List, Optional

import typer
from rich.console import Console
from rich.text import Text

from . import _sources
from ._types import cache_types
from .lab import commands as lab_commands

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="3-bit KV-cache types for llama.cpp: adds them to a tree of yours, and takes them out again.",
)

_TREE = typer.Argument(..., exists=True, file_okay=False, metavar="TREE", help="Folder of a llama.cpp tree.")
_JSON = typer.Option(False, "--json", help="Print one JSON object instead of text.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyggmlq {_sources.version()}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def show(lines: List[str], error: bool = False) -> None:
    """Print lines as they are: coloured at the left if this is a terminal, never wrapped."""
    console = Console(soft_wrap=True, highlight=False, stderr=error)
    for line in lines:
        text = Text(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))  # files may hold any bytes
        text.highlight_regex(r"^error\[[^\]]*\]", "bold red")
        text.highlight_regex(r"^\+.*", "green")
        text.highlight_regex(r"^-.*", "red")
        console.print(text)


def show_json(data: dict) -> None:
    typer.echo(json.dumps(data, indent=1))


@contextlib.contextmanager
def _reporting(command: str, as_json: bool, error: bool = False) -> Iterator[None]:
    """Turns a PatchError (and an OSError, such as a full disk) into findings and exit code 1."""
    from . import patch as engine

    try:
        yield
    except (engine.PatchError, OSError) as problem:
        if isinstance(problem, engine.PatchError):
            findings = problem.findings
        else:
            findings = (engine.Finding("system", str(problem.filename or ""), str(problem.strerror or problem)),)
        _fail(command, findings, as_json, error)


def _fail(command: str, findings, as_json: bool, error: bool = False, **more) -> None:
    from .patch import report

    if as_json:
        show_json({"command": command, "ok": False, **more, "findings": [f.as_dict() for f in findings]})
    else:
        ending = "" if any(f.code == "write-failed" for f in findings) else " Nothing was written."
        show([*report.findings(findings), report.counted(len(findings), "error") + "." + ending], error)
    raise typer.Exit(1)


@app.command("check")
def check_command(tree: Path = _TREE, as_json: bool = _JSON) -> None:
    """Say what `patch` would change, and every problem. Writes nothing."""
    from . import patch as engine
    from .patch import report

    with _reporting("check", as_json):
        plan = engine.check(tree)
    data = {
        "upstream": plan.upstream,
        "hooks": [
            {"id": o.hook.id, "state": o.state, "file": o.file, "lines": list(o.lines), "reason": o.reason}
            for o in plan.outcomes
        ],
        "files": [{"path": c.path, "action": "edit" if c.before is not None else "add"} for c in plan.changes],
    }
    if not as_json:
        show(report.check(plan))
    if plan.findings:
        _fail("check", plan.findings, as_json, **data)
    if as_json:
        show_json({"command": "check", "ok": True, **data, "findings": []})
    else:
        show([report.changes(plan, "would be") + ". Nothing was written."])


@app.command("patch")
def patch_command(tree: Path = _TREE, as_json: bool = _JSON) -> None:
    """Add the cache types: all of the changes or none."""
    from . import patch as engine
    from .patch import report

    with _reporting("patch", as_json):
        status, undone, plan = engine.patch(tree)
    if as_json:
        show_json({"command": "patch", "ok": True, "changed": plan is not None, "undone": undone, **_status_data(status)})
        return
    if undone:
        show(["An interrupted run was undone first."])
    if plan is None:
        show([f"Already patched by pyggmlq {status.version}. Nothing was written."])
    else:
        names = " and ".join(t.name for t in cache_types())
        show([*report.check(plan), f"{report.changes(plan, 'were')}. Build as usual, then use {names} as cache types."])


@app.command("diff")
def diff_command(tree: Path = _TREE, as_json: bool = _JSON) -> None:
    """Print what `patch` would write, or has written, as a diff that `git apply` accepts."""
    from . import patch as engine

    with _reporting("diff", as_json, error=True):
        result = engine.diff(tree)
    if as_json:
        show_json({"command": "diff", "ok": True, "diff": result.decode("utf-8", "surrogateescape")})
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(result)
        sys.stdout.buffer.flush()


@app.command("status")
def status_command(tree: Path = _TREE, as_json: bool = _JSON) -> None:
    """Say whether the tree is unpatched, patched, modified since, or was left by an interrupted run."""
    from . import patch as engine
    from .patch import report

    with _reporting("status", as_json):
        status = engine.status(tree)
    fine = status.state in ("unpatched", "patched")
    if as_json:
        show_json({"command": "status", "ok": fine, **_status_data(status)})
    else:
        show(report.status(status))
    if not fine:
        raise typer.Exit(1)


@app.command("revert")
def revert_command(tree: Path = _TREE, as_json: bool = _JSON) -> None:
    """Bring every file back, byte for byte. Refuses, with the diff, if a patched file was edited."""
    from . import patch as engine
    from .patch import report

    with _reporting("revert", as_json):
        paths, undone = engine.revert(tree)
    if as_json:
        show_json({"command": "revert", "ok": True, "undone": undone, "files": list(paths)})
    elif undone:
        show(["An interrupted run was undone; the tree is as it was before."])
    elif paths:
        show([f"{report.counted(len(paths), 'file')} restored or removed; the tree is as it was before."])
    else:
        show(["The tree is not patched. Nothing was written."])


@app.command("explain")
def explain_command(
    hook_id: Optional[str] = typer.Argument(None, metavar="[ID]", help="Id of a hook; without one, all are listed."),
    tree: Optional[Path] = typer.Option(None, "--tree", exists=True, file_okay=False, help="Also show what it hits here."),
    as_json: bool = _JSON,
) -> None:
    """Say why a hook exists, how its place is found, and what it inserts."""
    from . import patch as engine
    from .patch import report

    with _reporting("explain", as_json):
        spec = engine.load_spec()
        hooks = [spec.hook(hook_id)] if hook_id else list(spec.hooks)
        hits = {o.hook.id: o for o in engine.check(tree).outcomes} if tree else {}
    if as_json:
        rows = [
            {"id": h.id, "why": h.why, "files": list(h.files), "anchor": h.anchor.pattern, "count": h.count, "place": h.place}
            for h in hooks
        ]
        for row in rows:
            if row["id"] in hits:
                outcome = hits[row["id"]]
                row.update(state=outcome.state, file=outcome.file, lines=list(outcome.lines), reason=outcome.reason)
        show_json({"command": "explain", "ok": True, "hooks": rows})
        return
    if not hook_id:
        width = max(len(h.id) for h in hooks)
        show([f"{h.id:<{width}}  {h.why}" for h in hooks])
        return
    lines = report.hook(hooks[0])
    if hook_id in hits:
        outcome = hits[hook_id]
        where = f"{outcome.file}:{','.join(map(str, outcome.lines))}" if outcome.lines else outcome.file
        lines.append(f"  here     {outcome.state} {where} {outcome.reason}".rstrip())
    show(lines)


@app.command("types")
def types_command(as_json: bool = _JSON) -> None:
    """List the cache types: id, block, bits per value."""
    infos = cache_types()
    if as_json:
        rows = [{**vars(t), "bits_per_value": t.bits_per_value} for t in infos]
        show_json({"command": "types", "ok": True, "types": rows})
        return
    lines = [f"{'type':<8} {'id':>3} {'values':>6} {'bytes':>6} {'bits/value':>10}  description"]
    lines += [
        f"{t.name:<8} {t.id:>3} {t.block_length:>6} {t.block_bytes:>6} {t.bits_per_value:>10g}  {t.description}"
        for t in infos
    ]
    show(lines)


_bench = typer.Typer(no_args_is_help=True, help="Measure speed; docs/BENCH.md says how to read the tables.")
app.add_typer(_bench, name="bench")


def _threads(text: str) -> List[int]:
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) >= 1 for word in words):
        raise typer.BadParameter(f"found {text!r}, wanted numbers from 1 up, as in 1,2")
    return [int(word) for word in words]


def _wide_console() -> Console:
    """A console that never cuts columns: a narrow terminal wraps the lines of a table instead."""
    return Console(highlight=False, width=max(Console().width, 180))


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise typer.BadParameter(f"found {text!r}, wanted a regular expression ({error})") from None
    return text


@_bench.command("cpu")
def bench_cpu_command(
    quick: bool = typer.Option(False, "--quick", help="A few cases, the best level, one thread: about a minute."),
    tree: Optional[Path] = typer.Option(
        None, "--tree", exists=True, file_okay=False, help="Unmodified llama.cpp to compare with; default: a pinned version."
    ),
    patched: Optional[Path] = typer.Option(
        None, "--patched", exists=True, file_okay=False, help="Also time our types inside this patched llama.cpp."
    ),
    threads: Optional[str] = typer.Option(None, "--threads", metavar="N,..", help="Default: 1,2 (quick, or one core: 1)."),
    level: List[str] = typer.Option([], "--level", help="Instruction set to measure; may be repeated. Default: all usable."),
    only: str = typer.Option("", "--only", metavar="REGEX", callback=_regex, help="Cases whose line in --list matches."),
    repetitions: int = typer.Option(9, "--repetitions", min=1, help="Samples per row."),
    cold: bool = typer.Option(False, "--cold", help="Sweep the caches before every call."),
    cpu_time: bool = typer.Option(False, "--cpu-time", help="One thread: processor time, for a busy machine."),
    no_reference: bool = typer.Option(False, "--no-reference", help="Leave llama.cpp out: no download, no build, no ratios."),
    json_file: Optional[Path] = typer.Option(None, "--json", dir_okay=False, help="Also write every sample to this file."),
    work_dir: Optional[Path] = typer.Option(None, "--work-dir", file_okay=False, help="For the tree and the build."),
    list_cases: bool = typer.Option(False, "--list", help="List the cases and stop."),
) -> None:
    """Time encoding, decoding, dot products and attention, beside llama.cpp's own cache types."""
    from .bench import cpu, record, reference, report
    from .fetch import FetchError
    from .patch import PatchError

    default = [1] if quick or record.cores() < 2 else [1, 2]
    options = cpu.Options(
        quick=quick, tree=tree, patched=patched, work_dir=(work_dir or reference.default_work_dir()).resolve(),
        threads=tuple(_threads(threads) if threads else default), levels=tuple(level), only=only,
        repetitions=repetitions, cold=cold, cpu_time=cpu_time, no_reference=no_reference,
    )  # fmt: skip
    try:
        cpu.chosen_levels(options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if list_cases:
        show(cpu.lines(options))
        return
    if not any(cpu.selected(options)):
        raise typer.BadParameter(f"--only: no case matches {only!r}; --list shows them")
    console = _wide_console()
    with console.status("starting", refresh_per_second=2) as status:

        def finished(run: record.Run, case: object, n: int) -> None:
            if len({(row.case, row.threads) for row in run.records}) == 1:
                for line in report.header(run):
                    console.print(Text(line))
            rows = [row for row in run.records if (row.case, row.threads) == (run.records[-1].case, run.records[-1].threads)]
            console.print()
            console.print(report.case_table(rows, run.copy_rate(n)))
            if json_file:
                record.write(run, json_file)

        try:
            run = cpu.run(options, lambda text: status.update(Text(text)), finished)
            if json_file:
                record.write(run, json_file)
        except (reference.BenchError, FetchError, PatchError, OSError) as error:
            status.stop()
            log = getattr(error, "log", None)
            show([f"error: {error}", *([f"  log {log}"] if log else [])], error=True)
            raise typer.Exit(1) from None
    console.print(Text("\n" + report.LEGEND, style="dim"), soft_wrap=True)
    for warning in run.warnings:
        console.print(Text(f"warning: {warning['text']}; {warning['remedy']}", style="yellow"), soft_wrap=True)


@_bench.command("llama")
def bench_llama_command(
    model: Path = typer.Argument(..., exists=True, dir_okay=False, metavar="MODEL", help="A GGUF file; tools/make_random_gguf.py makes one of any shape."),
    programs: Path = typer.Option(..., "--programs", exists=True, file_okay=False, help="Folder of the patched llama.cpp's llama-bench."),
    unmodified: Optional[Path] = typer.Option(
        None, "--unmodified", exists=True, file_okay=False, help="Folder of an unmodified llama.cpp's, for llama.cpp's own types. Default: --programs."
    ),
    pairs: str = typer.Option("f16,q8_0,q4_0,tq3_0,planar3", "--pairs", metavar="K/V,..", help="Cache types; one name stands for both sides."),
    depths: str = typer.Option("0x5,32768", "--depth", metavar="N[xROUNDS],..", help="Cached tokens; 0x5: five rounds at depth 0."),
    n_prompt: int = typer.Option(512, "--prompt", min=0, help="Tokens of a prompt to time; 0: none."),
    n_gen: int = typer.Option(64, "--generate", min=0, help="Tokens to generate and time; 0: none."),
    repetitions: int = typer.Option(1, "--repetitions", min=1, help="llama-bench's -r in each round."),
    devices: str = typer.Option("", "--devices", metavar="N,..", help="GPUs, as nvidia-smi counts them; depths are spread over them. Their memory is watched."),
    threads: int = typer.Option(4, "--threads", min=1, help="llama-bench's -t."),
    llama_args: str = typer.Option("-ngl 99", "--llama-args", help="Further arguments of llama-bench."),
    json_file: Optional[Path] = typer.Option(None, "--json", dir_okay=False, help="Also write every sample to this file, after each."),
) -> None:
    """Time a whole model in llama.cpp with each cache type, in turns, at several depths of the cache."""
    from .bench import model as whole
    from .bench.reference import BenchError
    from .lab.kld import parse_pairs

    try:
        options = whole.Options(
            model.resolve(), programs.resolve(), unmodified and unmodified.resolve(), tuple(parse_pairs(pairs)), whole.parse_depths(depths),
            n_prompt, n_gen, repetitions, whole.parse_devices(devices), threads, tuple(shlex.split(llama_args)),
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if n_prompt == n_gen == 0:
        raise typer.BadParameter("--prompt and --generate: found 0 for both, wanted something to time")
    console, start = _wide_console(), time.monotonic()
    with console.status("measuring", refresh_per_second=2) as status:

        def measured(rows: List[whole.Row]) -> None:
            status.update(Text(f"{time.monotonic() - start:.0f} s; {sum(len(row.decode) + len(row.prefill) for row in rows)} samples"))
            if json_file:
                whole.write(json_file, options, rows, time.monotonic() - start)

        try:
            rows = whole.run(options, measured)
        except (BenchError, OSError) as error:
            status.stop()
            show([f"error: {error}"], error=True)
            raise typer.Exit(1) from None
    show(whole.table(rows, n_prompt))


@app.command("compare")
def compare_command(
    a: Path = typer.Argument(..., exists=True, dir_okay=False, metavar="A.json", help="The older run of `bench cpu --json`."),
    b: Path = typer.Argument(..., exists=True, dir_okay=False, metavar="B.json", help="The newer one."),
    as_json: bool = _JSON,
) -> None:
    """Compare two runs row by row: ratio of medians, and the Mann-Whitney p value that nothing changed."""
    from .bench import record, report

    runs = []
    for path in (a, b):
        try:
            runs.append(record.Run.from_json(path.read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:
            raise typer.BadParameter(f"{path}: {error}") from None
    found = report.compare(*runs)
    if as_json:
        show_json({"command": "compare", "ok": True, **found.as_dict()})
        return
    console = _wide_console()
    console.print(report.comparison_table(found))
    if not found.pairs:
        show(["no row is in both runs"])
    for code, mean in found.geometric_means.items():
        rows = sum(pair.code == code for pair in found.pairs)
        show([f"geometric mean of a/b, {code}: {mean:.3f} ({rows} row{'s' if rows > 1 else ''})"])
    for label, names in (("only in a", found.only_a), ("only in b", found.only_b)):
        show([f"{label}: {name}" for name in names])
    show([f"note: {note}" for note in found.notes])


@app.command("convert-state")
def convert_state_command(
    source: Path = typer.Argument(..., exists=True, dir_okay=False, metavar="IN", help="Prompt cache, session file or slot of llama-server."),
    target: Path = typer.Argument(..., dir_okay=False, metavar="OUT", help="Appears when it is complete; may be IN."),
    type_k: Optional[str] = typer.Option(None, "--type-k", metavar="TYPE", help="Cache type of K. Default: as it is."),
    type_v: Optional[str] = typer.Option(None, "--type-v", metavar="TYPE", help="Cache type of V. Default: as it is."),
    model: Optional[Path] = typer.Option(None, "--model", exists=True, dir_okay=False, help="GGUF file to take the head sizes from."),
    head_size_k: Optional[int] = typer.Option(None, "--head-size-k", min=1, help="Values of a K head."),
    head_size_v: Optional[int] = typer.Option(None, "--head-size-v", min=1, help="Values of a V head."),
    rotation: bool = typer.Option(True, "--rotation/--no-rotation", help="Whether llama.cpp rotates quantized caches (attn_rot)."),
    as_json: bool = _JSON,
) -> None:
    """Convert the cache rows of a saved state to another cache type. docs/STATES.md says when head sizes are needed."""
    from rich import progress as bars

    from . import states

    if type_k is None and type_v is None:
        raise typer.BadParameter("found neither --type-k nor --type-v, wanted at least one")
    names = [info.name for info in states.row_types()]
    for option, name in (("--type-k", type_k), ("--type-v", type_v)):
        if name is not None and name not in names:
            raise typer.BadParameter(f"{option}: found {name!r}, wanted one of {', '.join(names)}")
    if model and (head_size_k or head_size_v):
        raise typer.BadParameter("found --model and a head size, wanted one of them")
    try:
        heads = states.model_head_sizes(model) if model else states.HeadSizes(head_size_k, head_size_v)
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn(), bars.TimeRemainingColumn())
        with bars.Progress(*columns, console=Console(stderr=True), disable=as_json or not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task(f"converting {source.name}", total=None)
            done = states.convert_state(
                source, target, type_k, type_v, heads, rotation, lambda now, total: bar.update(task, completed=now, total=total)
            )
    except (states.StateError, OSError) as problem:
        text = str(problem) if isinstance(problem, states.StateError) else f"{problem.filename}: {problem.strerror}"
        if as_json:
            show_json({"command": "convert-state", "ok": False, "error": text})
        else:
            show([f"error: {text}. Nothing was written."], error=True)
        raise typer.Exit(1) from None
    if as_json:
        show_json({"command": "convert-state", "ok": True, **vars(done)})
        return
    turned = ", rotated or rotated back as llama.cpp's caches are" if done.rotated else ""
    turned += ", keys no longer centered" if done.uncentered else ""
    show([
        f"{done.kind}, {done.cells} cached tokens{turned}",
        *(f"{which} {', '.join(a) or 'none'} -> {', '.join(b) or 'none'}"
          for which, a, b in (("K", done.from_k, done.to_k), ("V", done.from_v, done.to_v))),
        f"{done.bytes_before} -> {done.bytes_after} bytes",
    ])  # fmt: skip


def _status_data(status) -> dict:
    return {
        "state": status.state,
        "version": status.version,
        "current": status.current,
        "upstream": status.upstream,
        "files": [{"path": path, "state": word} for path, word in status.files],
    }


lab_commands.add_to(app)
