/* SPDX-License-Identifier: MIT
 *
 * What the host hands to the kernels of ggmlq-metal.metal: the same text on both sides, included here and pasted there. Every member
 * lies at a multiple of its size, so that both see the same bytes.
 */
#ifndef GGMLQ_METAL_ARGS_H
#define GGMLQ_METAL_ARGS_H

/* Numbers of the function constants. Every kernel is compiled once for each set of values that is asked for. */
enum {
    GGMLQ_METAL_TYPE       = 0, /* of the encoded rows; of K                            */
    GGMLQ_METAL_OTHER_TYPE = 1, /* of the values; of V                                  */
    GGMLQ_METAL_HEAD_K     = 2, /* attention: values of a K row, of a V row, and how    */
    GGMLQ_METAL_HEAD_V     = 3, /* many columns (a query token of a head) a threadgroup */
    GGMLQ_METAL_COLUMNS    = 4, /* works on at once                                     */
    GGMLQ_METAL_PAIRS      = 5, /* of w of centered keys; 0: there are none             */
    GGMLQ_METAL_CONSTANTS  = 6
};

enum {
    GGMLQ_METAL_TEAM           = 8,   /* threads that work on a plane or a block: thread l has the values j with j % 8 = l      */
    GGMLQ_METAL_THREADS        = 256, /* of every threadgroup                                                                   */
    GGMLQ_METAL_SIMDGROUPS     = GGMLQ_METAL_THREADS/32,
    GGMLQ_METAL_PRODUCT_ROWS   = 128, /* mul_mv: rows of a threadgroup                                                          */
    GGMLQ_METAL_MAX_COLUMNS    = 8,
    GGMLQ_METAL_MAX_PLANES     = 16,  /* attention: planes of V times columns that a lane adds up, 4 values of each             */
    GGMLQ_METAL_PART_EXTRA     = 2,   /* attention: floats behind the values of a part: the maximum, the sum of weights         */
    GGMLQ_METAL_INDEXER_LENGTH = 128, /* values of a row                                                                        */
    GGMLQ_METAL_INDEXER_ROWS   = 128, /* of a threadgroup                                                                       */
    GGMLQ_METAL_INDEXER_HEADS  = 64   /* whose queries are in threadgroup memory at a time                                      */
};

/* Rows of a tensor of up to four axes, in units that a team or a thread works on. */
struct ggmlq_metal_walk {
    int64_t  nb1, nb2, nb3; /* bytes */
    uint32_t units;         /* of a row */
    uint32_t unit_bytes;    /* 0: the kernel knows */
    uint32_t ne1, ne2;
};

struct ggmlq_metal_rows_args {
    struct ggmlq_metal_walk rows, values; /* encoded, decoded; copy: to, from */
    int64_t  index_nb[3];
    uint32_t index_bytes;                 /* 0: row i is row i */
    uint32_t index_ne1, index_ne2;        /* indices repeat with these periods along axes 2 and 3 */
    uint32_t n_rows;                      /* an index beyond is skipped */
    uint32_t n;                           /* units in all */
    uint32_t inverse;                     /* decode, rotate: apply the inverse rotation */
};

struct ggmlq_metal_round_args {
    int64_t  rows_nb1, values_nb1, index_nb0, feedback_nb1;
    uint32_t index_bytes, n_rows;         /* an index beyond is skipped */
    uint32_t n_tokens, length;            /* values of a head */
    uint32_t n;                           /* heads of all tokens */
    uint32_t unused;
};

struct ggmlq_metal_fill_args {
    struct ggmlq_metal_walk to, from;     /* units: planes of `to`; of `from` unused */
    uint32_t size;                        /* values of a row of `from` */
    float    factor;
    uint32_t n;                           /* units in all */
    uint32_t unused;
};

struct ggmlq_metal_positional_args {
    struct ggmlq_metal_walk to;           /* units: planes */
    int64_t  positions_nb, part_nb;       /* sequence */
    uint32_t n_pairs, pairs_are_halves, has_part;
    float    factor;
    uint32_t n;                           /* units in all */
    uint32_t unused;
};

struct ggmlq_metal_product_args {
    int64_t  rows_nb[3], x_nb[3], out_nb[3];
    uint32_t n, n_rows;
    uint32_t ne2;                         /* of x */
    uint32_t ratio2, ratio3;              /* heads and sequences of x to each of rows */
    uint32_t unused;
};

struct ggmlq_metal_attend_args {
    int64_t  q_nb[3], k_nb[3], v_nb[3], out_nb[3]; /* token, head, sequence */
    int64_t  mask_nb[3];                           /* token, head, sequence */
    int64_t  w_nb[3], positions_nb, part_nb;       /* centered keys: token, head, sequence; sequence; sequence */
    uint32_t n_kv, n_rows;                         /* tokens that are looked at, or places of a list; rows that there are */
    uint32_t n_splits, split_kv;                   /* threadgroups that share the tokens of a query row, tokens of each   */
    uint32_t group;                                /* query heads to each head of the cache */
    uint32_t heads_kv, n_queries;
    uint32_t seqs_ratio;
    uint32_t span, tiles;                          /* columns that share their keys, and threadgroups for them */
    uint32_t has_mask, has_sinks, has_list;
    uint32_t mask_heads, mask_seqs;
    uint32_t alibi_heads;                          /* 0: no ALiBi; the largest power of two of heads */
    float    alibi_base, alibi_base_odd;
    float    scale, softcap;
    uint32_t query_rows;                           /* combine: of all heads and sequences */
    uint32_t has_part;                             /* else every factor of a term is 1 */
    uint32_t pairs_are_halves;                     /* of w; else they are neighbours   */
    uint32_t unused;
};

struct ggmlq_metal_select_args {
    int64_t  mask_nb[2];                           /* token, sequence */
    uint32_t n_kv, n_queries, mask_seqs;
    uint32_t most;                                 /* places of a list */
};

struct ggmlq_metal_indexer_args {
    int64_t  q_nb[3];                              /* head, token, sequence */
    int64_t  rows_nb[2];                           /* row, sequence         */
    int64_t  weights_nb[2], mask_nb[2], scores_nb[2]; /* token, sequence    */
    uint32_t heads, n_rows, mask_seqs;
    uint32_t unused;
};

#endif
