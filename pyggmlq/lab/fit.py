# SPDX-License-Identifier: MIT
"""How much memory the KV cache of a model takes, layer by layer, computed from the GGUF file's metadata alone.

The rules are those of llama.cpp 0c1e57098 (`llama_model::create_memory` and the caches that it makes), one sequence. A
test compares them with what that version allocates for a model of every architecture that it can make one of; a model
whose sizes were not compared comes with a note that says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _gguf_file
from .._ggmlq import lib
from .._pairs import OURS, Case, bits_per_value, block_size
from . import LabError

MIB = 1 << 20
PAD = 256
"""llama.cpp rounds contexts and the caches of sliding windows up to a multiple of this."""

WINDOWED = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone-moe": (4, False), "exaone4": (4, False),
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "gemma4": None, "gpt-oss": (2, False),
    "granite_swa": None, "laguna": (4, True), "llama4": (4, False), "maple": None, "mellum": (4, False), "mimo2": None,
    "muse-glimmer": (4, False), "olmo2": (4, False), "plamo3": (8, False), "smallthinker": (4, True), "spark2_5": None,
    "step35": None,
}  # fmt: skip
"""Architectures with sliding windows: one layer of so many is a full one (True: the first, False: the last of them),
unless the file says which are. None: the file must say."""

ALWAYS_WINDOWED = {"cohere2", "cohere2moe", "exaone-moe", "exaone4", "gemma2", "gemma3n", "gemma4", "gpt-oss", "llama4", "mimo2"}
WINDOWS = {"gemma2": 4096, "llama4": 8192, "smallthinker": 4096, "exaone4": 4096}
"""Windows where the file gives none or llama.cpp doesn't ask."""

BY_HEADS = {"granitehybrid", "jamba", "lfm2", "lfm2moe", "plamo2"}
"""Hybrids whose recurrent layers are those without KV heads."""

BY_INTERVAL = {"qwen3next", "qwen35", "qwen35moe"}
"""Hybrids in which one layer of a few, by default the last of four, has attention."""

HYBRID = BY_HEADS | BY_INTERVAL | {"falcon-h1", "nemotron_h", "nemotron_h_moe"}
RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
UNCACHED = {"bert", "modern-bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
            "gemma-embedding", "dream", "llada", "llada-moe", "rnd1", "wavtokenizer-dec"}  # fmt: skip
OTHER = {"bailingmoe3", "deepseek32", "dflash", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "kimi-k3", "kimi-linear",
         "minimax-01", "minimax-m3", "qwen4exp", "gemma4-assistant"}  # fmt: skip
"""Architectures with caches of their own kind (indexers, linear attention), which are not computed here."""


UNCOMPARED = {"arwkv7", "gemma3n", "gemma4", "rwkv6", "rwkv6qwen2", "rwkv7", "step35"}
"""Architectures whose rules are llama.cpp's as its source says them, but no run was compared: it can't make a random model."""

PLAIN = set(
    """
    arcee arctic baichuan bailingmoe bailingmoe2 bloom chatglm codeshell cogvlm command-r dbrx deci deepseek deepseek2
    dots1 ernie4_5 ernie4_5-moe exaone falcon gemma glm4 glm4moe gpt2 gptneox granite granitemoe grok grovemoe
    hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2 llama maincoder minicpm minicpm3
    minimax-m2 mistral3 mistral4 mpt nanbeige nemotron olmo olmoe openelm orion paddleocr pangu-embedded phi2 phi3
    phimoe plamo pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3tts qwen3vl qwen3vlmoe refact seed_oss
    smollm3 stablelm starcoder starcoder2 talkie xverse
    """.split()
)
"""Architectures, compared with llama.cpp, that keep the whole context in every layer. Others are taken for such, with a note."""

UNTURNED = {"bloom", "gpt2", "gptj", "jais", "jamba", "mpt", "nemotron_h", "nemotron_h_moe", "refact"}
"""Architectures without RoPE, whose keys aren't centered (docs/CENTERING.md); nor are those of RoPE with several axes. MLA keeps a mean only, of a few KB a layer, which isn't counted."""


@dataclass(frozen=True)
class Layer:
    """What one layer keeps."""

    index: int
    windowed: bool
    k_values: int
    """Values of K per cached token, of all KV heads together; likewise `v_values`."""
    v_values: int
    head_k: int
    head_v: int
    state_bytes: int = 0
    """Of a recurrent layer: what it keeps whatever the context is."""
    ratio: int = 1
    """Tokens that one row stands for: more than 1 in compressed caches, which a layer has beside its window."""


@dataclass(frozen=True)
class Model:
    """What the metadata say of a model's memory."""

    name: str
    architecture: str
    n_ctx_train: int
    window: int
    """Tokens of a sliding window; 0 without one."""
    layers: tuple[Layer, ...]
    weight_bytes: int
    notes: tuple[str, ...] = field(default=())
    rotary: tuple[int, int] = (0, 0)
    """Values of a head that RoPE turns, in layers without and with a window; 0 where keys can't be centered."""

    def cells(self, layer: Layer, n_ctx: int, n_ubatch: int = 512) -> int:
        """Tokens that `layer` has room for at a context of `n_ctx`."""
        n_ctx = _padded(n_ctx)
        if layer.ratio > 1:
            return _padded(-(-n_ctx // layer.ratio))
        return min(n_ctx, _padded(self.window + n_ubatch)) if layer.windowed else n_ctx

    def cache_bytes(self, case: Case, n_ctx: int, n_ubatch: int = 512) -> tuple[int, int, int]:
        """Bytes of K, of V, and of what recurrent layers keep, at a context of `n_ctx` tokens."""
        sizes = [0, 0, 0]
        for layer in self.layers:
            cells = self.cells(layer, n_ctx, n_ubatch)
            sizes[0] += cells * _row_bytes(case.k, layer.k_values)
            sizes[1] += cells * _row_bytes(case.v, layer.v_values)
            sizes[2] += layer.state_bytes
        return sizes[0], sizes[1], sizes[2]

    def center_bytes(self, case: Case, n_ctx: int, n_ubatch: int = 512) -> int:
        """Bytes of what llama.cpp keeps beside K of our types because it centers them by default: per token and layer whether its key is centered; and,
        whatever the context, the feedback of each KV head by which keys are rounded for the model's queries (ggmlq_feedback_values, halves)."""
        found = 0
        for windowed, n_rot in enumerate(self.rotary if case.k in OURS else ()):
            layers = [layer for layer in self.layers if layer.k_values and layer.windowed == bool(windowed)]
            cells = [self.cells(layer, n_ctx, n_ubatch) for layer in layers]
            if cells and n_rot:
                found += 2 * sum(cells) + sum(layer.k_values // layer.head_k * 2 * lib.ggmlq_feedback_values(layer.head_k) for layer in layers)
        return found

    def work_bytes(self, case: Case, n_ctx: int, n_ubatch: int = 512) -> int:
        """Bytes that attention of `n_ubatch` tokens on CUDA works with, at most: the mask, and K and V of one layer in f16 where they aren't.

        The copies of llama.cpp's own types, and the mask, lie in its compute buffer where that has room; those of ours never do.
        """
        copied = [name for type_name, name in ((case.k, "k_values"), (case.v, "v_values")) if type_name not in ("f16", "f32")]
        layers = [(self.cells(layer, n_ctx, n_ubatch), sum(getattr(layer, name) for name in copied)) for layer in self.layers if layer.k_values]
        return max((2 * cells * values for cells, values in layers), default=0) + max((2 * cells * n_ubatch for cells, _ in layers), default=0)

    def refusal(self, case: Case) -> str | None:
        """Why llama.cpp would not make this cache, if it would not."""
        if self.architecture == "deepseek4" and case.k != case.v:
            return f"K and V are the same rows in {self.architecture}: they need one cache type"
        for layer in self.layers:
            for side, name, head, values in (("K", case.k, layer.head_k, layer.k_values), ("V", case.v, layer.head_v, layer.v_values)):
                length, _ = block_size(name)
                if values and head % length:
                    return f"{side} cache type {name} needs a head size that is a multiple of {length}, but that of layer {layer.index} is {head}"
        return None

    def longest_context(self, case: Case, budget: int, n_ubatch: int = 512, cuda: bool = False) -> int | None:
        """The longest context, a multiple of 256, whose cache, with `center_bytes`, takes at most `budget` bytes, with `cuda` together with `work_bytes`;
        0 if none does. None if the cache doesn't grow with the context.
        """
        def fits(n: int) -> bool:
            return sum(self.cache_bytes(case, n * PAD, n_ubatch)) + self.center_bytes(case, n * PAD, n_ubatch) + (self.work_bytes(case, n * PAD, n_ubatch) if cuda else 0) <= budget

        if not any(layer.k_values and not layer.windowed for layer in self.layers):
            return None if fits(1) else 0
        low, high = 0, 1
        while fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low * PAD


def _padded(n: int) -> int:
    return -(-n // PAD) * PAD


def _row_bytes(name: str, n_values: int) -> int:
    length, size = block_size(name)
    return n_values // length * size


def read(path: Path) -> Model:
    """What `path`, a GGUF file (the first one, if the model is split), says. `LabError` if it can't be told from it."""
    header = _gguf_file.metadata(path)
    architecture = header.get("general.architecture", "")
    found = _Reader(architecture, header)
    if architecture in OTHER | UNCACHED:
        raise LabError(f"{path}: the caches of architecture {architecture} are of a kind that fit does not compute")
    layers, window, notes = found.compressed_layers() if architecture == "deepseek4" else found.layers()
    return Model(header.get("general.name") or path.stem, architecture, found.get("context_length", 0), window, tuple(layers),
                 _file_bytes(path, header), tuple(notes), found.rotary(layers))  # fmt: skip


def _file_bytes(path: Path, header: dict[str, Any]) -> int:
    """Size of the file, or of all parts of a split model. llama.cpp keeps the weights as they are in the file."""
    parts = header.get("split.count", 1)
    if parts <= 1:
        return path.stat().st_size
    named = re.fullmatch(r"(.*-)00001(-of-\d{5}\.gguf)", path.name)
    if not named:
        raise LabError(f"{path} is part of a model in {parts} files: give the first one, ..-00001-of-{parts:05}.gguf")
    files = [path.with_name(f"{named[1]}{i:05}{named[2]}") for i in range(1, parts + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise LabError(f"{path}: of the model's {parts} files {missing[0]} is missing")
    return sum(file.stat().st_size for file in files)


class _Reader:
    """The keys of one architecture."""

    def __init__(self, architecture: str, header: dict[str, Any]) -> None:
        self.architecture, self.header = architecture, header
        if not architecture or self.get("block_count", 0) < 1:
            raise LabError("the GGUF file holds no model: it names no architecture or no layers")
        self.n_all = self.get("block_count", 0)
        self.n_layers = self.n_all - self.get("nextn_predict_layers", 0) or self.n_all

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.get(f"{self.architecture}.{key}", default)

    def per_layer(self, key: str, default: Any) -> list[Any]:
        value = self.get(key, default)
        return value if isinstance(value, list) else [value] * self.n_all

    def layers(self) -> tuple[list[Layer], int, list[str]]:
        """(layers, window, notes)."""
        heads = self.per_layer("attention.head_count", 0)
        heads_kv = self.per_layer("attention.head_count_kv", None)
        heads_kv = [n if n is not None else heads[i] for i, n in enumerate(heads_kv)]
        plain = self.get("embedding_length", 0) // heads[0] if heads[0] else 0
        head_k, head_v = self.get("attention.key_length", plain), self.get("attention.value_length", plain)
        head_k_swa, head_v_swa = self.get("attention.key_length_swa", head_k), self.get("attention.value_length_swa", head_v)
        windowed, window = self.windows()
        recurrent = self.recurrent()
        latent = self.architecture not in HYBRID and self.get("attention.key_length_mla") and self.get("attention.value_length_mla")
        kept = self.n_all - self.get("attention.shared_kv_layers", 0)
        if self.architecture == "gemma3n":
            kept = 20
        state = self.state_bytes()
        result = []
        for i in range(min(self.n_layers, kept)):
            k, v = (head_k_swa, head_v_swa) if windowed[i] else (head_k, head_v)
            has_cache = self.architecture not in RECURRENT and (not recurrent[i] or self.architecture == "falcon-h1")
            if self.architecture.startswith("nemotron_h") and self.per_layer("feed_forward_length", 0)[i]:
                has_cache = False
            n = heads_kv[i] if has_cache else 0
            result.append(Layer(i, windowed[i], n * k, 0 if latent else n * v, k, v, state if recurrent[i] else 0))
        notes = []
        if self.architecture not in PLAIN | WINDOWED.keys() | HYBRID | RECURRENT:
            notes.append(f"the architecture {self.architecture} was not compared with llama.cpp: the whole context in every layer is an assumption")
        elif self.architecture in UNCOMPARED:
            notes.append(f"the sizes of {self.architecture} follow llama.cpp's source and were not compared with a run")
        elif not any(windowed) and self.get("attention.sliding_window"):
            notes.append(f"llama.cpp keeps the whole context in all layers of {self.architecture}, though the file names a sliding window")
        return result, window if any(windowed) else 0, notes

    def rotary(self, layers: list[Layer]) -> tuple[int, int]:
        """Of `Model`."""
        axes = self.get("rope.dimension_sections", [])
        if self.architecture in UNTURNED | {"deepseek4"} or self.get("attention.key_length_mla") or sum(n > 0 for n in axes) > 1:
            return 0, 0
        heads = [next((layer.head_k for layer in layers if layer.k_values and layer.windowed == windowed), 0) for windowed in (False, True)]
        turned = self.get("rope.dimension_count", heads[0])
        return min(turned, heads[0]), min(self.get("rope.dimension_count_swa", turned or heads[1]), heads[1])

    def compressed_layers(self) -> tuple[list[Layer], int, list[str]]:
        """(layers, window, notes) of DeepSeek-V4: a window in every layer, and beside it, where the layer says so, compressed rows of all
        tokens (CSA: one of 4; HCA: one of 128), keys of the indexer (CSA), and in float32 what isn't compressed yet."""
        ratios, head, indexer = self.get("attention.compress_ratios", []), self.get("attention.key_length", 0), self.get("attention.indexer.key_length", 0)
        if len(ratios) < self.n_layers:
            raise LabError(f"the file does not say how the layers of {self.architecture} compress")
        result = []
        for i, ratio in enumerate(ratios[: self.n_layers]):
            result.append(Layer(i, True, head, 0, head, head))
            for size in [head, indexer] if ratio == 4 else [head] if ratio else []:
                values = ratio * size * (4 if ratio == 4 else 1)  # rows of CSA overlap: twice as many tokens, twice as wide
                result.append(Layer(i, False, size, 0, size, size, 2 * 4 * values, ratio))
        return result, self.get("attention.sliding_window", 0), []

    def windows(self) -> tuple[list[bool], int]:
        """Which layers have a sliding window, and of how many tokens."""
        none = [False] * self.n_all
        window = self.get("attention.sliding_window", 0)
        if self.architecture == "lfm2" and window:
            return [not recurrent for recurrent in self.recurrent()], window
        if self.architecture == "exaone4" and self.n_layers != 64:  # so llama.cpp tells the sizes apart
            return none, 0
        if self.architecture not in WINDOWED or (not window and self.architecture not in ALWAYS_WINDOWED):
            return none, 0
        if self.architecture == "llama4" and self.get("attention.sliding_window", 1) == 0:
            return none, 0
        if self.architecture in ("llama4", "smallthinker"):
            window = WINDOWS[self.architecture]  # llama.cpp doesn't ask the file
        window = window or WINDOWS.get(self.architecture, 0)
        pattern = self.get("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            return [bool(x) for x in pattern] + none[len(pattern) :], window
        default = WINDOWED[self.architecture]
        if pattern is None and default is None:
            raise LabError(f"the file does not say which layers of {self.architecture} have a sliding window")
        length, first = default or (pattern, False)
        length = length if pattern is None else pattern
        chosen = [length == 0 or (i % length != 0 if first else i % length < length - 1) for i in range(self.n_layers)]
        return chosen + none[self.n_layers :], window

    def recurrent(self) -> list[bool]:
        """Which layers keep a state instead of K and V (in falcon-h1: beside them)."""
        heads_kv = self.per_layer("attention.head_count_kv", None)
        if self.architecture in RECURRENT or self.architecture == "falcon-h1":
            return [True] * self.n_all
        if self.architecture in BY_HEADS:
            return [n == 0 for n in heads_kv]
        if self.architecture.startswith("nemotron_h"):
            return [n == 0 and not ff for n, ff in zip(heads_kv, self.per_layer("feed_forward_length", 0))]
        if self.architecture in BY_INTERVAL:
            marked = self.get("attention.recurrent_layers")
            if isinstance(marked, list):
                return [bool(x) for x in marked]
            interval = self.get("full_attention_interval", 4)
            return [i < self.n_layers and (i + 1) % interval != 0 for i in range(self.n_all)]
        return [False] * self.n_all

    def state_bytes(self) -> int:
        """What a recurrent layer keeps of one sequence: float32 values of its convolution and of its state."""
        n_embd, wkv, shortconv = self.get("embedding_length", 0), self.get("wkv.head_size", 0), self.get("shortconv.l_cache", 0)
        if wkv:
            return 4 * (self.get("token_shift_count", 2) * n_embd + n_embd * wkv)
        inner, d_state = self.get("ssm.inner_size", 0), self.get("ssm.state_size", 0)
        convolution = max(self.get("ssm.conv_kernel", 0) - 1, 0) * (inner + 2 * self.get("ssm.group_count", 0) * d_state)
        return 4 * ((n_embd * (shortconv - 1) if shortconv else convolution) + d_state * inner)


def row(model: Model, case: Case, budget: int | None, n_ctx: int | None, n_ubatch: int, cuda: bool = False) -> dict[str, Any]:
    """What one pair takes, in bytes: at the longest context that `budget` bytes allow, or at `n_ctx` if that is given. `bytes_work`
    is 0 but with `cuda`.

    `n_ctx` of the result is None if the cache is the same at any context.
    """
    refused = model.refusal(case)
    if n_ctx is None and not refused:
        n_ctx = model.longest_context(case, budget or 0, n_ubatch, cuda)
    sizes = (0, 0, 0) if refused else model.cache_bytes(case, PAD if n_ctx is None else n_ctx, n_ubatch)
    work = model.work_bytes(case, PAD if n_ctx is None else n_ctx, n_ubatch) if cuda and not refused else 0
    center = 0 if refused else model.center_bytes(case, PAD if n_ctx is None else n_ctx, n_ubatch)
    return {"k": case.k, "v": case.v, "bits_k": bits_per_value(case.k), "bits_v": bits_per_value(case.v), "n_ctx": n_ctx,
            "bytes_k": sizes[0], "bytes_v": sizes[1], "bytes_state": sizes[2], "bytes_center": center, "bytes_work": work, "refused": refused}  # fmt: skip


def default_pairs() -> list[Case]:
    """f16, ggml's usual types, ours, and ours for V beside a q8_0 K."""
    return [Case(name, name) for name in ("f16", "q8_0", "q4_0", *OURS)] + [Case("q8_0", name) for name in OURS]


def parse_size(text: str) -> int:
    """`"24G"` is 24 GiB; also K, M, T; a bare number is bytes. ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not found:
        raise ValueError(f"found {text!r}, wanted a size such as 24G or 900M")
    return int(float(found[1]) * (1 << 10 * " KMGT".index(found[2].upper() or " ")))
