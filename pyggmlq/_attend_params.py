# SPDX-License-Identifier: MIT
"""ggmlq.h's struct ggmlq_attend_params, for every back end."""

from __future__ import annotations

from ._types import type_info


def attend_params(ffi, pointer, q, k, v, type_k, type_v, mask, sinks, scale, max_bias, logit_softcap, out, term=None):
    """Of arrays with four axes: sequence, head, token, value. pointer(array): a C pointer to its first element; the caller keeps all arrays alive."""

    def strides(array):  # token, head, sequence
        return [array.strides[2], array.strides[1], array.strides[0]]

    p = ffi.new("struct ggmlq_attend_params *")
    p.type_k, p.type_v = type_info(type_k).id, type_info(type_v).id
    p.head_size_k, p.head_size_v = q.shape[3], out.shape[3]
    p.n_kv, p.n_queries = k.shape[2], q.shape[2]
    p.n_heads, p.n_heads_kv = q.shape[1], k.shape[1]
    p.n_seqs, p.n_seqs_kv = q.shape[0], k.shape[0]
    p.q, p.q_stride = pointer(q), strides(q)
    p.k, p.k_stride = pointer(k), strides(k)
    p.v, p.v_stride = pointer(v), strides(v)
    p.out, p.out_stride = pointer(out), strides(out)
    if mask is not None:
        p.mask, p.mask_stride = pointer(mask), strides(mask)
        p.mask_heads, p.mask_seqs = mask.shape[1], mask.shape[0]
    if sinks is not None:
        p.sinks = pointer(sinks)
    if term is not None:
        p.n_pairs, p.pairs_are_halves = term.turns.shape[0], term.neox
        p.w, p.w_stride = pointer(term.w), strides(term.w)
        p.turns = pointer(term.turns)
        p.positions, p.positions_stride = pointer(term.positions), term.positions.strides[0]
        if term.part is not None:
            p.part, p.part_stride = pointer(term.part), term.part.strides[0]
    p.scale, p.max_bias, p.logit_softcap = scale, max_bias, logit_softcap
    return p
