/* SPDX-License-Identifier: MIT
 *
 * What Metal can do and ggmlq-cuda.h has no name for: rows of 512 gathered by indices of 32 bits into floats or, as they are stored, into f16, names
 * out of range left alone; copies of encoded rows; rows of every type to f16.
 */
#include "ggmlq-metal-run.h"

#include "ggmlq-block.h"

#include <cmath>
#include <cstdio>
#include <vector>

enum { N = 512, ROWS = 300, NAMED = 210 };

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

static void check(int type) {
    const int64_t bytes = ggmlq_row_bytes(type, N);
    std::vector<float> values(ROWS*N);
    for (float & v : values) { v = random_value(); }
    std::vector<uint8_t> rows(ROWS*bytes);
    for (int i = 0; i < ROWS; ++i) {
        ggmlq_encode_row(type, &values[i*N], &rows[i*bytes], N);
    }
    std::vector<int32_t> names(NAMED);
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
