# SPDX-License-Identifier: MIT
"""`pyggmlq report`: advice that follows from the rows, and pages that hold every figure and load nothing."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyggmlq._pairs import bits_per_value
from pyggmlq.bench import model as whole
from pyggmlq.bench import record as bench_record
from pyggmlq.cli import app
from pyggmlq.lab import LabError, plots, record, report
from pyggmlq.lab.tables import number

from test_lab_fit import SMOLLM2, write


def kld_row(k: str, v: str, kld: float | None, model: str = "Demo", attn_rot: str = "on", refused: str | None = None) -> dict:
    bits = bits_per_value(k), bits_per_value(v)
    return {"model": model, "n_ctx": 512, "windows": 16, "k": k, "v": v, "bits_k": bits[0], "bits_v": bits[1], "attn_rot": attn_rot,
            "rotated_k": k != "f16", "rotated_v": v != "f16", "mib_k": bits[0], "mib_v": bits[1], "ppl": 10.0, "ppl_error": 0.1,
            "kld": kld, "kld_error": 0.001, "kld_99": 0.5, "kld_max": 2.0, "same_top": 90.0, "same_top_error": 1.0, "ppl_ratio": 1.0 + (kld or 0),
            "ppl_ratio_error": 0.001, "kld_median": 0.1, "kld_999": 0.9, "seconds": 1.0, "refused": refused}  # fmt: skip


def kld_record(*rows: dict, **more: object) -> dict:
    facts = {"llama_cpp": {"commit": "0123abcdef"}, "text": {"file": "prose.txt", "bytes": 9, "sha256": "ab" * 32}, "alarms": [], "notes": []}
    return {**record.start(record.KLD, **facts), "rows": list(rows), **more}


REFERENCE = kld_row("f16", "f16", 0.0)
Q4, Q8_3, BOTH_3 = kld_row("q4_0", "q4_0", 0.04), kld_row("q8_0", "tq3_0", 0.02), kld_row("tq3_0", "tq3_0", 0.2)
ALONE = [kld_row("tq3_0", "f16", 0.18), kld_row("f16", "tq3_0", 0.02)]


def advice(*rows: dict) -> str:
    return "\n".join(f"{place}. {sentence}" for place, said in report.recommendations(kld_record(*rows)).items() for sentence in said)


def test_where_three_bits_are_no_worse_than_four_they_are_advised():
    found = advice(REFERENCE, Q4, kld_row("tq3_0", "tq3_0", 0.03))
    assert "K tq3_0, V tq3_0: mean KLD 0.0300±0.0010, perplexity × 1.030, 90.0 % same top token, 4.6 × smaller than f16: smaller than q4_0" in found


def test_where_they_are_worse_that_is_said_first():
    found = advice(REFERENCE, Q4, Q8_3, BOTH_3, *ALONE)
    assert found.startswith("Demo, context 512. Nothing measured is smaller than q4_0 for both and as good")
    assert "Better, and the smallest that is: K q8_0, V tq3_0: mean KLD 0.0200" in found
    assert found.count("K q8_0, V tq3_0") == 1, "what is said once is enough"
    better = advice(REFERENCE, Q4, kld_row("iq4_nl", "iq4_nl", 0.03), Q8_3, BOTH_3)
    assert "Better, and the smallest that is: K iq4_nl" in better and "With keys of 8 bits: K q8_0, V tq3_0" in better
    assert "The smallest cache: K tq3_0, V tq3_0: mean KLD 0.2000" in found
    assert "tq3_0 in K costs 9.0 times what it costs in V (mean KLD 0.1800 and 0.0200)." in found


def test_advice_leaves_out_what_was_refused_collapsed_or_not_rotated():
    found = advice(REFERENCE, Q4, kld_row("planar3", "planar3", None, refused="no"), kld_row("tq3_0", "tq3_0", None),
                   kld_row("tq3_0", "tq3_0", 0.001, attn_rot="off"))  # fmt: skip
    assert "planar3" not in found and "tq3_0" not in found


def test_what_a_rotation_harms_is_said():
    off = [kld_row("tq3_0", "tq3_0", 0.1, attn_rot="off"), kld_row("q4_0", "q4_0", 0.038, attn_rot="off")]
    found = advice(REFERENCE, Q4, BOTH_3, *off)
    assert "K tq3_0, V tq3_0 is better without llama.cpp's attn_rot: mean KLD 0.1000 instead of 0.2000." in found
    assert "K q4_0, V q4_0 is better without" not in found, "a difference within the error"


def test_centered_keys_are_a_cache_of_their_own():
    """With the size of plain ones; what is advised is the better of the two."""
    centered = [{**kld_row("tq3_0", v, kld), "kv_center": "auto", "centered_layers": 30} for v, kld in (("tq3_0", 0.035), ("f16", 0.01))]
    found = advice(REFERENCE, Q4, BOTH_3, *ALONE, *centered)
    assert "K tq3_0 centered, V tq3_0: mean KLD 0.0350" in found and "smaller than q4_0 for both, and no worse" in found
    assert "The smallest cache" not in found, "that one has been named"
    assert "K tq3_0, V f16: centering K makes the mean KLD 0.0100±0.0010 instead of 0.1800±0.0010." in found
    assert "tq3_0 in K costs 9.0 times what it costs in V" in found and "tq3_0 centered in K costs 0.5 times what tq3_0 costs in V (mean KLD 0.0100 and 0.0200)." in found
    page = report.as_markdown(report.sections([kld_record(REFERENCE, BOTH_3, *centered)]))
    assert "| tq3_0 centered | tq3_0 |" in page and "| tq3_0 | tq3_0 |" in page


def test_each_model_has_its_own_advice():
    found = advice(REFERENCE, Q4, BOTH_3, kld_row("f16", "f16", 0, "Other"), kld_row("q4_0", "q4_0", 0.3, "Other"), kld_row("tq3_0", "tq3_0", 0.1, "Other"))
    assert "Demo, context 512. Nothing measured" in found and "Other, context 512. K tq3_0" in found


def test_two_records_of_one_model_and_context_keep_their_advice():
    lists = report.sections([kld_record(REFERENCE, Q4, BOTH_3), *[kld_record(REFERENCE, Q4, Q8_3)] * 2])[0].lists
    assert [re.sub(r"(record \d), .*", r"\1", heading) for heading in lists] == ["Demo, context 512", "Demo, context 512 (record 2", "Demo, context 512 (record 3"]
    assert "q8_0" not in str(lists["Demo, context 512"])


def test_an_alarm_comes_before_all_advice():
    data = kld_record(REFERENCE, Q4, alarms=["Demo: nothing was quantized"])
    first = report.sections([data])[0]
    assert first.text[0].startswith("ALARM") and "nothing was quantized" in first.text[0] and first.lists


class Page(HTMLParser):
    """Tags, references and text of a page; complains about tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")]

    def handle_startendtag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words += text
        if self.open and self.open[-1] == "td":
            self.cells[-1] += text


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One record of each kind, the names in it being such as must be escaped."""
    model = "A <b>&amp; model"
    rows = [{**row, "model": model} for row in (REFERENCE, Q4, Q8_3, BOTH_3, *ALONE)]
    record.write(tmp_path / "kld.json", kld_record(*rows, kld_row("planar3", "f16", None, model, refused="K cache type planar3 does not fit")))
    evaluated = CliRunner().invoke(app, ["eval", "random_normal", "--only", "^(tq3_0|turboquant-[234])$", "--rows", "64", "--width", "64",
                                         "--json", str(tmp_path / "eval.json")])  # fmt: skip
    assert evaluated.exit_code == 0, evaluated.output
    run = bench_record.start({})
    for kv in (4096, 32768):
        shape = {"head": 128, "heads_kv": 8, "gqa": 4, "kv": kv, "queries": 1}
        run.records.append(bench_record.Record(f"attention decode kv={kv}", bench_record.OURS, "tq3_0", "tq3_0", "avx2", 1, "warm", "wall", "pair",
                                               32 * kv, 100 * kv, 1, (kv * 100.0, kv * 110.0, kv * 120.0), shape))  # fmt: skip
    bench_record.write(run, tmp_path / "bench.json")
    return [tmp_path / name for name in ("kld.json", "eval.json", "bench.json")]


def test_the_page_holds_every_figure_and_loads_nothing(files: list[Path], tmp_path: Path):
    done = CliRunner().invoke(app, ["report", *map(str, files), "-o", str(tmp_path / "out" / "r.html"), "-o", str(tmp_path / "r.md"), "-o", str(tmp_path / "r.png")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == [] and "@import" not in text and "url(http" not in text and "<script" not in text
    assert "A <b>&amp; model, context 512" in page.words and "Nothing measured" in page.words
    for cell in ("0.2000 ± 0.0010", "turboquant-3", "3.44", "0123abcde"):  # 110 ns / 32 pairs of a token
        assert cell in page.cells
    assert "Refused: K cache type planar3 does not fit." in page.words
    assert text.count("<svg") == 3 and "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    markdown = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| tq3_0 | tq3_0 | K+V | 3.5 | 3.5 | 7.00 |" in markdown and "| 3.44 |" in markdown
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.new"))


# Two frames of the page, as wide as a phone and a desk, tell how they were laid out.
FRAMES = """<pre id="told"></pre>{frames}<script>
onload = () => {{ told.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
  const page = frame.contentDocument, root = page.scrollingElement, colour = (element, name) => frame.contentWindow.getComputedStyle(element)[name];
  const cell = page.querySelector("td"), wide = [...page.querySelectorAll(".wide")];
  return {{width: root.clientWidth, needs: root.scrollWidth, ink: colour(page.body, "color"), paper: colour(page.body, "backgroundColor"),
          cell: parseFloat(colour(cell, "fontSize")), text: parseFloat(colour(page.querySelector("p"), "fontSize")), drawing: colour(page.querySelector("svg text"), "fill"),
          scrolls: wide.filter(part => part.scrollWidth > part.clientWidth).length, parts: wide.length}};
}})); }};
</script>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_lays_the_page_out(files: list[Path], tmp_path: Path, scheme: str):
    """On a phone nothing but tables and drawings is wider than the screen, and those scroll by themselves; letters are readable in both schemes."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        pytest.skip("no chromium is installed: docs/LAB.md says when the page was last looked at in one")
    page = tmp_path / "page.html"
    report.write(files, page)
    frames = "".join(f'<iframe src="page.html" style="border: 0; width: {width}px; height: 800px"></iframe>' for width in (390, 1280))
    (tmp_path / "frames.html").write_text(FRAMES.format(frames=frames), encoding="utf-8")
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files", "--window-size=1800,900",
                           f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                           (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=300)  # fmt: skip
    told = re.search(r'<pre id="told">(\[.+\])</pre>', done.stdout)
    assert told, done.stderr[-2000:]
    phone, desk = json.loads(told[1])

    def brightness(colour: str) -> float:
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 765

    assert (phone["width"], desk["width"]) == (390, 1280)
    for frame in (phone, desk):
        assert frame["needs"] <= frame["width"], "the page itself must not scroll sideways"
        assert frame["text"] >= 15 and frame["cell"] >= 13
        assert brightness(frame["drawing"]) == brightness(frame["ink"])
        ink, paper = brightness(frame["ink"]), brightness(frame["paper"])
        assert (ink < 0.2 and paper > 0.9) if scheme == "light" else (ink > 0.8 and paper < 0.2)
    assert phone["scrolls"] > desk["scrolls"], "wide parts scroll on a phone"


def test_memory_of_a_model_is_that_of_fit(tmp_path: Path):
    path = write(tmp_path / "m.gguf", "llama", **SMOLLM2)
    report.write([path], tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.cells[:5] == ["f16/f16", "22.5", "45.0", "90.0", "180.0"]  # 1k to 8k
    assert "planar3/planar3" not in page.cells, "its head size does not fit"


RESULTS = Path(__file__).parents[1] / "docs" / "results"


def test_the_tables_of_the_docs_are_those_of_the_committed_records():
    done = subprocess.run([sys.executable, RESULTS.parents[1] / "tools" / "gen_results", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (RESULTS.parent / "LAB.md").read_text(encoding="utf-8")
    for path in RESULTS.glob("kld-*.json"):
        data = record.read(path)
        assert data["alarms"] == []
        if re.fullmatch(r"kld-\d+(-gemma3|-smollm2)?", path.stem):  # those that tables are made of
            assert all(f"{number(row['kld'], 4)} ± {number(row['kld_error'], 4)}" in text for row in data["rows"] if not row["refused"])


def test_figures_of_llama_cpps_own_types_are_those_of_an_unmodified_one():
    """The committed record of an unmodified llama.cpp has the same rows as that of a patched one."""
    grids = [record.read(RESULTS / name) for name in ("kld-512.json", "kld-512-unmodified.json")]
    rows = [{(row["model"], row["k"], row["v"]): {**row, "seconds": 0} for row in grid["rows"] if row["attn_rot"] == "on"} for grid in grids]
    assert {k for _, k, v in rows[1] if k == v} == {"f16", "q8_0", "q4_0"}
    assert all(rows[0][key] == row for key, row in rows[1].items())
    assert grids[0]["text"] == grids[1]["text"] and grids[0]["llama_cpp"]["sha256"] != grids[1]["llama_cpp"]["sha256"]


def test_names_in_a_drawing_cover_neither_each_other_nor_points():
    rows = [REFERENCE, Q4, kld_row("iq4_nl", "iq4_nl", 0.041), {**kld_row("tq3_0", "tq3_0", 0.041), "kv_center": "auto"}, kld_row("planar3", "planar3", 0.04), *ALONE, kld_row("f16", "planar3", 0.0199)]
    figure = plots.kld(rows, [("Demo", 512)])
    figure.draw_without_rendering()
    (axis,) = figure.axes
    names = {text.get_text(): text.get_window_extent() for text in axis.texts}
    assert set(names) == {"q4_0", "iq4_nl", "tq3_0 centered", "planar3", "tq3_0/f16", "f16/tq3_0", "f16/planar3"}
    assert not any(a.overlaps(b) for a, b in itertools.combinations(names.values(), 2))
    points = [axis.transData.transform(line.get_xydata()[0]) for line in axis.lines if len(line.get_xydata()) == 1]
    assert len(points) == len(names) and not any(box.contains(*point) for box in names.values() for point in points)


def test_the_page_is_the_same_again(files: list[Path], tmp_path: Path):
    for name in ("a.html", "b.html"):
        report.write(files, tmp_path / name)
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()


def test_speed_of_a_whole_model_against_depth(tmp_path: Path):
    """The samples' medians, and the ratio to f16 at the same depth."""
    options = whole.Options(Path("m.gguf"), tmp_path, None, (), (whole.Depth(0, 3), whole.Depth(32768, 1)), 512, 64, 1, (), 1)
    rows = [whole.Row(0, "f16", "f16", "unmodified", [50.0], [], 900, "Demo GPU"), whole.Row(0, "tq3_0", "tq3_0", "patched", [48.0, 49.0, 60.0], [], 901, "Demo GPU"),
            whole.Row(32768, "f16", "f16", "unmodified", [20.0], [100.0], None, "Demo GPU"), whole.Row(32768, "tq3_0", "tq3_0", "patched", [30.0], [95.0], None, "Demo GPU")]  # fmt: skip
    whole.write(tmp_path / "b.json", options, rows, 1.0)
    report.write([tmp_path / "b.json"], tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    at = page.cells.index("tq3_0/tq3_0")
    assert page.cells[at - 1 : at + 7] == ["0", "tq3_0/tq3_0", "patched", "49.0", "0.980", "–", "–", "901"]
    assert page.cells[page.cells.index("tq3_0/tq3_0", at + 1) :][:7] == ["tq3_0/tq3_0", "patched", "30.0", "1.500", "95.0", "0.950", "–"]
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Demo GPU" in text and text.count("<svg") == 1 and ">32k<" in text
    whole.write(tmp_path / "b.json", options, rows[1:2], 1.0)  # without f16: no ratio, nothing to draw
    report.write([tmp_path / "b.json"], tmp_path / "r.html")
    assert "<svg" not in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [("{}", "found format None, wanted a file that"), ("{", "can't be read as JSON"), ('{"format": "pyggmlq-kld-9"}', "found format 'pyggmlq-kld-9'")],
)
def test_other_files_are_refused(tmp_path: Path, content: str, wanted: str):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(LabError, match=wanted):
        report.write([tmp_path / "x.json"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_text_needs_no_matplotlib_and_a_page_names_it(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.write(files, tmp_path / "r.md")
    with pytest.raises(LabError, match=r"pip install 'pyggmlq\[lab\]'"):
        report.write(files, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_other_endings_are_refused(files: list[Path], tmp_path: Path):
    with pytest.raises(LabError, match="wanted one of .html, .md, .png"):
        report.write(files, tmp_path / "r.pdf")
    done = CliRunner().invoke(app, ["report", str(files[0]), "-o", str(tmp_path / "two.md"), "-o", str(tmp_path / "r.pdf")])
    assert done.exit_code == 1 and "wanted one of .html" in done.output and not (tmp_path / "two.md").exists()
    for path in files:  # a .png has a drawing of any kind of record, but not of one without rows
        report.write([path], tmp_path / "r.png")
    record.write(tmp_path / "k.json", kld_record(REFERENCE))
    with pytest.raises(LabError, match="n.png: found nothing to draw in k.json"):
        report.write([tmp_path / "k.json"], tmp_path / "n.png")
    assert not (tmp_path / "n.png").exists()


def test_records_hold_no_number_that_json_lacks(tmp_path: Path):
    record.write(tmp_path / "x.json", kld_record(kld_row("tq3_0", "f16", float("nan"))))
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["kld"] is None
