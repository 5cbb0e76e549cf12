#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a GGUF file of the deepseek4 architecture with random weights: for tests of its caches, for speed and shapes.

    python3 tools/make_random_deepseek4.py ds4.gguf --ratios 0,4,128,4 --heads 64 --top-k 512
    llama-bench -m ds4.gguf -fa 1 -d 32768 -ctk planar3 -ctv planar3

Heads are of the real sizes: rows of 512 values of which 64 are rotated by position, indexer keys of 128. A layer of ratio 0
attends to its sliding window alone, one of ratio 4 also to compressed rows that the indexer selects (CSA), one of 128 to all
compressed rows (HCA). Layers, experts, widths and vocabulary are small. What the model generates is noise; what an error in its
cache does to its logits can be measured all the same. Needs numpy and gguf (the extra "test").
"""
from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from make_random_gguf import _FILE_TYPES, _TYPES, _add_tokenizer, _check_sizes

ARCHITECTURE = "deepseek4"
HEAD_SIZE, ROTATED, INDEXER_HEAD_SIZE = 512, 64, 128
STREAMS = 4  # of the residual (hyper-connections)
SQRT_SOFTPLUS = 4  # the only gating of experts that llama.cpp takes here


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 if the shape can't be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--ratios", default="0,4,128,4", help="compression of each layer: 0, 4 or 128 (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=8, help="query heads; the real models have 64 and 128 (default: %(default)s)")
    parser.add_argument("--window", type=int, default=128, help="sliding window (default: %(default)s)")
    parser.add_argument("--indexer-heads", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=512, help="compressed rows that a token sees (default: %(default)s)")
    parser.add_argument("--head-size", type=int, default=HEAD_SIZE, help="another than the real one (default: %(default)s)")
    parser.add_argument("--indexer-head-size", type=int, default=INDEXER_HEAD_SIZE, help="another than the real one (default: %(default)s)")
    parser.add_argument("--embd", type=int, default=512, help="width of the residual stream (default: %(default)s)")
    parser.add_argument("--lora", type=int, default=128, help="rank of the query and output matrices (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=8, help="of the output matrix (default: %(default)s)")
    parser.add_argument("--experts", type=int, default=4, help="two of them are used (default: %(default)s)")
    parser.add_argument("--ff", type=int, default=256, help="width of an expert (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--context", type=int, default=1048576, help="context length that the file claims (default: %(default)s)")
    parser.add_argument("--type", choices=sorted(_TYPES), default="q8_0", help="of the matrices (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        options.ratios = [int(ratio) for ratio in options.ratios.split(",")]
    except ValueError:
        parser.error(f"--ratios: found {options.ratios!r}, wanted numbers between commas")
    for ratio in options.ratios:
        if ratio not in (0, 4, 128):
            parser.error(f"--ratios: found {ratio}, wanted 0, 4 or 128")
    if options.heads % options.groups:
        parser.error(f"--heads: found {options.heads}, wanted a multiple of the {options.groups} of --groups")
    if options.experts < 2:
        parser.error(f"--experts: found {options.experts}, wanted at least 2")
    _check_sizes(parser, options, ("embd", "lora", "ff", "head_size", "indexer_head_size"))
    if min(options.head_size, options.indexer_head_size) < ROTATED:
        parser.error(f"--head-size, --indexer-head-size: found {min(options.head_size, options.indexer_head_size)}, wanted at least {ROTATED}")
    return options


def write(options: argparse.Namespace) -> None:
    """Write the file."""
    writer = gguf.GGUFWriter(options.output, ARCHITECTURE)
    writer.add_name(f"random weights, ratios {options.ratios}, {options.heads} heads of {options.head_size}")
    writer.add_file_type(_FILE_TYPES[options.type])
    numbers = {
        "context_length": options.context,
        "embedding_length": options.embd,
        "block_count": len(options.ratios),
        "feed_forward_length": options.ff,
        "vocab_size": options.vocab,
        "rope.dimension_count": ROTATED,
        "attention.head_count": options.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": options.head_size,
        "attention.value_length": options.head_size,
        "attention.sliding_window": options.window,
        "attention.q_lora_rank": options.lora,
        "attention.output_lora_rank": options.lora,
        "attention.output_group_count": options.groups,
        "attention.indexer.head_count": options.indexer_heads,
        "attention.indexer.key_length": options.indexer_head_size,
        "attention.indexer.top_k": options.top_k,
        "expert_count": options.experts,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_feed_forward_length": options.ff,
        "expert_gating_func": SQRT_SOFTPLUS,
        "hyper_connection.count": STREAMS,
        "hyper_connection.sinkhorn_iterations": 20,
        "hash_layer_count": 0,
    }
    reals = {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.compress_rope_freq_base": 160000.0,
        "rope.freq_base": 10000.0,
        "expert_weights_scale": 1.5,
        "swiglu_clamp_exp": 10.0,
        "hyper_connection.epsilon": 1e-6,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"{ARCHITECTURE}.{name}", number)
    for name, real in reals.items():
        writer.add_float32(f"{ARCHITECTURE}.{name}", real)
    writer.add_bool(f"{ARCHITECTURE}.expert_weights_norm", True)
    writer.add_array(f"{ARCHITECTURE}.attention.compress_ratios", options.ratios)
    _add_tokenizer(writer, options.vocab)

    random = np.random.default_rng(options.seed)

    def floats(name: str, *shape: int, mean: float = 0.0, spread: float = 0.0) -> None:
        writer.add_tensor(name, (mean + spread * random.standard_normal(shape)).astype(np.float32))

    def matrix(name: str, *shape: int) -> None:
        weights = random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
        writer.add_tensor(name, gguf.quants.quantize(weights, _TYPES[options.type]), raw_dtype=_TYPES[options.type])

    heads, size, mixed = options.heads, options.head_size, STREAMS * options.embd
    matrix("token_embd.weight", options.vocab, options.embd)
    for layer, ratio in enumerate(options.ratios):
        at = f"blk.{layer}."
        floats(at + "attn_norm.weight", options.embd, mean=1.0)
        floats(at + "attn_sinks.weight", heads, spread=1.0)
        matrix(at + "attn_q_a.weight", options.lora, options.embd)
        floats(at + "attn_q_a_norm.weight", options.lora, mean=1.0)
        matrix(at + "attn_q_b.weight", heads * size, options.lora)
        matrix(at + "attn_kv.weight", size, options.embd)
        floats(at + "attn_kv_a_norm.weight", size, mean=1.0)
        matrix(at + "attn_output_a.weight", options.lora * options.groups, heads * size // options.groups)
        matrix(at + "attn_output_b.weight", options.embd, options.lora * options.groups)
        for where in ("hc_attn", "hc_ffn"):
            floats(at + where + "_fn.weight", (2 + STREAMS) * STREAMS, mixed, spread=mixed**-0.5)
            floats(at + where + "_base.weight", (2 + STREAMS) * STREAMS, spread=0.1)
            floats(at + where + "_scale.weight", 3, mean=1.0)
        if ratio:
            overlap = 2 if ratio == 4 else 1
            _compressor(at + "attn_compressor_", overlap * size, size, ratio, options.embd, matrix, floats)
            if ratio == 4:
                matrix(at + "indexer.proj.weight", options.indexer_heads, options.embd)
                matrix(at + "indexer.attn_q_b.weight", options.indexer_heads * options.indexer_head_size, options.lora)
                _compressor(at + "indexer_compressor_", 2 * options.indexer_head_size, options.indexer_head_size, ratio, options.embd, matrix, floats)
        floats(at + "ffn_norm.weight", options.embd, mean=1.0)
        matrix(at + "ffn_gate_inp.weight", options.experts, options.embd)
        floats(at + "exp_probs_b.bias", options.experts, spread=0.1)
        for name, shape in (("gate", (options.ff, options.embd)), ("up", (options.ff, options.embd)), ("down", (options.embd, options.ff))):
            matrix(at + f"ffn_{name}_exps.weight", options.experts, *shape)
            matrix(at + f"ffn_{name}_shexp.weight", *shape)
    floats("output_hc_fn.weight", STREAMS, mixed, spread=mixed**-0.5)
    floats("output_hc_base.weight", STREAMS, spread=0.1)
    floats("output_hc_scale.weight", 1, mean=1.0)
    floats("output_norm.weight", options.embd, mean=1.0)
    matrix("output.weight", options.vocab, options.embd)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _compressor(at: str, wide: int, size: int, ratio: int, embd: int, matrix, floats) -> None:
    """Of `ratio` tokens (and, where rows overlap, of the ones before) one row of `size` values."""
    matrix(at + "kv.weight", wide, embd)
    matrix(at + "gate.weight", wide, embd)
    floats(at + "ape.weight", ratio, wide, spread=0.5)
    floats(at + "norm.weight", size, mean=1.0)


if __name__ == "__main__":
    write(parse())
