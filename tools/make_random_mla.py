#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a GGUF file with multi-head latent attention and random weights: for tests of its cache, for speed and shapes.

    python3 tools/make_random_mla.py mla.gguf --architecture deepseek2
    python3 tools/make_random_mla.py dsa.gguf --architecture deepseek32 --top-k 64

A cached row has the real size, 576: 512 values that are K and V, and 64 of K that are rotated by position. deepseek32 (DeepSeek-V3.2)
also has a lightning indexer, with keys of 128, that selects the rows a token sees. Layers, widths and vocabulary are small, and no
layer has experts. What the model generates is noise; what an error in its cache does to its logits can be measured all the same. Needs
numpy and gguf (the extra "test").
"""
from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from make_random_gguf import _FILE_TYPES, _TYPES, _add_tokenizer, _check_sizes

LATENT, ROTATED, HEAD, INDEXER_HEADS, INDEXER_HEAD_SIZE = 512, 64, 128, 64, 128


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 if the shape can't be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--architecture", choices=("deepseek2", "deepseek32"), default="deepseek2", help="(default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--heads", type=int, default=8, help="query heads (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=2048, help="rows that a token sees in deepseek32 (default: %(default)s)")
    parser.add_argument("--embd", type=int, default=512, help="width of the residual stream (default: %(default)s)")
    parser.add_argument("--lora", type=int, default=128, help="rank of the query matrices (default: %(default)s)")
    parser.add_argument("--ff", type=int, default=512, help="width of the feed-forward layer (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--context", type=int, default=131072, help="context length that the file claims (default: %(default)s)")
    parser.add_argument("--type", choices=sorted(_TYPES), default="f16", help="of the matrices (default: %(default)s)")
    parser.add_argument("--mean", type=float, default=0, help="of embeddings, in their standard deviations; latents get one by it, values with RoPE don't (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    _check_sizes(parser, options, ("embd", "lora", "ff"))
    return options


def write(options: argparse.Namespace) -> None:
    """Write the file."""
    writer = gguf.GGUFWriter(options.output, options.architecture)
    writer.add_name(f"random weights, {options.layers} layers, {options.heads} heads")
    writer.add_file_type(_FILE_TYPES[options.type])
    selects = options.architecture == "deepseek32"
    numbers = {
        "context_length": options.context,
        "embedding_length": options.embd,
        "block_count": options.layers,
        "leading_dense_block_count": options.layers,
        "feed_forward_length": options.ff,
        "vocab_size": options.vocab,
        "rope.dimension_count": ROTATED,
        "attention.head_count": options.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": LATENT + ROTATED,
        "attention.value_length": LATENT,
        "attention.key_length_mla": HEAD + ROTATED,
        "attention.value_length_mla": HEAD,
        "attention.q_lora_rank": options.lora,
        "attention.kv_lora_rank": LATENT,
        "expert_count": 2,  # in no layer, but llama.cpp reads them
        "expert_used_count": 1,
        "expert_shared_count": 1,
        "expert_feed_forward_length": options.ff,
        "expert_gating_func": 2,
    }
    if selects:
        numbers |= {"attention.indexer.head_count": INDEXER_HEADS, "attention.indexer.key_length": INDEXER_HEAD_SIZE, "attention.indexer.top_k": options.top_k}
    for name, number in numbers.items():
        writer.add_uint32(f"{options.architecture}.{name}", number)
    for name, real in {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10000.0, "expert_weights_scale": 1.0}.items():
        writer.add_float32(f"{options.architecture}.{name}", real)
    writer.add_bool(f"{options.architecture}.expert_weights_norm", True)
    _add_tokenizer(writer, options.vocab)

    random = np.random.default_rng(options.seed)

    def constant(name: str, value: float, n: int) -> None:
        writer.add_tensor(name, np.full(n, value, np.float32))

    def matrix(name: str, *shape: int, mean: float = 0, balanced: int = 0) -> None:
        weights = random.standard_normal(shape, dtype=np.float32) + np.float32(mean)
        weights[len(weights) - balanced :] -= weights[len(weights) - balanced :].mean(axis=-1, keepdims=True)
        weights /= np.float32(np.sqrt(shape[-1]))
        writer.add_tensor(name, gguf.quants.quantize(weights, _TYPES[options.type]), raw_dtype=_TYPES[options.type])

    matrix("token_embd.weight", options.vocab, options.embd, mean=options.mean)
    for layer in range(options.layers):
        at = f"blk.{layer}."
        constant(at + "attn_norm.weight", 1, options.embd)
        matrix(at + "attn_q_a.weight", options.lora, options.embd)
        constant(at + "attn_q_a_norm.weight", 1, options.lora)
        matrix(at + "attn_q_b.weight", options.heads * (HEAD + ROTATED), options.lora)
        matrix(at + "attn_kv_a_mqa.weight", LATENT + ROTATED, options.embd, balanced=ROTATED if options.mean else 0)
        constant(at + "attn_kv_a_norm.weight", 1, LATENT)
        matrix(at + "attn_k_b.weight", options.heads, LATENT, HEAD)
        matrix(at + "attn_v_b.weight", options.heads, HEAD, LATENT)
        matrix(at + "attn_output.weight", options.embd, options.heads * HEAD)
        if selects:
            constant(at + "indexer.k_norm.weight", 1, INDEXER_HEAD_SIZE)
            constant(at + "indexer.k_norm.bias", 0, INDEXER_HEAD_SIZE)
            matrix(at + "indexer.proj.weight", INDEXER_HEADS, options.embd)
            matrix(at + "indexer.attn_k.weight", INDEXER_HEAD_SIZE, options.embd)
            matrix(at + "indexer.attn_q_b.weight", INDEXER_HEADS * INDEXER_HEAD_SIZE, options.lora)
        constant(at + "ffn_norm.weight", 1, options.embd)
        matrix(at + "ffn_gate.weight", options.ff, options.embd)
        matrix(at + "ffn_up.weight", options.ff, options.embd)
        matrix(at + "ffn_down.weight", options.embd, options.ff)
    constant("output_norm.weight", 1, options.embd)
    matrix("output.weight", options.vocab, options.embd)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(parse())
