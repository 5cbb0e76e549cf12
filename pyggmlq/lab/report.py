# SPDX-License-Identifier: MIT
"""One page from what `pyggmlq kld`, `eval`, `needle` and `bench` found, and from models' memory: HTML that needs nothing beside
itself, or Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from .._files import write_atomically
from .._pairs import OURS
from ..bench import record as bench_record
from . import LabError, attention, fit, plots, record
from .tables import key, number, rotated

KINDS = (".html", ".md", ".png")


@dataclass
class Table:
    """Cells as text; the first `n_left` columns are words, the others numbers."""

    head: Sequence[str]
    rows: list[Sequence[str]]
    n_left: int = 1


@dataclass
class Section:
    """A heading, sentences, lists of sentences by heading, drawings and tables, in this order."""

    title: str
    text: list[str] = field(default_factory=list)
    drawings: list[Callable[[], Any]] = field(default_factory=list)
    """Each gives a matplotlib figure, or None if there is nothing to draw. Text needs none of them."""
    tables: list[Table] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)


def check(out: Path) -> None:
    """`LabError` if `out` has an ending that `write` doesn't know."""
    if out.suffix.lower() not in KINDS:
        raise LabError(f"{out}: found the ending {out.suffix!r}, wanted one of {', '.join(KINDS)}")


def write(files: Sequence[Path], out: Path) -> None:
    """Read `files`, records of the lab and of `bench`, or GGUF files, and replace `out` (.html, .md, .png) by the page.

    A .png holds the first drawing only: KLD against memory at every context, if there is any, else the page's first. `LabError` for a file that is none of these, and if there is nothing to draw.
    """
    check(out)
    models = [fit.read(path) for path in files if path.suffix.lower() == ".gguf"]
    records = [record.read(path) for path in files if path.suffix.lower() != ".gguf"]
    if out.suffix.lower() == ".png":
        for data in records:
            if data["format"] == record.KLD and places(data):
                plots.save(plots.kld(data["rows"], places(data)), out)
                return
        figure = next((figure for section in sections(records, models) for figure in (draw() for draw in section.drawings) if figure is not None), None)
        if figure is None:
            raise LabError(f"{out}: found nothing to draw in {', '.join(path.name for path in files)}, wanted results of `pyggmlq kld`, `eval` or `bench`, or a model")
        plots.save(figure, out)
        return
    page = sections(records, models)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, as_html(page) if out.suffix.lower() == ".html" else as_markdown(page))


def sections(records: Sequence[dict[str, Any]], models: Sequence[fit.Model] = ()) -> list[Section]:
    """The page, most important first: advice, quality on models, memory, codecs on data, speed, and what it was measured with."""
    kinds = (record.KLD, record.EVAL, record.ATTENTION, record.NEEDLE, record.BENCH, record.BENCH_LLAMA)
    by_kind = {kind: [data for data in records if data["format"] == kind] for kind in kinds}
    advice, wrong = {}, []
    for i, data in enumerate(by_kind[record.KLD], 1):
        if data.get("alarms"):
            wrong.append("ALARM: some results can't be right, so trust none of what follows: " + "; ".join(data["alarms"]))
        for place, sentences in recommendations(data).items():
            # Two records of one model and context don't share a reference: each has advice of its own.
            advice[place if place not in advice else f"{place} (record {i}, {', '.join(devices(data, data['rows']))})"] = sentences
    found = [Section("What to use", wrong, lists=advice)] if advice or wrong else []
    found += [section for data in by_kind[record.KLD] for section in _kld_sections(data)]
    found += [section for data in by_kind[record.NEEDLE] for section in _needle_sections(data)]
    found += [section for data in by_kind[record.ATTENTION] for section in _attention_sections(data)]
    found += [_memory_section(model) for model in models]
    found += [section for data in by_kind[record.BENCH_LLAMA] for section in _bench_llama_sections(data)]
    found += [section for data in by_kind[record.EVAL] for section in _eval_sections(data)]
    found += [section for data in by_kind[record.BENCH] for section in _bench_sections(data)]
    return [*found, _origin(records)] if records else found


# Advice --------------------------------------------------------------------------------------------------------------


def places(data: dict[str, Any]) -> list[tuple[str, int]]:
    """(model, context) of a kld record, in order, where anything but the reference was measured."""
    return list(dict.fromkeys((row["model"], row["n_ctx"]) for row in data["rows"] if _measured(row)))


def _measured(row: dict[str, Any]) -> bool:
    return not row["refused"] and (row["k"], row["v"]) != ("f16", "f16")


def _size(row: dict[str, Any]) -> float:
    return row["mib_k"] + row["mib_v"]


def _loss(row: dict[str, Any]) -> float:
    return row["kld"]


def _size_and_loss(row: dict[str, Any]) -> tuple[float, float]:
    """Of two of one size the better: a type with and without centering."""
    return _size(row), row["kld"]


def recommendations(data: dict[str, Any]) -> dict[str, list[str]]:
    """Sentences that follow from the rows of a kld record, by model and context: what is best at a size, what is smallest, and
    where the loss is."""
    found = {}
    for model, n_ctx in places(data):
        here = [row for row in data["rows"] if (row["model"], row["n_ctx"], row["attn_rot"]) == (model, n_ctx, "on") and not row["refused"]]
        reference = next((row for row in here if (row["k"], row["v"]) == ("f16", "f16")), None)
        rows = [row for row in here if row is not reference and row["kld"] is not None]
        if reference is None or not rows:
            continue
        unrotated = [row for row in data["rows"] if (row["model"], row["n_ctx"], row["attn_rot"]) == (model, n_ctx, "off") and row.get("kld") is not None]
        found[f"{model}, context {n_ctx}"] = [*_advice(rows, reference), *_rotation_advice(rows, unrotated)]
    return found


def _advice(rows: list[dict[str, Any]], reference: dict[str, Any]) -> Iterator[str]:
    by_pair = {(key(row), row["v"]): row for row in rows}
    known = by_pair.get(("q4_0", "q4_0"))
    told: list[dict[str, Any]] = []
    if known:
        told.append(known)
        better = [row for row in rows if row["kld"] <= known["kld"] and row is not known]
        smaller = [row for row in better if _size(row) < _size(known)]
        if smaller:
            told.append(min(smaller, key=_size_and_loss))
            yield f"{_described(told[-1], reference)}: smaller than q4_0 for both, and no worse ({_described(known, reference)})."
        else:
            yield f"Nothing measured is smaller than q4_0 for both and as good ({_described(known, reference)})."
            if better:
                told.append(min(better, key=_size_and_loss))
                yield f"Better, and the smallest that is: {_described(told[-1], reference)}."
    careful = [by_pair["q8_0", name] for name in OURS if ("q8_0", name) in by_pair]
    for lead, candidates, order in (("With keys of 8 bits", careful, _loss), ("The smallest cache", rows, _size_and_loss)):
        row = min(candidates, key=order, default=None)
        if row is not None and not any(row is other for other in told):
            told.append(row)
            yield f"{lead}: {_described(row, reference)}."
    for k_only in (row for row in rows if row["k"] in OURS and row["v"] == "f16"):
        v_only = by_pair.get(("f16", k_only["k"]))
        if v_only and v_only["kld"] > 0:
            times = k_only["kld"] / v_only["kld"]
            yield f"{key(k_only)} in K costs {times:.1f} times what {'it' if key(k_only) == k_only['k'] else k_only['k']} costs in V (mean KLD {k_only['kld']:.4f} and {v_only['kld']:.4f})."
    for (k, v), row in by_pair.items():
        plain = by_pair.get((row["k"], v))
        if k != row["k"] and plain:
            yield f"K {row['k']}, V {v}: centering K makes the mean KLD {row['kld']:.4f}±{row['kld_error']:.4f} instead of {plain['kld']:.4f}±{plain['kld_error']:.4f}."


def _rotation_advice(rows: list[dict[str, Any]], unrotated: list[dict[str, Any]]) -> Iterator[str]:
    """Pairs that do better without llama.cpp's rotation, by more than three standard errors."""
    by_pair = {(key(row), row["v"]): row for row in rows}
    for off in unrotated:
        on = by_pair.get((key(off), off["v"]))
        if on and off["kld"] + 3 * (off["kld_error"] + on["kld_error"]) < on["kld"]:
            yield f"K {key(off)}, V {off['v']} is better without llama.cpp's attn_rot: mean KLD {off['kld']:.4f} instead of {on['kld']:.4f}."


def _described(row: dict[str, Any], reference: dict[str, Any]) -> str:
    return (
        f"K {key(row)}, V {row['v']}: mean KLD {row['kld']:.4f}±{row['kld_error']:.4f}, perplexity × {number(row['ppl_ratio'], 3)}, "
        f"{row['same_top']:.1f} % same top token, {_size(reference) / _size(row):.1f} × smaller than f16"
    )


# Sections ------------------------------------------------------------------------------------------------------------


def _kld_sections(data: dict[str, Any]) -> Iterator[Section]:
    head = ("K", "V", "rotated", "bits K", "bits V", "MiB", "PPL / f16's", "mean KLD", "median", "99.9 %", "max", "same top")
    for model, n_ctx in places(data):
        rows = [row for row in data["rows"] if (row["model"], row["n_ctx"]) == (model, n_ctx)]
        table = Table(head, [], 3)
        for row in rows:
            if not row["refused"]:
                table.rows.append((
                    key(row), row["v"], rotated(row), f"{row['bits_k']:g}", f"{row['bits_v']:g}", f"{_size(row):.2f}",
                    f"{number(row['ppl_ratio'], 4)} ± {number(row['ppl_ratio_error'], 4)}", f"{number(row['kld'], 4)} ± {number(row['kld_error'], 4)}",
                    number(row["kld_median"], 4), number(row["kld_999"], 3), number(row["kld_max"], 2), f"{row['same_top']:.1f} %",
                ))  # fmt: skip
        windows = max(row["windows"] or 0 for row in rows)
        where = ", ".join(devices(data, rows))
        text = [f"{windows} window{'s' * (windows > 1)} of {n_ctx} tokens on {where}; KLD in nats against the f16 cache. “rotated”: sides that llama.cpp's attn_rot turned."]
        text += [f"Refused: {sentence}." for sentence in dict.fromkeys(row["refused"] for row in rows if row["refused"])]
        yield Section(f"Quality: {model}, context {n_ctx}", text, [partial(plots.kld, data["rows"], [(model, n_ctx)])], [table])


def devices(data: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of what `rows` of a record were computed on."""
    cpu = data["machine"]["cpu"]
    return list(dict.fromkeys(cpu if row.get("device") in (None, "CPU") else row["device"] for row in rows if not row.get("refused"))) or [cpu]


def _needle_sections(data: dict[str, Any]) -> Iterator[Section]:
    for model, n_ctx in dict.fromkeys((row["model"], row["n_ctx"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if (row["model"], row["n_ctx"]) == (model, n_ctx) and not row["refused"]]
        if not rows:
            continue
        reference = {row["depth"]: row["nll"] for row in rows if (row["k"], row["v"]) == ("f16", "f16")}
        table = Table(("K", "V", "attn_rot", "depth", "needles", "found", "NLL", "above f16", "NLL without"), [
            (key(row), row["v"], row["attn_rot"], f"{row['depth']} %", str(row["needles"]), f"{100 * row['found']:.0f} %", number(row["nll"], 2),
             number(row["nll"] - reference[row["depth"]], 2) if row["depth"] in reference else "–", number(row["nll_without"], 2))
            for row in rows
        ], 3)  # fmt: skip
        text = ["A number hidden at a depth of a passage (0 %: its beginning) and asked for at the end. NLL: -log p of the right number, in nats; "
                "found: greedy decoding gives it; without: the same question where the number is not in the passage."]  # fmt: skip
        yield Section(f"Needle in a haystack: {model}, {n_ctx} tokens", text, [], [table])


def _telling(data: dict[str, Any]) -> list[str]:
    """Codecs of an attention record that a heat map is drawn for: ours and q4_0, without and with a rotation before, and centered."""
    names = [*OURS, "q4_0"]
    found = {row["codec"] for row in data["rows"]}
    return [name for base in names for name in (base, f"h+{base}", f"c+h+{base}") if name in found] or sorted(found)[:6]


def _attention_sections(data: dict[str, Any]) -> Iterator[Section]:
    rows, name = data["rows"], data["model"]["name"] or data["model"]["file"]
    means = attention.summary(rows)
    telling = _telling(data)
    sentences = []
    for row in means:
        if row["codec"] in telling and row["v_output"]:
            here = sorted((one for one in rows if one["codec"] == row["codec"]), key=lambda one: -one["k_kld"])
            few = here[: max(3, len(here) // 10)]
            share = sum(one["k_kld"] for one in few) / (sum(one["k_kld"] for one in here) or 1)
            worst = ", ".join(f"{one['layer']}.{one['head']}" for one in few[:5])
            sentences.append(
                f"{row['codec']}: K costs {row['k_output'] / row['v_output']:.1f} times what V does (error of the heads' output); "
                f"{len(few)} of {len(here)} heads have {100 * share:.0f} % of the divergence that K causes, the worst (layer.head): {worst}."
            )
    text = ["Each layer by itself, with the model's own queries, from rows that `pyggmlq dump-kv` wrote. “h+”: after a Hadamard transform of a head, "
            "as llama.cpp's attn_rot; “c+”: keys centered before that; “cache”: what was dumped. The second drawing: which RoPE pairs the error of the logits comes from."]  # fmt: skip
    head = ("codec", "bits", "logit error", "K: KLD", "K: top-1", "K: output", "V: output", "worst head", "its KLD")
    table = Table(head, [
        (row["codec"], number(row["bits"], 3), number(row["logit_error"], 4), number(row["k_kld"], 5), f"{100 * row['k_top1']:.1f} %",
         number(row["k_output"], 5), "–" if row["v_output"] is None else number(row["v_output"], 5), row["worst"], number(row["worst_kld"], 4))
        for row in means
    ])  # fmt: skip
    by_layer = Table(("layer", *telling), [])
    for layer in dict.fromkeys(row["layer"] for row in rows):
        cells = []
        for codec in telling:
            values = [row["k_kld"] for row in rows if (row["layer"], row["codec"]) == (layer, codec)]
            cells.append(number(sum(values) / len(values), 4) if values else "–")
        by_layer.rows.append((str(layer), *cells))
    drawings = [partial(plots.heat, rows, telling), partial(plots.pairs, data["layers"], telling)]
    yield Section(f"Where K hurts: {name}", text, drawings, [table, by_layer], {"K against V, and the worst heads": sentences} if sentences else {})


def _memory_section(model: fit.Model) -> Section:
    contexts = [1024 * 2**i for i in range(12) if 1024 * 2**i <= max(model.n_ctx_train, 1024)]
    pairs = [case for case in fit.default_pairs() if not model.refusal(case)]
    sizes = {str(case): [sum(model.cache_bytes(case, n_ctx)) / fit.MIB for n_ctx in contexts] for case in pairs}
    table = Table(("cache K/V", *(f"{n_ctx // 1024}k" for n_ctx in contexts)), [(pair, *(f"{mib:.1f}" for mib in row)) for pair, row in sizes.items()])
    text = [f"MiB of the cache at contexts up to {model.n_ctx_train} tokens, by `pyggmlq fit`; the weights take {model.weight_bytes / fit.MIB:.0f} MiB."]
    return Section(f"Memory: {model.name}", text, [partial(plots.memory, contexts, sizes)], [table])


def _eval_sections(data: dict[str, Any]) -> Iterator[Section]:
    head = ("codec", "bits", "cosine", "rel. MSE", "max error", "score r", "top-1", "softmax KLD", "parameters", "multiply-adds")
    for name in dict.fromkeys(row["data"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["data"] == name]
        table = Table(head, [
            (row["codec"], number(row["bits"], 3), number(row["cosine_mean"], 4), number(row["relative_mse"], 5), number(row["max_error"], 2),
             number(row["score_pearson"], 4), f"{100 * row['top1']:.1f} %", number(row["softmax_kld"], 5), str(row["parameters"]), str(row["multiply_adds"]))
            for row in rows
        ])  # fmt: skip
        text = [f"{rows[0]['n_rows']} rows of {rows[0]['width']} values, no model. “h+”: after a Hadamard transform of the row."]
        yield Section(f"Codecs on {name}", text, [partial(plots.evaluation, rows)], [table])


def _bench_sections(data: dict[str, Any]) -> Iterator[Section]:
    run = bench_record.Run.from_dict(data)
    decode = [row for row in run.records if row.shape.get("queries") == 1 and "kv" in row.shape]
    if not decode:
        return
    head = ("types", "code", "head", "KV heads", "threads", "cached tokens", "ns per pair", "GB/s")
    table = Table(head, [
        (row.types, f"{row.code} {row.level}", str(row.shape.get("head", "")), str(row.shape.get("heads_kv", "")), str(row.threads), str(row.shape["kv"]),
         f"{row.summary.median / row.count:.2f}", f"{row.gb_per_s:.1f}")
        for row in decode
    ], 2)  # fmt: skip
    text = [f"Decoding, {run.machine['cpu']}; per pair of query head and cached token. docs/BENCH.md says what is inside the clock."]
    yield Section("Speed of decoding", text, [partial(plots.depth, decode)], [table])


def _bench_llama_sections(data: dict[str, Any]) -> Iterator[Section]:
    rows, n_prompt = data["rows"], data["options"]["n_prompt"]
    if not rows:
        return
    table = Table(("depth", "cache K/V", "code", "decode t/s", "× f16", f"prefill {n_prompt} t/s", "× f16", "peak MiB"), [], 3)
    for row in rows:
        base = next((other for other in rows if (other["depth"], other["k"], other["v"]) == (row["depth"], "f16", "f16")), {})
        cells = []
        for name in ("decode", "prefill"):
            cells += [f"{median(row[name]):.1f}" if row[name] else "–", f"{median(row[name]) / median(base[name]):.3f}" if row[name] and base.get(name) else "–"]
        table.rows.append((str(row["depth"]), _pair(row), row["code"], *cells, str(row["peak_mib"] or "–")))
    text = [f"llama-bench, medians of tokens per second, at depths of the cache up to {max(row['depth'] for row in rows)} tokens on {', '.join(devices(data, rows))}; "
            "peak: most memory in use on the GPU. docs/BENCH.md says how it is measured."]  # fmt: skip
    yield Section(f"Speed of a whole model: {data['options']['model']}", text, [partial(plots.speed, rows)], [table])


def _pair(row: dict[str, Any]) -> str:
    return f"{row['k']}/{row['v']}"


def _origin(records: Sequence[dict[str, Any]]) -> Section:
    table = Table(("what", "when", "pyggmlq", "llama.cpp", "machine", "on"), [], 6)
    for data in records:
        version = data["pyggmlq"]
        commit = (version.get("commit") or "")[:9] + (" + changes" if version.get("dirty") else "")
        text = data.get("text")
        on = f"{text['file']}, {text['bytes']} bytes, sha256 {text['sha256'][:12]}" if text else ""
        upstream = (data.get("llama_cpp") or {}).get("commit") or ""
        where = ", ".join(devices(data, data.get("rows", [])))
        table.rows.append((data["format"], data["date"], f"{version['version']} {commit}".strip(), upstream[:9], where, on))
    return Section("Where the figures come from", [], [], [table])


# Writing -------------------------------------------------------------------------------------------------------------


def as_markdown(page: Sequence[Section]) -> str:
    """Text and tables; drawings are left out."""
    lines = ["# KV-cache quality"]
    for section in page:
        lines += ["", f"## {section.title}"]
        lines += [f"\n{sentence}" for sentence in section.text]
        for heading, sentences in section.lists.items():
            lines += [f"\n{heading}:\n", *(f"- {sentence}" for sentence in sentences)]
        for table in section.tables:
            rule = ["---" if i < table.n_left else "---:" for i in range(len(table.head))]
            lines += ["", *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (table.head, rule, *table.rows))]
    return "\n".join(lines) + "\n"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #666; --line: #ddd; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a0a0a0; --line: #3a3a3a; --page: #161616; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin: 1.2rem 0 0; }
ul { margin: 0.4rem 0; padding-left: 1.2rem; } li { margin: 0.2rem 0; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; color: var(--ink); } svg text { fill: currentColor; }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .word { text-align: left; }
"""


def as_html(page: Sequence[Section]) -> str:
    """A page that loads nothing: style and drawings are inside."""
    parts = []
    for section in page:
        parts.append(f"<section><h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{_html_text(sentence)}</p>" for sentence in section.text]
        for heading, sentences in section.lists.items():
            items = "".join(f"<li>{_html_text(sentence)}</li>" for sentence in sentences)
            parts.append(f"<h3>{html.escape(heading)}</h3><ul>{items}</ul>")
        figures = [figure for figure in (draw() for draw in section.drawings) if figure is not None]
        parts += [f'<div class="wide">{plots.as_svg(figure)}</div>' for figure in figures]
        parts += [_html_table(table) for table in section.tables]
        parts.append("</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>KV-cache quality</title><style>{_STYLE}</style></head>\n<body><h1>KV-cache quality</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _html_text(sentence: str) -> str:
    """What stands between backquotes is code, as in Markdown."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(sentence))


def _html_table(table: Table) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        words = (' class="word"' if i < table.n_left else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{word}>{html.escape(cell)}</{tag}>" for word, cell in zip(words, cells)) + "</tr>"

    rows = "".join(line("td", row) for row in table.rows)
    return f'<div class="wide"><table><thead>{line("th", table.head)}</thead><tbody>{rows}</tbody></table></div>'
