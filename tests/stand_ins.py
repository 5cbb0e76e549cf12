# SPDX-License-Identifier: MIT
"""Stand-ins for llama.cpp's programs: they print what the real ones print, in no time, and note that they were called."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

needs_scripts = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are scripts with a #! line")

# Obeys `rules` beside it: {"refuse": types, "fail": [program, K type], "unquantized": types, "tokens": of a text that is
# too short, "windows": of a text that is rather short, "old": no attn_rot, "always_rotates": whatever is asked for, "plain": types that are never rotated, "gpu": its name, "on_cpu":
# types that it has no attention for, "unloadable": why the model can't be loaded, "not_centered": why keys aren't, "always_centers"}.
STAND_IN = """#!{python} -IS
import json, os, sys
from pathlib import Path
me, a = Path(sys.argv[0]), sys.argv[1:]
if a == ["--version"]:
    sys.exit("version: 0.5.0-dev (build 0, commit 0123abc)\\nbuilt with GNU 12.2.0 for Linux x86_64")
rules = json.loads((me.parent / "rules.json").read_text())
get = lambda flag: a[a.index(flag) + 1]
k, v = get("-ctk"), get("-ctv")
with open(me.parent / "calls.txt", "a") as calls:
    calls.write(" ".join([me.name, k, v, "base" if "-f" in a and me.name == "llama-perplexity" else ""]).strip() + "\\n")
bits = {{"f16": 16, "q8_0": 8.5, "q5_0": 5.5, "q4_0": 4.5, "iq4_nl": 4.5, "tq3_0": 3.5, "planar3": 3.125}}
if "unloadable" in rules:
    sys.exit(f"0.0.0.1 E llama_model_load: error loading model: {{rules['unloadable']}}\\n0.0.0.1 E main: error: unable to load model")
for side, name in (("K", k), ("V", v)):
    if name in rules.get("refuse", []):
        sys.exit(f"0.0.1.2 E init: {{side}} cache type {{name}} needs a head size that is a multiple of 128, but that of layer 0 is 64: use tq3_0")
if [me.name, k] == rules.get("fail"):
    sys.exit("0.0.1.2 E main: error: something broke")
if me.name == "llama-bench":
    print(json.dumps(dict(type_k=k, type_v=v, avg_ts=50.0, stddev_ts=1.5, samples_ts=[49.0, 51.0])))
    sys.exit()
size = lambda name: 160 * bits[name] / 16
print(f"0.0.0.1 I print_info: n_vocab = 1000", file=sys.stderr)
print(f"0.0.0.1 I kv: size = {{size(k) + size(v):.2f}} MiB (64 cells, 2 layers, 1/1 seqs), K ({{k}}): {{size(k):.2f}} MiB, V ({{v}}): {{size(v):.2f}} MiB", file=sys.stderr)
if "gpu" in rules:
    print(f"0.0.0.1 I llama_prepare_model_devices: using device CUDA0 ({{rules['gpu']}}) (0000:01:00.0) - 80000 MiB free", file=sys.stderr)
print(f"0.0.0.1 I kv:      {{'CUDA0' if 'gpu' in rules else 'CPU'}} KV buffer size =   99.00 MiB", file=sys.stderr)
print(f"0.0.0.1 I sched_reserve: graph: nodes = 99, splits = {{26 if k in rules.get('on_cpu', []) else 2}} (with bs=512), 2 (with bs=1)", file=sys.stderr)
off = os.environ.get("LLAMA_ATTN_ROT_DISABLE") == "1" and not rules.get("always_rotates")
for side, name in (("k", k), ("v", v)):
    if not rules.get("old"):
        print(f"0.0.0.1 I kv: attn_rot_{{side}} = {{int(name not in ['f16', *rules.get('plain', [])] and not off)}}, n_embd_head_k_all = 64", file=sys.stderr)
asked = os.environ.get("GGMLQ_KV_CENTER") or "auto"
centers = rules.get("always_centers") or asked == "all" or (asked == "auto" or os.path.isfile(asked)) and k in ("tq3_0", "planar3")
if centers and "not_centered" in rules:
    centers = print(f"0.0.0.1 W ggmlq_llama_center: keys are not centered: {{rules['not_centered']}}", file=sys.stderr)
if centers:
    print("0.0.0.1 I ggmlq_llama_center: keys are centered: 2 layers, calibrated on 435 tokens in 9 ms", file=sys.stderr)
if me.name == "llama-completion":
    print("Three sacks of\\nflour.")
elif "--kl-divergence" not in a:
    if "tokens" in rules:
        print(f"0.0.0.1 E perplexity: you need at least 1024 tokens to evaluate perplexity with a context of 512\\n0.0.0.1 E perplexity: the data file you provided tokenizes to only {{rules['tokens']}} tokens", file=sys.stderr)
        sys.exit()
    Path(get("--kl-divergence-base")).write_text("logits" * 50000)  # more than a pipe holds
    print("Final estimate: PPL = 10.0 +/- 0.5")
else:
    if Path(get("--kl-divergence-base")).read_text() != "logits" * 50000:
        sys.exit("0.0.1.2 E kl_divergence: failed reading log-probs")
    for i in range(rules.get("windows", 16)):
        print(f"{{i + 1:4d}}      10.0000 ±    0.5000       0.00100 ±    0.00100")
    loss = sum((16 - bits[t]) / (100 + i + off + 300 * (i == 0 and bool(centers))) for i, t in enumerate((k, v)) if t not in rules.get("unquantized", []))
    print(f"Mean PPL(Q) : {{10 + loss:.6f}} ± 0.5\\nMean PPL(Q)/PPL(base) : {{1.001 + loss / 10:.6f}} ± 0.01\\nMedian  KLD: 0.1\\n99.9%   KLD: 0.6\\nMean    KLD: {{loss:.6f}} ± 0.001\\n99.0%   KLD: 0.5\\nMaximum KLD: {{loss:.6f}}\\nSame top p: 90.0 ± 1.0 %")
"""


class StandIns:
    """Programs called `names` in `folder`."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        folder.mkdir()
        for name in names:
            path = folder / name
            path.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
            path.chmod(0o755)
        self.rules()

    def rules(self, **rules: object) -> None:
        """What the programs obey from now on."""
        (self.folder / "rules.json").write_text(json.dumps(rules))

    def calls(self) -> list[str]:
        """Programs run since the last call of this."""
        path = self.folder / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines
