/* SPDX-License-Identifier: MIT
 *
 * Sparse attention on Metal, which ggmlq-cuda.h has no name for: rows of 512 that each token names are gathered and decoded, and attention over
 * them gives what attention over the gathered rows gives; names out of range are hidden.
 */
#include "ggmlq-metal-run.h"

#include "ggmlq-block.h"

#include <cmath>
#include <cstdio>
#include <vector>

enum { N = 512, ROWS = 300, NAMED = 70, TOKENS = 3, HEADS = 6 };

static uint32_t state = 2463534242u;
static uint32_t random_bits() { state ^= state << 13; state ^= state >> 17; return state ^= state << 5; }
static float    random_value() { return (float) (int32_t) random_bits()/2147483648.0f + (float) (int32_t) random_bits()/2147483648.0f; }

static int failures = 0;
static void require(bool condition, const char * what, int type) {
    if (!condition) {
        printf("wrong: %s, type %d\n", what, type);
        ++failures;
    }
}

static ggmlq_attend_params params(int type, int64_t n_kv, int64_t tokens, int64_t row_bytes) {
    ggmlq_attend_params p = {};
    p.type_k = p.type_v = type;
    p.head_size_k = p.head_size_v = N;
    p.n_kv = n_kv; p.n_queries = tokens;
    p.n_heads = HEADS; p.n_heads_kv = p.n_seqs = p.n_seqs_kv = 1;
    p.q_stride[0] = p.out_stride[0] = HEADS*N*4;
    p.q_stride[1] = p.out_stride[1] = N*4;
    p.k_stride[0] = p.v_stride[0] = row_bytes;
    p.scale = 1.0f/std::sqrt((float) N);
    return p;
}

static void check(int type) {
    const int64_t bytes = ggmlq_row_bytes(type, N);
    std::vector<float> values(ROWS*N), q(TOKENS*HEADS*N), found(q.size()), wanted(q.size());
    for (float & v : values) { v = random_value(); }
    for (float & v : q)      { v = 4.0f*random_value(); }
    std::vector<uint8_t> rows(ROWS*bytes);
    for (int i = 0; i < ROWS; ++i) {
        ggmlq_encode_row(type, &values[i*N], &rows[i*bytes], N);
    }
    std::vector<int32_t> names(TOKENS*NAMED);
    for (int32_t & name : names) {
        name = (int32_t) (random_bits() % (ROWS + 40)) - 20; /* a few are out of range */
    }

    /* The gather alone, to f32 and to f16 in the rotated space. */
    ggmlq_metal_launch launch;
    for (int rotated = 0; rotated < 2; ++rotated) {
        const int64_t size = rotated ? 2 : 4;
        std::vector<uint8_t> gathered(names.size()*N*size, 0xcd);
        ggmlq_cuda_view to = { nullptr, rotated ? GGMLQ_CUDA_F16 : GGMLQ_CUDA_F32, { N, (int64_t) names.size(), 1, 1 }, { size, N*size, 0, 0 } };
        ggmlq_cuda_view from = { nullptr, type, { N, ROWS, 1, 1 }, { bytes, bytes, 0, 0 } };
        ggmlq_cuda_view index = { nullptr, 0, { (int64_t) names.size(), 1, 1, 1 }, { 4, 0, 0, 0 } };
        const void * const operands[] = { gathered.data(), rows.data(), names.data() };
        require(ggmlq_metal_get_rows(&to, &from, &index, 4, rotated == 1, &launch) == 0 && ggmlq_metal_run(&launch, operands, nullptr) == 0, "gather: refused", type);
        for (size_t i = 0; i < names.size(); ++i) {
            float row[N];
            const bool exists = names[i] >= 0 && names[i] < ROWS;
            if (exists) {
                (rotated ? ggmlq_decode_row_rotated : ggmlq_decode_row)(type, &rows[names[i]*bytes], row, N);
            }
            bool same = true;
            for (int j = 0; j < N; ++j) {
                const uint8_t * at = &gathered[(i*N + j)*size];
                same &= !exists ? at[0] == 0xcd && at[1] == 0xcd
                      : rotated ? ggmlq_load_u16(at) == ggmlq_half_from_float(row[j]) : ggmlq_load_u32(at) == ggmlq_float_bits(row[j]);
            }
            require(same, rotated ? "gather, f16, rotated" : "gather, f32", type);
        }
    }

    /* Attention over named rows. */
    const ggmlq_attend_params p = params(type, NAMED, TOKENS, bytes);
    const ggmlq_cuda_view index = { nullptr, 0, { NAMED, TOKENS, 1, 1 }, { 4, NAMED*4, 0, 0 } };
    const void * const operands[] = { q.data(), rows.data(), rows.data(), nullptr, nullptr, names.data(), found.data() };
    require(ggmlq_metal_attend(&p, &index, ROWS, &launch) == 0 && ggmlq_metal_run(&launch, operands, nullptr) == 0, "attention: refused", type);
    for (int t = 0; t < TOKENS; ++t) {
        std::vector<uint8_t> named;
        for (int i = 0; i < NAMED; ++i) {
            const int32_t name = names[t*NAMED + i];
            if (name >= 0 && name < ROWS) {
                named.insert(named.end(), &rows[name*bytes], &rows[name*bytes] + bytes);
            }
        }
        const ggmlq_attend_params one = params(type, (int64_t) named.size()/bytes, 1, bytes);
        const void * const plain[] = { &q[t*HEADS*N], named.data(), named.data(), nullptr, nullptr, nullptr, &wanted[t*HEADS*N] };
        require(ggmlq_metal_attend(&one, nullptr, 0, &launch) == 0 && ggmlq_metal_run(&launch, plain, nullptr) == 0, "plain attention: refused", type);
    }
    double error = 0, norm = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        error = std::fmax(error, std::fabs((double) found[i] - wanted[i])); /* the same rows in other chunks */
        norm  = std::fmax(norm, std::fabs((double) wanted[i]));
    }
    require(norm > 0.05 && error <= 1e-5*norm, "attention over named rows", type);

    /* What is refused. */
    ggmlq_cuda_view bad = index;
    bad.ne[0] = NAMED - 1;
    require(ggmlq_metal_attend(&p, &bad, ROWS, &launch) == GGMLQ_ERROR_SHAPE, "too few names", type);
    bad = index;
    bad.nb[0] = 8;
    require(ggmlq_metal_attend(&p, &bad, ROWS, &launch) == GGMLQ_ERROR_SHAPE, "names of 64 bits", type);

    /* Copies of encoded rows: permuted axes, and into a part of a larger tensor, which concatenation is. */
    std::vector<uint8_t> moved(ROWS*bytes + 64, 0xcd);
    const ggmlq_cuda_view source = { nullptr, type, { N, 3, ROWS/3, 1 }, { bytes/(N/ggmlq_type_info_get(type)->block_length), ROWS/3*bytes, bytes, 0 } };
    ggmlq_cuda_view target = { nullptr, type, { N, 3, ROWS/3, 1 }, { source.nb[0], bytes, 3*bytes, 0 } };
    const void * const copied[] = { moved.data() + 64, rows.data() };
    require(ggmlq_metal_copy_rows(&target, &source, &launch) == 0 && ggmlq_metal_run(&launch, copied, nullptr) == 0, "copy: refused", type);
    bool same = true;
    for (int i = 0; i < ROWS; ++i) {
        same &= memcmp(&moved[64 + i*bytes], &rows[(i%3*(ROWS/3) + i/3)*bytes], (size_t) bytes) == 0;
    }
    require(same && moved[63] == 0xcd, "copy, permuted", type);
    target.ne[1] = 2;
    require(ggmlq_metal_copy_rows(&target, &source, &launch) == GGMLQ_ERROR_SHAPE, "copy of more rows", type);
}

int main() {
    check(GGMLQ_TYPE_TQ3_0);
    check(GGMLQ_TYPE_PLANAR3);
    printf(failures ? "wrong\n" : "ok\n");
    return failures != 0;
}
