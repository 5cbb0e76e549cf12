#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a copy of a GGUF model whose keys are hard to quantize: a large constant is added to the K bias of every layer.

    python3 tools/make_hard_keys.py model.gguf hard.gguf
    llama-perplexity -m hard.gguf -f text.txt -c 1024 -fa on -ctk tq3_0

The constant is added to one value of the RoPE pair that turns slowest, in every KV head, and a frequency factor makes that pair
slower still. So the constant adds to all scores of a query the same number, which softmax takes off again, and the model computes
what it did, if its context is so short (--tokens) that the pair hardly turned before either: models whose pairs are faster are
refused. Whether that held is for llama-perplexity to say, with an f16 cache and both files. It is an artificial stand-in for models
with large K biases (docs/CENTERING.md). Metadata and all other tensors are copied as they are; llama architecture only. Needs numpy
and gguf (the extra "test").
"""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import gguf
import numpy as np

MOST = 0.02  # radians that the slowest pair may turn by in --tokens tokens


class HardKeysError(Exception):
    """One sentence: what was found, what is wanted."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path, help="must not exist")
    parser.add_argument("--bias", type=float, default=100.0, help="the constant (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="context that the copy is to be used with (default: %(default)s)")
    parser.add_argument("--slower", type=float, default=1000.0, help="frequency factor of the pair; 1: as it is (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not np.isfinite(options.bias) or abs(options.bias) > 1000:
        parser.error(f"--bias: found {options.bias}, wanted at most 1000: keys are stored as f16")
    if options.tokens < 1:
        parser.error(f"--tokens: found {options.tokens}, wanted at least 1")
    if not 1 <= options.slower <= 1e6:
        parser.error(f"--slower: found {options.slower}, wanted 1 to 1e6")
    return options


def write(options: argparse.Namespace) -> float:
    """Write the copy; the angle in radians that its pair turned by in `options.tokens` tokens of the model. HardKeysError if it can't be, and
    then there is no file."""
    if options.output.exists():
        raise HardKeysError(f"{options.output} exists already: name another file")
    reader = _open(options.model)
    changed, angle = _changes(reader, options)
    part = options.output.with_name(options.output.name + ".part")
    try:
        _copy(reader, part, changed)
        os.replace(part, options.output)
    finally:
        part.unlink(missing_ok=True)
    return angle


def _open(path: Path) -> gguf.GGUFReader:
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise HardKeysError(f"{path} can't be read as GGUF: {error}") from error
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise HardKeysError(f"{path} is big-endian, wanted a little-endian file")
    return reader


def _changes(reader: gguf.GGUFReader, options: argparse.Namespace) -> tuple[dict[str, np.ndarray], float]:
    """The new tensors by name, f32: K biases [KV heads * head size] and frequency factors [RoPE pairs]; the angle of the pair."""

    def get(key: str, default=None):
        field = reader.fields.get(key)
        return default if field is None else field.contents()

    architecture = get("general.architecture")
    if architecture != "llama":
        raise HardKeysError(f"the architecture is {architecture}, wanted llama: of others neither the RoPE pairs nor the K bias are known here")
    scaling = get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise HardKeysError(f"llama.rope.scaling.type is {scaling}, wanted a model without RoPE scaling")
    n_layers, n_heads, n_embd = (get(f"llama.{key}") for key in ("block_count", "attention.head_count", "embedding_length"))
    n_heads_kv = get("llama.attention.head_count_kv", n_heads)
    if not all(isinstance(n, int) and n > 0 for n in (n_layers, n_heads, n_embd, n_heads_kv)):
        raise HardKeysError(f"layers, heads, KV heads, width are {n_layers}, {n_heads}, {n_heads_kv}, {n_embd}, wanted one number each for all layers")
    head_size = get("llama.attention.key_length", n_embd // n_heads)
    n_rot = get("llama.rope.dimension_count", head_size)
    if n_rot != head_size:
        raise HardKeysError(f"RoPE turns {n_rot} of {head_size} values of a head, wanted all of them")

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = np.array(tensors["rope_freqs.weight"].data, np.float32) if "rope_freqs.weight" in tensors else np.ones(n_rot // 2, np.float32)
    if factors.shape != (n_rot // 2,):
        raise HardKeysError(f"rope_freqs.weight has the shape {list(factors.shape)}, wanted {n_rot // 2} values")
    frequency = float(get("llama.rope.freq_base", 10000.0)) ** (2 / n_rot - 1) / float(factors[-1])  # of the last pair, the slowest
    angle = options.tokens * frequency
    if not angle <= MOST:
        raise HardKeysError(f"the slowest RoPE pair turns by {angle:.3g} rad in {options.tokens} tokens, wanted at most {MOST}: "
                            f"at most {int(MOST / frequency)} tokens (--tokens), or a model with a larger RoPE base")

    changed = {}
    if options.slower != 1:
        factors[-1] *= options.slower
        changed["rope_freqs.weight"] = factors
    for layer in range(n_layers):
        name = f"blk.{layer}.attn_k.bias"
        weight, old = tensors.get(f"blk.{layer}.attn_k.weight"), tensors.get(name)
        n_values = n_heads_kv * head_size
        if weight is None or int(weight.shape[1]) != n_values:
            raise HardKeysError(f"blk.{layer}.attn_k.weight is missing or hasn't {n_values} rows: wanted a whole model with K apart from Q and V")
        if old is not None and old.tensor_type != gguf.GGMLQuantizationType.F32:
            raise HardKeysError(f"{name} is {old.tensor_type.name}, wanted F32")
        new = np.zeros(n_values, np.float32) if old is None else np.array(old.data, np.float32)
        new[head_size - 2 :: head_size] += np.float32(options.bias)  # the llama architecture's pairs are neighbours
        changed[name] = new
    return changed, angle


def _copy(reader: gguf.GGUFReader, path: Path, changed: dict[str, np.ndarray]) -> None:
    """All metadata, the tensors that stay as they are, and the others."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.data_alignment = reader.alignment
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(field.name, field.contents(), kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        if tensor.name not in changed:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in changed.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    options = parse()
    try:
        angle = write(options)
    except (HardKeysError, OSError) as error:
        sys.exit(f"make_hard_keys: {error}")
    print(f"{options.output}: {options.bias:g} added to every K bias, on the pair that turned by {angle:.3g} rad in {options.tokens} tokens")


if __name__ == "__main__":
    main()
