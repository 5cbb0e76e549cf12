/* SPDX-License-Identifier: MIT
 *
 * Attention for few queries: what the launcher, the kernel and its instances share. ggmlq-cuda-attend-decode.def lists the instances.
 */
#ifndef GGMLQ_CUDA_ATTEND_DECODE_H
#define GGMLQ_CUDA_ATTEND_DECODE_H

#include "ggmlq-cuda.h"

enum { GGMLQ_DECODE_MAX_QUERIES = 8, GGMLQ_DECODE_MAX_GROUP = 128 };

/* Positions whose terms of centered keys a warp makes at once: as many as it has tokens, where shared memory is left. A power of 2. */
enum { GGMLQ_TERM_LEAST_ROWS = 32, GGMLQ_TERM_MOST_ROWS = 128 };

/* How the work is cut. A unit is a KV head, a sequence and a chunk of columns; `splits` blocks share its tokens. */
struct ggmlq_decode_plan {
    int     n_kv, heads_kv, group, seqs_per_kv;
    int     columns, chunks, units, splits;
    int     tiles_per_split, longer_splits; /* the first `longer_splits` have one tile more */
    int     slices;       /* of a head: warps that share it                                        */
    bool    v_in_k;       /* V's rows are K's                                                      */
    bool    one_mask;     /* all columns see the same mask row                                     */
    bool    mask_aligned, q_aligned, out_aligned; /* to 16 bytes                                    */
    bool    overlaps;     /* the kernel is launched before the one ahead of it in the stream has ended   */
    bool    short_loop;   /* a few tiles for each warp                                             */
    int     queries_at, scales_at, exchange_at, shared_bytes; /* in shared memory                       */
    unsigned k_step, v_step; /* bytes from a warp's tile to its next                              */
    unsigned k_copy_step, v_copy_step; /* bytes from a row that a lane copies to its next         */
    unsigned unit;        /* 65536, see ggmlq_two_halves                                           */
    int64_t stats_at, partials_at, workspace_bytes; /* workspace: a counter a unit, statistics, sums */
    int     term_rows, term_warps_at, term_warp_bytes, term_turned_at; /* centered keys: positions at once; in shared memory */
    bool    out_turned;   /* every 64 values of the output by llama.cpp's own rotation (attn_rot)        */
    int     has_parts, positions_step, parts_step; /* values from one sequence of them to the next        */
};

struct ggmlq_decode_instance {
    int type_k, type_v, slice, tail, tiles, warps, rows, m_tiles, sum_bytes, align_k, align_v;
    bool term;            /* for centered keys, and for no others */
    bool lean;            /* for one query, heads of one slice, V beside K, no softcap */
    void (* place)(ggmlq_decode_plan * plan, const ggmlq_attend_params * p); /* fills in steps, and what lies where in shared memory */
    const void * kernel;
    const void * combine; /* a kernel that adds up the ranges, or NULL: the last block does */
};

/* The instances of one file; NULL after the last. */
#define GGMLQ_DECODE_FILE(file) const ggmlq_decode_instance * ggmlq_decode_instances_##file(int i);
GGMLQ_DECODE_FILE(tq3_0)
GGMLQ_DECODE_FILE(planar3)
GGMLQ_DECODE_FILE(f16_k)
GGMLQ_DECODE_FILE(f16_v)
GGMLQ_DECODE_FILE(q8_0_k)
GGMLQ_DECODE_FILE(q8_0_v)
GGMLQ_DECODE_FILE(wide)
GGMLQ_DECODE_FILE(term_tq3_0)
GGMLQ_DECODE_FILE(term_planar3)
GGMLQ_DECODE_FILE(term_f16_v)
GGMLQ_DECODE_FILE(term_q8_0_v)
#undef GGMLQ_DECODE_FILE

#endif
