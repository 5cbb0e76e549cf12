# SPDX-License-Identifier: MIT
"""The lab's part of the command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import statistics
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import typer
from rich.console import Console
from rich.text import Text

from .. import fetch
from .._gguf_file import GgufError
from .._quickstart_options import available_threads
from .._steps import Progress, StepFailed, Steps
from ..bench.reference import default_work_dir
from ..patch import PatchError
from . import LabError


@contextlib.contextmanager
def _failing(stop: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Turns what can go wrong into a sentence and an exit code; `stop` clears a line of progress before."""
    lines = []
    try:
        yield
        return
    except StepFailed as error:
        lines = [f"error: {error.step}: {error}", *([f"  log {error.log}"] if error.log else [])]
    except (LabError, GgufError, PatchError, fetch.FetchError, OSError) as error:
        lines = [f"error: {error}"]
    except KeyboardInterrupt:
        lines = ["interrupted: the same command goes on where it stopped"]
    stop()
    for line in lines:
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text(line))
    raise typer.Exit(130 if lines[0].startswith("interrupted") else 1)


def _console() -> Console:
    """A console that never cuts columns: a narrow terminal wraps the lines of a table instead."""
    return Console(highlight=False, width=max(Console().width, 180))


def _say(console: Console, word: str, sentences: List[str], style: str) -> None:
    for sentence in sentences:
        console.print(Text(f"{word} {sentence}", style=style), soft_wrap=True)


def _words(text: str, allowed: List[str], what: str) -> List[str]:
    words = [word.strip() for word in text.split(",")]
    if not set(words) <= set(allowed):
        raise typer.BadParameter(f"{what}: found {text!r}, wanted some of {', '.join(allowed)}")
    return list(dict.fromkeys(words))


def _centers(text: str) -> List[str]:
    from .runs import CENTERS

    words = [word if word in CENTERS else str(Path(word).resolve()) for word in (word.strip() for word in text.split(","))]
    if not all(word in CENTERS or Path(word).is_file() for word in words):
        raise typer.BadParameter(f"--kv-center: found {text!r}, wanted some of {', '.join(CENTERS)}, and files that `pyggmlq calibrate` has made")
    return list(dict.fromkeys(words))


def _numbers(text: str, least: int, what: str) -> List[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) >= least for word in words):
        raise typer.BadParameter(f"{what}: found {text!r}, wanted numbers from {least} up, separated by commas")
    return list(dict.fromkeys(map(int, words)))


def _pairs(text: str, option: str, most: int = 1000) -> List[Any]:
    from . import kld

    try:
        found = kld.parse_pairs(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None
    if len(found) > most:
        raise typer.BadParameter(f"{option}: found {text!r}, wanted one pair")
    return found


def _check_sources(models: List[str], programs: Optional[Path], tree: Optional[Path], cmake: List[str]) -> None:
    """Models that exist, and one way to get programs."""
    if programs and (tree or cmake):
        raise typer.BadParameter("--programs: found --tree or --cmake beside it, wanted one way to get programs")
    for name in models:
        if name not in fetch.MODELS and not Path(name).is_file():
            raise typer.BadParameter(f"MODEL: found {name!r}, wanted a GGUF file or one of {', '.join(fetch.MODELS)}")


def _extra(device: str, llama_args: str) -> tuple:
    return (*(["--device", device] if device else []), *shlex.split(llama_args))


@contextlib.contextmanager
def _working(work_dir: Optional[Path], what: str) -> Iterator[Any]:
    """(work folder, steps), locked against a second run of the same command; failures become sentences."""
    work = (work_dir or default_work_dir() / "lab").resolve()
    progress = Progress(sys.stderr)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end, too, takes running programs along
    with _failing(progress.clear):
        steps = Steps(work / "steps", progress)
        with (work / f"{what}.lock").open("w") as lock:
            progress.update(f"waiting for another run in {work}")
            fetch.lock_file(lock)
            yield work, steps
    progress.clear()


_TREE = typer.Option(
    None, "--tree", exists=True, file_okay=False, resolve_path=True,
    help="Your llama.cpp: patched in place and built in the work folder. Default: a pinned version.",
)  # fmt: skip
_CMAKE = typer.Option([], "--cmake", metavar="ARG", help="Further CMake argument, e.g. --cmake=-DGGML_CUDA=ON.")
_PROGRAMS = typer.Option(
    None, "--programs", exists=True, file_okay=False, resolve_path=True, help="Folder of programs that you have built; nothing is built then."
)
_ATTN_ROT = typer.Option("on", "--attn-rot", metavar="on,off", help="llama.cpp's own rotation of quantized caches.")
_KV_CENTER = typer.Option("auto", "--kv-center", metavar="off,auto", help="Centered keys (docs/CENTERING.md): auto, llama.cpp's own default, for those of our types; off for none; all for any; a file of `calibrate`.")
_DEVICE = typer.Option("", "--device", help="llama.cpp's --device: where the model and its cache lie.")
_LLAMA_ARGS = typer.Option("", "--llama-args", metavar="'..'", help="Further arguments of llama.cpp, e.g. '-ngl 99'.")
_JSON = typer.Option(None, "--json", dir_okay=False, help="Write every figure to this file, after each run.")
_WORK_DIR = typer.Option(None, "--work-dir", file_okay=False, help="For tree, build, models and results.")
_THREADS = typer.Option(available_threads(), "--threads", min=1)


def kld_command(
    model: List[str] = typer.Argument(
        ..., metavar="MODEL..", help=f"GGUF files, or names of pinned models, which are fetched: {', '.join(fetch.MODELS)}."
    ),
    text: Optional[Path] = typer.Option(
        None, "--text", exists=True, dir_okay=False, help="Text to measure on. Default: prose of the tree's own documents."
    ),
    pairs: str = typer.Option("", "--pairs", metavar="K/V,..", help="Cache types; one name stands for both sides. Default: 15 pairs."),
    context: str = typer.Option("512", "--context", metavar="N,..", help="Windows of that many tokens."),
    windows: int = typer.Option(16, "--windows", min=1, help="Windows per run; the second half of each is scored."),
    attn_rot: str = _ATTN_ROT,
    kv_center: str = _KV_CENTER,
    device: str = _DEVICE,
    llama_args: str = _LLAMA_ARGS,
    at_once: int = typer.Option(0, "--at-once", min=0, metavar="N", help="Measure so many pairs at a time, beside a run of the reference, whose distributions go through pipes instead of a large file."),
    kept: bool = typer.Option(False, "--kept", help="Run nothing: show and write what earlier runs of the same grid, or of its parts, measured."),
    tree: Optional[Path] = _TREE,
    cmake: List[str] = _CMAKE,
    programs: Optional[Path] = _PROGRAMS,
    threads: int = _THREADS,
    json_file: Optional[Path] = _JSON,
    work_dir: Optional[Path] = _WORK_DIR,
) -> None:  # fmt: skip
    """Measure perplexity and KLD of cache types on a model, against its f16 cache."""
    from . import kld, record, tables

    _check_sources(model, programs, tree, cmake)
    if at_once and os.name == "nt":
        raise typer.BadParameter("--at-once: found Windows, whose programs can't inherit pipes by number, wanted Linux or macOS: leave it out")
    contexts = _numbers(context, 256, "--context")  # llama-perplexity gives no statistics on fewer
    rotations, centers = _words(attn_rot, ["on", "off"], "--attn-rot"), _centers(kv_center)
    with _working(work_dir, "kld") as (work, steps):
        chosen = _pairs(pairs, "--pairs") if pairs else kld.default_pairs()
        options = kld.Options(
            models=tuple(model), text=text, pairs=tuple(chosen), contexts=tuple(contexts), windows=windows, rotations=tuple(rotations), centers=tuple(centers),
            kept=kept, at_once=at_once, threads=threads, work_dir=work, tree=tree, programs=programs, cmake=cmake, extra=_extra(device, llama_args),
        )  # fmt: skip
        data = kld.run(options, steps, lambda data: record.write(json_file, data) if json_file else None)
        if kept and not data["rows"]:
            raise LabError(f"found no kept result of these models, programs, text and options in {work}")
    console = _console()
    for place in dict.fromkeys((row["model"], row["n_ctx"]) for row in data["rows"]):
        console.print()
        console.print(tables.kld(data["rows"], *place))
    console.print(Text(tables.KLD_LEGEND, style="dim"), soft_wrap=True)
    _say(console, "note:", data["notes"], "yellow")
    _say(console, "ALARM", data["alarms"], "bold red")
    if data["alarms"]:
        raise typer.Exit(1)


def _size(text: str) -> str:
    from . import fit

    try:
        fit.parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def fit_command(
    model: Path = typer.Argument(..., exists=True, dir_okay=False, metavar="MODEL", help="A GGUF file; of a split model the first."),
    memory: Optional[str] = typer.Option(None, "--memory", metavar="SIZE", callback=lambda text: text and _size(text), help="For weights, cache and the rest, e.g. 24G."),
    context: Optional[int] = typer.Option(None, "--context", min=1, help="Show the sizes at this context instead of the longest one."),
    reserve: str = typer.Option("1G", "--reserve", metavar="SIZE", callback=_size, help="Of --memory, for what is neither: compute buffers, other programs."),
    pairs: str = typer.Option("", "--pairs", metavar="K/V,..", help="Cache types; one name stands for both sides."),
    ubatch: int = typer.Option(512, "--ubatch", min=1, help="llama.cpp's -ub, on which the cache of sliding windows depends."),
    cuda: bool = typer.Option(False, "--cuda", help="Also count what prefill on CUDA works with: the mask, an f16 copy of one layer."),
    layers: bool = typer.Option(False, "--layers", help="Also list the layers."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of text."),
) -> None:  # fmt: skip
    """Say how much memory each cache type takes on a model, and the longest context that fits into --memory."""
    from . import fit, kld, tables

    if (memory is None) == (context is None):
        raise typer.BadParameter("found both or none of --memory and --context, wanted one of them")
    with _failing():
        try:
            chosen = kld.parse_pairs(pairs) if pairs else fit.default_pairs()
        except ValueError as error:
            raise typer.BadParameter(f"--pairs: {error}") from None
        found = fit.read(model)
        budget = None
        if memory is not None:
            budget = fit.parse_size(memory) - found.weight_bytes - fit.parse_size(reserve)
            if budget <= 0:
                raise LabError(
                    f"{model.name} has {found.weight_bytes / fit.MIB:.0f} MiB of weights, which with {reserve} of --reserve is more than {memory}: "
                    "a part of the model would have to lie elsewhere"
                )
        rows = [fit.row(found, case, budget, context, ubatch, cuda) for case in chosen]
    if as_json:
        fields = {key: value for key, value in vars(found).items() if key not in ("layers", "notes")}
        typer.echo(json.dumps({"command": "fit", "ok": True, "model": fields, "notes": found.notes, "budget_bytes": budget,
                               "layers": [vars(layer) for layer in found.layers], "rows": rows}, indent=1))  # fmt: skip
        return
    console = _console()
    title = f"{found.name} ({found.architecture}), trained for {found.n_ctx_train} tokens; weights {found.weight_bytes / fit.MIB:.0f} MiB"
    if budget is not None:
        title += f", which leaves {budget / fit.MIB:.0f} MiB for the cache; the longest contexts:"
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(tables.fit(rows))
    if layers:
        for layer in found.layers:
            window = f"window {found.window}" if layer.windowed else "full"
            console.print(f"layer {layer.index:3}  {window:<12} K {layer.k_values:6} V {layer.v_values:6} values a token, state {layer.state_bytes} bytes")
    notes = [*found.notes, *dict.fromkeys(row["refused"] for row in rows if row["refused"])]
    if found.n_ctx_train and any((row["n_ctx"] or 0) > found.n_ctx_train for row in rows):
        notes.append(f"contexts above {found.n_ctx_train} fit, but the model wasn't trained for them")
    _say(console, "note:", notes, "yellow")


def dump_command(
    model: str = typer.Argument(..., metavar="MODEL", help=f"A GGUF file, or the name of a pinned model: {', '.join(fetch.MODELS)}."),
    text: Path = typer.Option(..., "--text", exists=True, dir_okay=False, help="Text to run the model on."),
    output: Path = typer.Option(..., "--output", "-o", dir_okay=False, help="The .safetensors file to write."),
    pair: str = typer.Option("f16", "--pair", metavar="K/V", help="Cache types; one name stands for both sides."),
    context: int = typer.Option(512, "--context", min=32, help="Windows of that many tokens."),
    windows: int = typer.Option(2, "--windows", min=1, help="Windows, from the start of the text on."),
    tokens: Optional[int] = typer.Option(None, "--tokens", min=16, help="Keep so many tokens of each window, spread evenly. Default: all."),
    attn_rot: str = typer.Option("on", "--attn-rot", metavar="on|off", help="llama.cpp's own rotation of quantized caches."),
    device: str = _DEVICE,
    llama_args: str = _LLAMA_ARGS,
    tree: Optional[Path] = _TREE,
    cmake: List[str] = _CMAKE,
    programs: Optional[Path] = _PROGRAMS,
    threads: int = _THREADS,
    work_dir: Optional[Path] = typer.Option(None, "--work-dir", file_okay=False, help="For tree, build, models and unfinished windows."),
) -> None:  # fmt: skip
    """Write the rows of Q, K and V that a model makes of a text, per layer and head, to a .safetensors file."""
    from . import dump

    _check_sources([model], programs, tree, cmake)
    if output.suffix != ".safetensors":
        raise typer.BadParameter(f"--output: found {output.name!r}, wanted a name that ends in .safetensors")
    rotation = _words(attn_rot, ["on", "off"], "--attn-rot")
    if len(rotation) != 1:
        raise typer.BadParameter(f"--attn-rot: found {attn_rot!r}, wanted on or off")
    (case,) = _pairs(pair, "--pair", 1)
    with _working(work_dir, "dump") as (work, steps):
        metadata = dump.run(dump.Options(
            model=model, text=text, out=output, case=case, n_ctx=context, windows=windows, tokens=min(tokens or context, context),
            attn_rot=rotation[0], threads=threads, work_dir=work, tree=tree, programs=programs, cmake=cmake, extra=_extra(device, llama_args),
        ), steps)  # fmt: skip
    found = metadata["options"]["windows"]
    typer.echo(f"wrote {output}: {found} windows of {context} tokens, {output.stat().st_size / 1e6:.0f} MB; `pyggmlq eval {output}` reads it")
    if found < windows:
        typer.echo(f"note: the text gave only {found} of {windows} windows")


def calibrate_command(
    model: str = typer.Argument(..., metavar="MODEL", help=f"A GGUF file, or the name of a pinned model: {', '.join(fetch.MODELS)}."),
    text: Path = typer.Option(..., "--text", exists=True, dir_okay=False, help="Text like what the model will read."),
    output: Path = typer.Option(..., "--output", "-o", dir_okay=False, help="The file to write, MODEL.kv.gguf for example."),
    tokens: int = typer.Option(8192, "--tokens", min=64, help="Of the text, from its beginning; more change little."),
    device: str = _DEVICE,
    llama_args: str = _LLAMA_ARGS,
    tree: Optional[Path] = _TREE,
    cmake: List[str] = _CMAKE,
    programs: Optional[Path] = _PROGRAMS,
    threads: int = _THREADS,
    work_dir: Optional[Path] = typer.Option(None, "--work-dir", file_okay=False, help="For tree, build and models."),
) -> None:  # fmt: skip
    """Write a calibration of centered keys (docs/CENTERING.md) to a small GGUF file, for `--kv-center FILE` of a patched llama.cpp."""
    from . import calibrate

    _check_sources([model], programs, tree, cmake)
    if output.suffix != ".gguf":
        raise typer.BadParameter(f"--output: found {output.name!r}, wanted a name that ends in .gguf")
    with _working(work_dir, "calibrate") as (work, steps):
        done = calibrate.run(calibrate.Options(
            model=model, text=text, out=output, tokens=tokens, threads=threads, work_dir=work, tree=tree, programs=programs, cmake=cmake,
            extra=_extra(device, llama_args),
        ), steps)  # fmt: skip
    typer.echo(f"wrote {output}: {done.layers} layers on {done.tokens} tokens; use it with --kv-center {output}")
    if done.errors:
        told = (f"{name} {statistics.median(values):.3f} ({max(values):.3f})" for name, values in done.errors.items())
        typer.echo(f"expected error of a score with K of each type, median of layers (worst): {', '.join(told)}")
    if done.left:
        typer.echo(f"note: {done.left}")
    if done.tokens < tokens:
        typer.echo(f"note: the text gave only {done.tokens} of {tokens} tokens")


def needle_command(
    model: List[str] = typer.Argument(..., metavar="MODEL..", help=f"GGUF files, or names of pinned models: {', '.join(fetch.MODELS)}."),
    text: Optional[Path] = typer.Option(None, "--text", exists=True, dir_okay=False, help="The haystack. Default: prose of the tree's own documents."),
    pairs: str = typer.Option("f16,q8_0,q4_0,tq3_0,q8_0/tq3_0", "--pairs", metavar="K/V,..", help="Cache types; one name stands for both sides."),
    context: str = typer.Option("512", "--context", metavar="N,..", help="Length of the haystack in tokens."),
    depths: str = typer.Option("0,25,50,75,100", "--depths", metavar="PERCENT,..", help="Where the needle lies; 0 is the beginning."),
    needles: int = typer.Option(8, "--needles", min=1, help="Needles at each depth."),
    attn_rot: str = _ATTN_ROT,
    kv_center: str = _KV_CENTER,
    device: str = _DEVICE,
    llama_args: str = _LLAMA_ARGS,
    tree: Optional[Path] = _TREE,
    cmake: List[str] = _CMAKE,
    programs: Optional[Path] = _PROGRAMS,
    threads: int = _THREADS,
    json_file: Optional[Path] = _JSON,
    work_dir: Optional[Path] = _WORK_DIR,
) -> None:  # fmt: skip
    """Hide a fact at several depths of a text and measure how well a model finds it again with each cache type."""
    from . import needle, record, tables

    _check_sources(model, programs, tree, cmake)
    chosen = _pairs(pairs, "--pairs")
    contexts, places = _numbers(context, 128, "--context"), _numbers(depths, 0, "--depths")
    if max(places) > 100:
        raise typer.BadParameter(f"--depths: found {depths!r}, wanted percent of the haystack, 0 to 100")
    rotations, centers = _words(attn_rot, ["on", "off"], "--attn-rot"), _centers(kv_center)
    with _working(work_dir, "needle") as (work, steps):
        options = needle.Options(
            models=tuple(model), text=text, pairs=tuple(chosen), contexts=tuple(contexts), depths=tuple(places), needles=needles,
            rotations=tuple(rotations), centers=tuple(centers), threads=threads, work_dir=work, tree=tree, programs=programs, cmake=cmake, extra=_extra(device, llama_args),
        )  # fmt: skip
        data = needle.run(options, steps, lambda data: record.write(json_file, data) if json_file else None)
    console = _console()
    for place in dict.fromkeys((row["model"], row["n_ctx"]) for row in data["rows"]):
        console.print()
        console.print(tables.needle(data["rows"], *place))
    console.print(Text(tables.NEEDLE_LEGEND, style="dim"), soft_wrap=True)
    _say(console, "note:", data["notes"], "yellow")


def eval_command(
    data: Optional[List[str]] = typer.Argument(None, metavar="[DATA]..", help="Made data by name, .npy and .safetensors files; or one dump of `dump-kv`. Default: all that can be made."),
    only: str = typer.Option("", "--only", metavar="REGEX", help="Codecs whose name matches; --list shows them."),
    n_rows: int = typer.Option(2048, "--rows", min=64, help="Rows of each set; of a larger file that many at random."),
    width: int = typer.Option(512, "--width", min=32, help="Values of a made row."),
    n_queries: int = typer.Option(64, "--queries", min=1, help="Queries that attention errors are averaged over."),
    seed: int = typer.Option(0, "--seed", min=0),
    list_codecs: bool = typer.Option(False, "--list", help="List data sets and codecs, and stop."),
    json_file: Optional[Path] = typer.Option(None, "--json", dir_okay=False, help="Write every figure to this file."),
    csv_file: Optional[Path] = typer.Option(None, "--csv", dir_okay=False, help="Also as comma-separated values."),
    plot_file: Optional[Path] = typer.Option(None, "--plot", dir_okay=False, help="Draw error against bits: .png, .svg or .pdf."),
) -> None:  # fmt: skip
    """Compare codecs on rows of values, without a model: ours, ggml's and published methods."""
    import numpy as np
    from rich.progress import Progress as Bar

    from . import attention, codecs, dump, evaluate, plots, record, tables
    from . import data as sources

    with _failing():
        try:
            chosen = [codec for codec in codecs.all_codecs() if re.search(only, codec.name)]
        except re.error as error:
            raise typer.BadParameter(f"--only: found {only!r}, wanted a regular expression ({error})") from None
        if not chosen:
            raise typer.BadParameter(f"--only: no codec matches {only!r}; --list shows them")
        if list_codecs:
            lines = [f"{name:<16} {made.__doc__}" for name, made in sources.MADE.items()] + [codec.name for codec in chosen]
            for line in lines:
                typer.echo(line)
            return
        if plot_file:
            plots.check(plot_file)
        dumps = [Path(name) for name in data or () if Path(name).is_file() and dump.is_dump(Path(name))]
        if dumps and len(data or ()) > 1:
            raise typer.BadParameter(f"DATA: found the dump {dumps[0]} beside other data, wanted it alone")
        if dumps:
            _eval_dump(dumps[0], chosen if only else attention.default_codecs(), n_queries, json_file, csv_file, plot_file)
            return
        chosen = [codec for codec in chosen if not codec.centered]
        if not chosen:
            raise typer.BadParameter(f"--only: found {only!r}, which names centered keys (c+) alone, wanted a dump of `dump-kv` beside it: made rows have no positions")
        sets = {}
        for name in data or sources.MADE:
            if name in sources.MADE:
                sets[name] = sources.MADE[name](np.random.default_rng(seed), n_rows, width)
            elif Path(name).is_file():
                sets.update(sources.load(Path(name), n_rows, seed))
            else:
                raise typer.BadParameter(f"DATA: found {name!r}, wanted a file or one of {', '.join(sources.MADE)}")
        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=len(sets) * len(chosen))

            def step(text: str) -> None:
                bar.update(task, description=text, advance=1)

            rows, notes = evaluate.run(sets, chosen, lambda n: evaluate.queries(n_queries, n, seed), step)
        options = {"rows": n_rows, "width": width, "queries": n_queries, "seed": seed, "only": only}
        result = {**record.start(record.EVAL, options=options, notes=notes), "rows": rows}
        if json_file:
            record.write(json_file, result)
        if csv_file:
            record.write_csv(csv_file, rows)
        if plot_file:
            plots.save(plots.evaluation(rows), plot_file)
    console = _console()
    for name in dict.fromkeys(row["data"] for row in rows):
        console.print()
        console.print(tables.evaluation(rows, name))
    console.print(Text(tables.EVAL_LEGEND, style="dim"), soft_wrap=True)
    _say(console, "note:", notes, "yellow")


def _eval_dump(path: Path, chosen: List[Any], n_queries: int, json_file: Optional[Path], csv_file: Optional[Path], plot_file: Optional[Path]) -> None:
    """`eval` of the rows of a model."""
    from rich.progress import Progress as Bar

    from . import attention, dump, plots, record, tables

    rows = dump.Dump(path)
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(rows.layers))
        found = attention.run(rows, chosen, n_queries, lambda text: bar.update(task, description=text, advance=1))
    result = {**record.start(record.ATTENTION, queries=n_queries, dump=rows.facts, model=rows.facts["model"], text=rows.facts["text"]), **found}
    if json_file:
        record.write(json_file, result)
    if csv_file:
        record.write_csv(csv_file, found["rows"])
    if plot_file:
        plots.save(plots.heat(found["rows"]), plot_file)
    console = _console()
    console.print(tables.attention(attention.summary(found["rows"]), path.name))
    console.print(Text(tables.ATTENTION_LEGEND, style="dim"), soft_wrap=True)
    _say(console, "note:", found["notes"], "yellow")


def report_command(
    files: List[Path] = typer.Argument(..., exists=True, dir_okay=False, metavar="FILE..", help="JSON of `kld`, `eval`, `needle` and `bench`; GGUF files for their memory."),
    output: List[Path] = typer.Option(
        [Path("report.html")], "--output", "-o", dir_okay=False, help="A page (.html), text (.md) or a drawing (.png); may be repeated."
    ),
) -> None:  # fmt: skip
    """Make one page of results: what to use, quality against size, speed, and where every figure comes from."""
    from . import report

    with _failing():
        for out in output:  # a wrong name must not be found behind a page that is written
            report.check(out)
        for out in output:
            report.write(files, out)
            typer.echo(f"wrote {out}")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program's."""
    app.command("kld")(kld_command)
    app.command("dump-kv")(dump_command)
    app.command("calibrate")(calibrate_command)
    app.command("needle")(needle_command)
    app.command("fit")(fit_command)
    app.command("eval")(eval_command)
    app.command("report")(report_command)
