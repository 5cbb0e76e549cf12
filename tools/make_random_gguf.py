#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a GGUF file of any shape, of the llama architecture or another one with its tensors, with random weights: for speed and shapes only.

    python3 tools/make_random_gguf.py random.gguf --layers 8 --heads 16 --heads-kv 8 --ff 4096 --type q8_0
    llama-bench -m random.gguf -fa 1 -d 4096 -ctk f16,tq3_0 -ctv f16,tq3_0

What it generates is noise, and its attention has none of the structure of a trained model's, so it says nothing about
perplexity, KLD or any other quality of a cache type. Speed doesn't depend on the weights. One random matrix of a shape
serves all layers, each with its own copy in the file; the tokenizer knows bytes only. Needs numpy and gguf (the extra "test").
"""
from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

_SPECIAL = ("<unk>", "<s>", "</s>")
_TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
_FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 if the shape can't be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--architecture", choices=["llama", "smollm3"], default="llama", help="smollm3: every fourth layer has no RoPE (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=16, help="query heads (default: %(default)s)")
    parser.add_argument("--heads-kv", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--head-size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--embd", type=int, help="width of the residual stream (default: heads * head size)")
    parser.add_argument("--ff", type=int, help="width of the feed-forward layer (default: 3 * embd)")
    parser.add_argument("--vocab", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument("--context", type=int, default=131072, help="context length that the file claims (default: %(default)s)")
    parser.add_argument("--type", choices=sorted(_TYPES), default="q8_0", help="of the weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.embd = options.embd or options.heads * options.head_size
    options.ff = options.ff or 3 * options.embd
    if options.heads % options.heads_kv:
        parser.error(f"--heads: found {options.heads}, wanted a multiple of the {options.heads_kv} of --heads-kv")
    _check_sizes(parser, options, ("embd", "ff", "head_size"))
    return options


def _check_sizes(parser: argparse.ArgumentParser, options: argparse.Namespace, widths: tuple[str, ...]) -> None:
    """Exits with status 2 if the vocabulary can't hold the tokenizer, or one of `widths` isn't a whole number of q8_0 blocks."""
    if options.vocab < len(_SPECIAL) + 256:
        parser.error(f"--vocab: found {options.vocab}, wanted at least {len(_SPECIAL) + 256}")
    for name in widths:
        if getattr(options, name) % 32:
            parser.error(f"--{name.replace('_', '-')}: found {getattr(options, name)}, wanted a multiple of 32")


def write(options: argparse.Namespace) -> None:
    """Write the file."""
    writer = gguf.GGUFWriter(options.output, options.architecture)
    writer.add_name(f"random weights, {options.layers} layers, {options.heads}/{options.heads_kv} heads of {options.head_size}")
    writer.add_file_type(_FILE_TYPES[options.type])
    writer.add_context_length(options.context)
    writer.add_embedding_length(options.embd)
    writer.add_block_count(options.layers)
    writer.add_feed_forward_length(options.ff)
    writer.add_head_count(options.heads)
    writer.add_head_count_kv(options.heads_kv)
    writer.add_key_length(options.head_size)
    writer.add_value_length(options.head_size)
    writer.add_rope_dimension_count(options.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(options.vocab)
    _add_tokenizer(writer, options.vocab)

    random = np.random.default_rng(options.seed)
    made: dict[tuple[int, ...], np.ndarray] = {}

    def matrix(name: str, n_out: int, n_in: int) -> None:
        if (n_out, n_in) not in made:
            weights = random.standard_normal((n_out, n_in), dtype=np.float32) / np.float32(np.sqrt(n_in))
            made[n_out, n_in] = gguf.quants.quantize(weights, _TYPES[options.type])
        writer.add_tensor(name, made[n_out, n_in], raw_dtype=_TYPES[options.type])

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(options.embd, np.float32))

    matrix("token_embd.weight", options.vocab, options.embd)
    for layer in range(options.layers):
        norm(f"blk.{layer}.attn_norm.weight")
        matrix(f"blk.{layer}.attn_q.weight", options.heads * options.head_size, options.embd)
        matrix(f"blk.{layer}.attn_k.weight", options.heads_kv * options.head_size, options.embd)
        matrix(f"blk.{layer}.attn_v.weight", options.heads_kv * options.head_size, options.embd)
        matrix(f"blk.{layer}.attn_output.weight", options.embd, options.heads * options.head_size)
        norm(f"blk.{layer}.ffn_norm.weight")
        matrix(f"blk.{layer}.ffn_gate.weight", options.ff, options.embd)
        matrix(f"blk.{layer}.ffn_up.weight", options.ff, options.embd)
        matrix(f"blk.{layer}.ffn_down.weight", options.embd, options.ff)
    norm("output_norm.weight")
    matrix("output.weight", options.vocab, options.embd)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A sentencepiece vocabulary of the single bytes, filled up with words that no text holds."""
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    filling = n_vocab - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens + [f"<unused{i}>" for i in range(filling)])
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * filling)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


if __name__ == "__main__":
    write(parse())
