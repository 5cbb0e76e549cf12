/* SPDX-License-Identifier: MIT
 *
 * Every CPU level that can run here against ggmlq-codec.c (bytes) and the level "portable" (float results): also under an
 * emulator, where no Python is. Prints a line per level, then "ok"; tests/test_levels.py builds and reads it.
 *
 * The bound on float results: both levels take the same integer products and differ in the rounding of a sum of N terms and of
 * an exponential, so the difference is at most (2 N + 64) 2^-24 times the sum of the terms' magnitudes.
 */
#include "ggmlq-block.h"
#include "ggmlq.h"

#include <stdio.h>
#include <stdlib.h>

enum { GUARD = 64, GUARD_BYTE = 0x88 };

static uint32_t random_state = 12345;

static float random_value(void) { /* xorshift; roughly Gaussian */
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
        random_state ^= random_state << 13;
        random_state ^= random_state >> 17;
        random_state ^= random_state << 5;
        sum += (float) (random_state >> 8)/8388608.0f - 1.0f;
    }
    return sum;
}

static float * random_values(int64_t n) {
    float * x = malloc(sizeof(float)*(size_t) n);
    for (int64_t i = 0; i < n; ++i) {
        x[i] = random_value();
    }
    return x;
}

static void require(bool condition, const char * what) {
    if (!condition) {
        printf("%s: %s\n", ggmlq_cpu_level_active(), what);
        exit(1);
    }
}

/* `bytes` at an odd address between guards. */
static uint8_t * guarded(int64_t bytes) {
    uint8_t * p = malloc((size_t) bytes + 2*GUARD + 1);
    memset(p, GUARD_BYTE, (size_t) bytes + 2*GUARD + 1);
    return p + GUARD + 1;
}

static bool guards_hold(const uint8_t * p, int64_t bytes) {
    for (int i = 1; i <= GUARD; ++i) {
        if (p[-i] != GUARD_BYTE || p[bytes + i - 1] != GUARD_BYTE) {
            return false;
        }
    }
    return true;
}

static void release(uint8_t * p) { free(p - GUARD - 1); }

static void use_level(const char * level) { require(ggmlq_cpu_level_select(level) == GGMLQ_OK, "can be selected"); }

typedef int (* row_function)(int type, const void * source, void * target, int64_t n);

/* The casts are between functions that differ in what their pointers point to. */
#define ROW_FUNCTION(f) ((row_function) (void (*)(void)) (f))

static void check_rows(int type, row_function reference, row_function tested, const void * source, int64_t target_bytes, int64_t n, const char * what) {
    uint8_t * wanted = guarded(target_bytes + 3) + 3, * found = guarded(target_bytes + 3) + 3; /* floats want alignment 4 */
    require(reference(type, source, wanted, n) == GGMLQ_OK && tested(type, source, found, n) == GGMLQ_OK, what);
    require(memcmp(wanted, found, (size_t) target_bytes) == 0, what);
    require(guards_hold(found - 3, 3 + target_bytes), "writes beyond its output");
    release(wanted - 3);
    release(found - 3);
}

/* Values of ordinary size, tiny, huge, zero, equal (ties), and blocks that aren't finite. */
static float * encoder_input(int64_t n, int length) {
    static const float factors[] = { 1.0f, 1.0f, 1e-30f, 1e30f, 0.0f, 1e-41f, 3.0e38f, 1.0f };
    float * x = random_values(n);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t block = i/length;
        x[i] = block % 8 == 7 ? (float) ((int) (x[i]*2.0f)) : x[i]*factors[block % 8];
        if (block % 31 == 30 && i % length == 3) {
            x[i] = block % 2 ? NAN : INFINITY;
        }
    }
    return x;
}

static void check_codec(int type, int64_t blocks) {
    const struct ggmlq_type_info * info = ggmlq_type_info_get(type);
    const int64_t n = blocks*info->block_length, bytes = blocks*info->block_bytes, query_bytes = ggmlq_row_bytes(info->query_type, n);
    float   * x    = encoder_input(n, (int) info->block_length);
    float   * good = random_values(n);
    uint8_t * row  = guarded(bytes);
    require(ggmlq_encode_row(type, good, row, n) == GGMLQ_OK, "reference");
    check_rows(type, ROW_FUNCTION(ggmlq_encode_row), ROW_FUNCTION(ggmlq_cpu_encode_row), x, bytes, n, "encode_row differs");
    check_rows(type, ROW_FUNCTION(ggmlq_decode_row), ROW_FUNCTION(ggmlq_cpu_decode_row), row, 4*n, n, "decode_row differs");
    check_rows(type, ROW_FUNCTION(ggmlq_decode_row_rotated), ROW_FUNCTION(ggmlq_cpu_decode_row_rotated), row, 4*n, n, "decode_row_rotated differs");
    check_rows(type, ROW_FUNCTION(ggmlq_rotate_row), ROW_FUNCTION(ggmlq_cpu_rotate_row), good, 4*n, n, "rotate_row differs");
    check_rows(type, ROW_FUNCTION(ggmlq_unrotate_row), ROW_FUNCTION(ggmlq_cpu_unrotate_row), good, 4*n, n, "unrotate_row differs");
    check_rows(type, ROW_FUNCTION(ggmlq_encode_query_row), ROW_FUNCTION(ggmlq_cpu_encode_query_row), good, query_bytes, n, "encode_query_row differs");
    /* Bits of a NaN are nobody's promise. */
    uint8_t * wanted = malloc((size_t) query_bytes), * found = malloc((size_t) query_bytes);
    const int64_t block_query = query_bytes/blocks;
    require(ggmlq_encode_query_row(type, x, wanted, n) == GGMLQ_OK && ggmlq_cpu_encode_query_row(type, x, found, n) == GGMLQ_OK, "query");
    for (int64_t i = 0; i < blocks; ++i) {
        float a, b;
        memcpy(&a, wanted + i*block_query, 4);
        memcpy(&b, found  + i*block_query, 4);
        require((a == b || (isnan(a) && isnan(b))) && memcmp(wanted + i*block_query + 4, found + i*block_query + 4, (size_t) block_query - 4) == 0,
                "encode_query_row differs on extreme input");
    }
    free(found); free(wanted); release(row); free(good); free(x);
}

/* Keys rounded for queries. Every level rounds the same values, also where blocks of extreme ones lie before; nobody looks at feedback below the diagonal. */
static void check_for_queries(int type, int64_t n) {
    float    * x        = encoder_input(8*n, (int) ggmlq_type_info_get(type)->block_length);
    const int64_t bytes = ggmlq_row_bytes(type, n), n_feedback = ggmlq_feedback_values(n);
    float    * f        = random_values(n_feedback);
    uint16_t * feedback = (uint16_t *) (guarded(2*n_feedback + 1) + 1);
    for (int64_t i = 0; i < n_feedback; ++i) {
        feedback[i] = ggmlq_half_from_float(0.2f*f[i]);
    }
    uint8_t * wanted = guarded(bytes), * found = guarded(bytes);
    for (int64_t i = 0; i < 8; ++i) {
        require(ggmlq_encode_row_for_queries(type, x + i*n, feedback, wanted, n) == GGMLQ_OK && ggmlq_cpu_encode_row_for_queries(type, x + i*n, feedback, found, n) == GGMLQ_OK &&
            memcmp(wanted, found, (size_t) bytes) == 0, "encode_row_for_queries differs");
    }
    release(found); release(wanted); release((uint8_t *) feedback - 1); free(f); free(x);
}

/* Values that lie exactly on a boundary in one of the passes, found by trying 2 million blocks: both blocks come out otherwise
 * where a value on a boundary is put into the lower cell. */
static void check_ties(void) {
    static const uint32_t states[2] = { 2449017636u, 3057662578u };
    for (int i = 0; i < 2; ++i) {
        float    x[128];
        uint32_t state = states[i];
        for (int j = 0; j < 128; ++j) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            x[j] = state >> 8 & 1 ? (float) ((int) (state >> 16) % 3 - 1) : 0.0f;
        }
        check_rows(GGMLQ_TYPE_PLANAR3, ROW_FUNCTION(ggmlq_encode_row), ROW_FUNCTION(ggmlq_cpu_encode_row), x, 50, 128, "encode_row differs on a boundary");
    }
}

static void check_products(const char * level, int type, int64_t blocks, int64_t n_rows) {
    enum { QUERIES = 5 };
    const struct ggmlq_type_info * info = ggmlq_type_info_get(type);
    const int64_t n = blocks*info->block_length, bytes = blocks*info->block_bytes, stride = bytes + 3;
    const int64_t query_bytes = ggmlq_row_bytes(info->query_type, n);
    float * x = random_values(n*n_rows), * q = random_values(n*QUERIES);
    uint8_t * rows = guarded(stride*n_rows), * queries = guarded(query_bytes*QUERIES + 3) + 3;
    for (int64_t i = 0; i < n_rows; ++i) {
        ggmlq_encode_row(type, x + i*n, rows + i*stride, n);
    }
    ggmlq_encode_query_row(type, q, queries, n*QUERIES);
    const int64_t out_bytes = 4*QUERIES*n_rows;
    float   * wanted = malloc((size_t) out_bytes);
    uint8_t * out = guarded(out_bytes + 3) + 3;
    use_level("portable");
    require(ggmlq_mul_mat_vec(type, rows, stride, n_rows, queries, QUERIES, n, wanted) == GGMLQ_OK, "mul_mat_vec");
    use_level(level);
    require(ggmlq_mul_mat_vec(type, rows, stride, n_rows, queries, QUERIES, n, (float *) (void *) out) == GGMLQ_OK, "mul_mat_vec");
    require(guards_hold(out - 3, 3 + out_bytes), "mul_mat_vec writes beyond its output");
    for (int64_t i = 0; i < QUERIES*n_rows; ++i) {
        const float found = ((const float *) (void *) out)[i];
        float single;
        ggmlq_dot_row(type, rows + i%n_rows*stride, queries + i/n_rows*query_bytes, n, &single);
        require(memcmp(&found, &single, 4) == 0, "dot_row and mul_mat_vec differ");
        /* |level * unit| and |q * d| are below 5 and 6 here */
        require(fabsf(found - wanted[i]) <= (float) (2*blocks + 64)/16777216.0f * 30.0f*(float) n, "mul_mat_vec is beyond its bound");
    }
    release(out - 3); free(wanted); release(queries - 3); release(rows); free(q); free(x);
}

struct shape { int type_k, type_v; int64_t head_k, head_v, n_kv, n_queries, n_heads, n_heads_kv; bool causal; float softcap; int64_t n_pairs; bool text; };

static void check_attention(const char * level, const struct shape * c) {
    const int64_t k_bytes = ggmlq_row_bytes(c->type_k, c->head_k), v_bytes = ggmlq_row_bytes(c->type_v, c->head_v);
    const int64_t rows = c->n_kv*c->n_heads_kv, q_rows = c->n_queries*c->n_heads;
    float * q = random_values(q_rows*c->head_k), * x = random_values(c->head_k > c->head_v ? c->head_k : c->head_v);
    uint8_t * k = guarded(rows*k_bytes), * v = guarded(rows*v_bytes);
    for (int64_t i = 0; i < rows; ++i) {
        x[i % c->head_k] += 0.5f;
        if (c->type_k == GGMLQ_TYPE_F32) { memcpy(k + i*k_bytes, x, (size_t) k_bytes); } else { ggmlq_encode_row(c->type_k, x, k + i*k_bytes, c->head_k); }
        x[i % c->head_v] -= 0.75f;
        if (c->type_v == GGMLQ_TYPE_F32) { memcpy(v + i*v_bytes, x, (size_t) v_bytes); } else { ggmlq_encode_row(c->type_v, x, v + i*v_bytes, c->head_v); }
    }
    uint16_t * mask = calloc((size_t) (c->n_queries*c->n_kv), 2);
    for (int64_t i = 0; i < c->n_queries*c->n_kv; ++i) {
        mask[i] = c->causal && i%c->n_kv > i/c->n_kv + c->n_kv - c->n_queries ? 0xfc00 : 0;
    }
    float * w = random_values(q_rows*(2*c->n_pairs + 1));
    uint64_t * turns = calloc((size_t) (c->n_pairs + 1), sizeof(uint64_t));
    for (int64_t i = 0; i < c->n_pairs; ++i) {
        turns[i] = (uint64_t) (pow(0.8, (double) i)/6.283185307179586*18446744073709551616.0);
    }
    /* Positions of a text, or anywhere; every third token takes no part. The integers of a term are the same at every level. */
    int32_t  * positions = calloc((size_t) c->n_kv, sizeof(int32_t));
    uint16_t * part      = calloc((size_t) c->n_kv, 2);
    for (int64_t t = 0; t < c->n_kv; ++t) {
        positions[t] = (int32_t) (c->text ? t - 70 : t % 3 == 1 ? -(1 << 30) : t*t*1000003 % 2000000000);
        part[t]      = t % 3 == 1 ? 0 : ggmlq_half_from_float(0.75f);
    }
    const int64_t out_bytes = 4*q_rows*c->head_v;
    float * wanted = malloc((size_t) out_bytes);
    struct ggmlq_attend_params p = {
        .type_k = c->type_k, .type_v = c->type_v, .head_size_k = c->head_k, .head_size_v = c->head_v, .n_kv = c->n_kv,
        .n_queries = c->n_queries, .n_heads = c->n_heads, .n_heads_kv = c->n_heads_kv, .n_seqs = 1, .n_seqs_kv = 1,
        .q = q,      .q_stride = { 4*c->head_k, 4*c->head_k*c->n_queries, 4*c->head_k*q_rows },
        .k = k,      .k_stride = { k_bytes*c->n_heads_kv, k_bytes, k_bytes*rows },
        .v = v,      .v_stride = { v_bytes*c->n_heads_kv, v_bytes, v_bytes*rows },
        .out = wanted, .out_stride = { 4*c->head_v, 4*c->head_v*c->n_queries, out_bytes },
        .mask = c->causal ? mask : NULL, .mask_stride = { 2*c->n_kv, 0, 0 }, .mask_heads = 1, .mask_seqs = 1,
        .n_pairs = c->n_pairs, .pairs_are_halves = c->text, .turns = turns, .positions = positions, .part = part,
        .w = w, .w_stride = { 8*c->n_pairs, 8*c->n_pairs*c->n_queries, 8*c->n_pairs*q_rows },
        .scale = 0.08f, .logit_softcap = c->softcap,
    };
    use_level("portable");
    require(ggmlq_attend(&p, 0, 1) == GGMLQ_OK, "attend");
    use_level(level);
    for (int nth = 1; nth <= 5; nth += 2) {
        uint8_t * out = guarded(out_bytes + 3) + 3;
        p.out = (float *) (void *) out;
        const int64_t bytes = ggmlq_attend_workspace_bytes(&p, nth);
        uint8_t * workspace = guarded(bytes + 3) + 3;
        for (int ith = 0; ith < nth; ++ith) {
            require((bytes ? ggmlq_attend_part(&p, workspace, ith, nth) : ggmlq_attend(&p, ith, nth)) == GGMLQ_OK, "attend");
        }
        for (int ith = 0; bytes && ith < nth; ++ith) {
            require(ggmlq_attend_combine(&p, workspace, ith, nth) == GGMLQ_OK, "attend_combine");
        }
        require(guards_hold(out - 3, 3 + out_bytes) && guards_hold(workspace - 3, 3 + bytes), "attend writes beyond its output");
        /* A score is off by (2 head + 64) 2^-24 of at most 0.08 * 36 head, a weight by twice that, the sum over tokens adds its own. */
        const float u = 1.0f/16777216.0f, head = (float) (c->head_k + 2*c->n_pairs);
        const float bound = 8.0f*(2.0f*(2.0f*head/32.0f + 64.0f)*u*0.08f*4.0f*head + (2.0f*(float) c->n_kv + 64.0f)*u);
        for (int64_t i = 0; i < out_bytes/4; ++i) {
            require(fabsf(((const float *) (void *) out)[i] - wanted[i]) <= bound, "attend is beyond its bound");
        }
        release(workspace - 3); release(out - 3);
    }
    free(wanted); free(mask); free(part); free(positions); free(turns); free(w); release(v); release(k); free(x); free(q);
}

static void check_level(const char * level) {
    static const int types[] = { GGMLQ_TYPE_TQ3_0, GGMLQ_TYPE_PLANAR3 };
    enum { T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3, F = GGMLQ_TYPE_F32 };
    static const struct shape shapes[] = {
        { T, T,  128, 128,   1,  1,  4, 1, false, 0.0f, 0, false }, { P, P, 128, 128,  63,  1, 4, 1, false, 0.0f, 0, false },
        { T, P,  128, 128,  64,  2,  6, 2, true,  0.0f, 0, false }, { P, T, 256,  96,  65,  3, 4, 4, true,  5.0f, 0, false },
        { T, T,   32,  32, 129,  1,  3, 1, false, 0.0f, 0, false }, { T, T, 576,  64, 200,  2, 5, 1, true,  0.0f, 0, false },
        { T, T, 1024, 1024, 70,  1,  8, 1, false, 0.0f, 0, false }, { T, F, 64,    7, 100, 40, 4, 2, true,  0.0f, 0, false },
        { F, P,   33, 128, 100,  9,  4, 2, true,  0.0f, 0, false }, { P, P, 128, 128, 1300, 1, 4, 1, false, 0.0f, 0, false },
        { T, T,   64,  64, 3000, 1,  9, 3, false, 0.0f, 0, false }, { P, P, 512, 512, 90, 17, 16, 1, true,  0.0f, 0, false },
        { T, T,  128, 128, 200,  1,  6, 2, false, 0.0f, 64, false }, { P, F, 128,  64, 70,  9, 4, 1, true, 0.0f,  32, false },
        { F, T,   96,  32,  65,  2,  3, 3, true,  5.0f,  15, false }, { T, T, 1024, 96, 90, 3, 2, 1, true, 0.0f, 512, false },
        { T, T,  128, 128, 1300, 1,  6, 2, true,  0.0f, 64, true }, { F, F,  96,  64, 200, 7, 3, 1, true, 0.0f, 33, true },
    };
    use_level(level);
    check_ties();
    for (int i = 0; i < 2; ++i) {
        static const int64_t blocks[] = { 1, 2, 3, 4, 9, 124 };
        for (int j = 0; j < 6; ++j) {
            check_codec(types[i], blocks[j]);
        }
        static const int64_t lengths[] = { 32, 96, 128, 256, 1024 };
        for (int j = i == 0 ? 0 : 2; j < 5; ++j) {
            check_for_queries(types[i], lengths[j]);
        }
        static const int64_t n_rows[] = { 1, 2, 15, 16, 17, 63, 64, 65, 130 };
        for (int j = 0; j < 9; ++j) {
            check_products(level, types[i], 1 + j, n_rows[j]);
        }
    }
    for (size_t i = 0; i < sizeof(shapes)/sizeof(shapes[0]); ++i) {
        check_attention(level, &shapes[i]);
    }
}

int main(void) {
    for (int i = 0; i < ggmlq_cpu_level_count(); ++i) {
        const char * name = ggmlq_cpu_level_name(i), * reason = ggmlq_cpu_level_reason(i);
        if (*reason) {
            printf("%s: out: %s\n", name, reason);
            continue;
        }
        check_level(name);
        const int64_t calls = ggmlq_cpu_level_calls(i);
        require(calls > 0, "never ran");
        require(strcmp(ggmlq_cpu_level_active(), name) == 0, "is active");
        printf("%s: checked\n", name);
    }
    puts("ok");
    return 0;
}
