/* SPDX-License-Identifier: MIT
 *
 * Arbitrary bytes through every function of csrc/ggmlq.h: nothing may read or write out of bounds or do what C leaves
 * undefined, and what docs/FORMAT.md promises of any input must hold. Build with -fsanitize=address,undefined.
 * Every buffer is its own allocation of exactly the promised size, so that the sanitizer sees one byte too many.
 *
 *   fuzz_codec ITERATIONS     deterministic; what tests/test_csrc.py runs
 *   -DLIBFUZZER -fsanitize=fuzzer,address,undefined      the same as a libFuzzer target
 */
#include "ggmlq.h"

#include <stdio.h>
#include <stdlib.h>

/* The input, read front to back; zeros after its end. */
struct input { const uint8_t * data; size_t size; };

static uint8_t take(struct input * in) {
    if (in->size == 0) {
        return 0;
    }
    --in->size;
    return *in->data++;
}

static void * take_bytes(struct input * in, int64_t n) {
    uint8_t * bytes = malloc((size_t) n);
    for (int64_t i = 0; i < n; ++i) {
        bytes[i] = take(in);
    }
    return bytes;
}

static void require(bool condition, const char * what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static const int all_types[] = {
#define GGMLQ_TYPE(NAME, name, id, length, bytes, description)         id,
#define GGMLQ_FOREIGN_TYPE(NAME, name, id, length, bytes, description) id,
#include "ggmlq-types.def"
};
enum { N_CACHE_TYPES = 2, N_TYPES = sizeof(all_types)/sizeof(all_types[0]) };

static bool is_finite(const float * x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        if (!isfinite(x[i])) {
            return false;
        }
    }
    return true;
}

static void fuzz_encoder(struct input * in, int type, int64_t length, int64_t n) {
    const int64_t bytes = ggmlq_row_bytes(type, n);
    float *   x   = take_bytes(in, 4*n);
    uint8_t * row = malloc((size_t) bytes);
    float *   y   = malloc(4*(size_t) n);
    require(ggmlq_encode_row(type, x, row, n) == 0 && ggmlq_decode_row(type, row, y, n) == 0, "encode and decode succeed");
    for (int64_t i = 0; i < n; i += length) {
        const bool finite = is_finite(x + i, length);
        require(is_finite(y + i, length) == finite, "a block decodes to finite values exactly if it was finite");
        require(finite || (isnan(y[i]) && isnan(y[i + length - 1])), "a block that was not finite decodes to NaN");
    }
    require((ggmlq_validate_row(type, row, n, NULL) == 0) == is_finite(x, n), "validation finds what was not finite");

    const int64_t query_bytes = ggmlq_row_bytes(ggmlq_type_info_get(type)->query_type, n);
    void * query = malloc((size_t) query_bytes);
    float dot, product;
    uint8_t * row_again = malloc((size_t) bytes);
    require(ggmlq_cpu_encode_row(type, x, row_again, n) == 0 && memcmp(row, row_again, (size_t) bytes) == 0, "every level gives the same bytes");
    free(row_again);
    require(ggmlq_cpu_encode_query_row(type, x, query, n) == 0, "a query is encoded at every level");
    require(ggmlq_encode_query_row(type, x, query, n) == 0, "a query is encoded");
    require(ggmlq_dot_row(type, row, query, n, &dot) == 0, "a dot product is taken");
    require(ggmlq_mul_mat_vec(type, row, 0, 1, query, 1, n, &product) == 0, "a matrix product is taken");
    require(memcmp(&dot, &product, sizeof(dot)) == 0 || (isnan(dot) && isnan(product)), "both products agree");
    free(query); free(y); free(row); free(x);
}

static void fuzz_decoder(struct input * in, int type, int64_t length, int64_t n) {
    const int64_t bytes = ggmlq_row_bytes(type, n);
    uint8_t * row = take_bytes(in, bytes);
    float *   y   = malloc(4*(size_t) n);
    int64_t   bad = -1;
    const bool valid = ggmlq_validate_row(type, row, n, &bad) == 0;
    require(valid == (bad == -1) && bad < n/length, "validation names a block exactly if it fails");
    require(ggmlq_decode_row_rotated(type, row, y, n) == 0 && is_finite(y, n) == valid, "finite scales give finite values");
    require(ggmlq_decode_row(type, row, y, n) == 0 && is_finite(y, n) == valid, "finite scales decode to finite values");
    float * again = malloc(4*(size_t) n);
    require(ggmlq_cpu_decode_row(type, row, again, n) == 0, "decodes at every level");
    require(!valid || memcmp(y, again, 4*(size_t) n) == 0, "every level decodes to the same bits");
    free(again); free(y); free(row);
}

static void fuzz_rows(struct input * in, int type, int64_t n) {
    const int64_t n_rows = take(in) % 4, n_indices = take(in) % 4;
    const int64_t stride = ggmlq_row_bytes(type, n) + take(in) % 5;
    uint8_t * rows    = take_bytes(in, n_rows*stride);
    int64_t * indices = malloc(8*(size_t) n_indices);
    bool      in_range = true;
    for (int64_t i = 0; i < n_indices; ++i) {
        indices[i] = (int8_t) take(in) % 5;
        in_range &= indices[i] >= 0 && indices[i] < n_rows;
    }
    float * x = take_bytes(in, 4*n*n_indices);
    require((ggmlq_set_rows(type, rows, stride, n_rows, x, indices, n_indices, n) == 0) == in_range, "set_rows checks indices");
    require((ggmlq_get_rows(type, rows, stride, n_rows, x, indices, n_indices, n) == 0) == in_range, "get_rows checks indices");
    free(x); free(indices); free(rows);
}

static void fuzz_attention(struct input * in) {
    struct ggmlq_attend_params p = { 0 };
    p.type_k      = all_types[take(in) % N_TYPES];
    p.type_v      = all_types[take(in) % N_TYPES];
    p.head_size_k = 32*(1 + take(in) % 8);
    p.head_size_v = 32*(1 + take(in) % 8);
    p.n_kv        = take(in) % 70;
    p.n_queries   = take(in) % 4;
    p.n_heads_kv  = take(in) % 3;
    p.n_heads     = p.n_heads_kv * (take(in) % 4) + (take(in) % 16 == 0);
    p.n_seqs_kv   = take(in) % 3;
    p.n_seqs      = p.n_seqs_kv * (take(in) % 3);
    p.mask_heads  = 1 + take(in) % 2;
    p.mask_seqs   = 1;
    p.scale         = take(in)/256.0f;
    p.max_bias      = (float) (take(in) % 9);
    p.logit_softcap = (float) (take(in) % 4);
    const bool masked = take(in) % 2, sinks = take(in) % 4 == 0;

    const int64_t q_bytes = 4*p.head_size_k, out_bytes = 4*p.head_size_v;
    const int64_t k_bytes = ggmlq_row_bytes(p.type_k, p.head_size_k), v_bytes = ggmlq_row_bytes(p.type_v, p.head_size_v);
    if (k_bytes < 0 || v_bytes < 0) {
        require(ggmlq_attend(&p, 0, 1) == GGMLQ_ERROR_LENGTH, "attention refuses a head size that is no whole number of blocks");
        return;
    }
#define STRIDES(stride, row, n0, n1) do { p.stride[0] = (row); p.stride[1] = (row)*(n0); p.stride[2] = (row)*(n0)*(n1); } while (0)
    STRIDES(q_stride,    q_bytes,   p.n_queries, p.n_heads);
    STRIDES(k_stride,    k_bytes,   p.n_kv,      p.n_heads_kv);
    STRIDES(v_stride,    v_bytes,   p.n_kv,      p.n_heads_kv);
    STRIDES(out_stride,  out_bytes, p.n_queries, p.n_heads);
    STRIDES(mask_stride, 2*p.n_kv,  p.n_queries, p.mask_heads);
#undef STRIDES
    void * q    = take_bytes(in, q_bytes*p.n_queries*p.n_heads*p.n_seqs);
    void * k    = take_bytes(in, k_bytes*p.n_kv*p.n_heads_kv*p.n_seqs_kv);
    void * v    = take_bytes(in, v_bytes*p.n_kv*p.n_heads_kv*p.n_seqs_kv);
    void * mask = take_bytes(in, 2*p.n_kv*p.n_queries*p.mask_heads);
    void * sink = take_bytes(in, 4*p.n_heads);
    void * out  = malloc((size_t) (out_bytes*p.n_queries*p.n_heads*p.n_seqs));
    p.q = q; p.k = k; p.v = v; p.out = out;
    p.mask  = masked ? mask : NULL;
    p.sinks = sinks ? sink : NULL;
    const int nth   = 1 + take(in) % 3;
    const int error = ggmlq_attend_check(&p);
    for (int ith = 0; ith < nth; ++ith) {
        require(ggmlq_attend(&p, ith, nth) == error, "attention does what its check said");
    }
    const int64_t workspace_bytes = ggmlq_attend_workspace_bytes(&p, nth);
    require(error ? workspace_bytes == error : workspace_bytes >= 0, "the workspace is known exactly if attention can be done");
    free(out); free(sink); free(mask); free(v); free(k); free(q);
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    struct input in = { data, size };
    const int     level  = take(&in) % ggmlq_cpu_level_count();
    ggmlq_cpu_level_select(ggmlq_cpu_level_name(level)); /* stays where it was if that one can't run */
    const int     what   = take(&in) % 4;
    const int     type   = all_types[take(&in) % N_CACHE_TYPES];
    const int64_t length = ggmlq_type_info_get(type)->block_length;
    const int64_t n      = length * (take(&in) % 12); /* also beyond the 1024 values that kernels take at once */
    switch (what) {
        case 0: fuzz_encoder(&in, type, length, n); break;
        case 1: fuzz_decoder(&in, type, length, n); break;
        case 2: fuzz_rows(&in, type, n); break;
        case 3: fuzz_attention(&in); break;
    }
    return 0;
}

#ifndef LIBFUZZER
static uint32_t random_state = 1;

static uint32_t random_u32(void) { /* xorshift */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

int main(int argc, char ** argv) {
    const long iterations = argc == 2 ? atol(argv[1]) : 0;
    if (iterations < 1) {
        fprintf(stderr, "usage: %s ITERATIONS\n", argv[0]);
        return 2;
    }
    for (long i = 0; i < iterations; ++i) {
        static uint8_t data[1 << 16];
        const size_t size = 32 + random_u32() % (sizeof(data) - 32);
        /* Random bits, small floats, or sparse ones: bits alone are mostly huge or tiny floats. */
        const uint32_t style = random_u32() % 3;
        for (size_t j = 0; j < size; ++j) {
            const uint32_t r = random_u32();
            data[j] = (uint8_t) (r >> 8);
            if (j >= 32 && style == 1 && j % 4 == 3) {
                data[j] = (uint8_t) (0x3f | (r & 0x80));
            }
            if (j >= 32 && style == 2 && (r & 15) != 0) {
                data[j] = 0;
            }
        }
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%ld inputs\n", iterations);
    return 0;
}
#endif
