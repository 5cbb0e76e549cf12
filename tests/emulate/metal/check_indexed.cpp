/* SPDX-License-Identifier: MIT
 *
 * What Metal can do and ggmlq-cuda.h has no name for: rows of 512 gathered by indices of 32 bits into floats or, as they are stored, into f16, names
 * out of range left alone; copies of encoded rows; rows that are filled from others; positional rows.
 */
#include "ggmlq-metal-run.h"

#include "ggmlq-block.h"

#include <algorithm>
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

/* Values `at` and up of rows from those of others, times 256, 0 behind them. */
static void check_fill(int type, int64_t length, int64_t at, int64_t size) {
    const int64_t n = 37, heads = 3, seqs = 2, item = type == GGMLQ_CUDA_F32 ? 4 : 2, row = length + 2, from_row = size + 3;
    const auto value = [&](const std::vector<uint8_t> & bytes, int64_t i) {
        return item == 4 ? ggmlq_float_from_bits(ggmlq_load_u32(&bytes[4*i])) : ggmlq_half_to_float(ggmlq_load_u16(&bytes[2*i]));
    };
    std::vector<uint8_t> from(from_row*n*heads*seqs*item), to(row*n*heads*seqs*item, 0xcd);
    for (int64_t i = 0; i < (int64_t) from.size()/item; ++i) {
        const float v = random_value();
        if (item == 4) { memcpy(&from[4*i], &v, 4); } else { ggmlq_store_u16(&from[2*i], ggmlq_half_from_float(v)); }
    }
    const ggmlq_cuda_view target = { nullptr, type, { length - at, n, heads, seqs }, { item, row*heads*item, row*item, row*heads*n*item } }; /* heads lie within a token */
    const ggmlq_cuda_view source = { nullptr, type, { size, n, heads, seqs }, { item, from_row*heads*item, from_row*item, from_row*heads*n*item } };
    ggmlq_metal_launch launch;
    const void * const operands[] = { to.data() + at*item, from.data() };
    require(ggmlq_metal_fill(&target, &source, 256.0f, &launch) == 0 && ggmlq_metal_run(&launch, operands, nullptr) == 0, "fill: refused", type);
    bool same = true;
    for (int64_t i = 0; i < row*n*heads*seqs; ++i) {
        const int64_t j = i % row;
        const float x = j >= at && j - at < size ? 256*value(from, i/row*from_row + j - at) : 0.0f;
        const float wanted = item == 4 ? x : ggmlq_half_to_float(ggmlq_half_from_float(x));
        same &= j < at || j >= length ? to[i*item] == 0xcd && to[i*item + 1] == 0xcd : value(to, i) == wanted;
    }
    require(same, "fill", type);

    ggmlq_cuda_view wrong = source;
    wrong.type = item == 4 ? GGMLQ_CUDA_F16 : GGMLQ_CUDA_F32;
    require(ggmlq_metal_fill(&target, &wrong, 1.0f, &launch) == GGMLQ_ERROR_TYPE, "fill: two types", type);
    wrong = source;
    wrong.ne[0] = length - at + 1;
    require(ggmlq_metal_fill(&target, &wrong, 1.0f, &launch) == GGMLQ_ERROR_SHAPE, "fill: a row too long", type);
    wrong = source;
    wrong.ne[2] = 1;
    require(ggmlq_metal_fill(&target, &wrong, 1.0f, &launch) == GGMLQ_ERROR_SHAPE, "fill: one head for all", type);
    wrong = target;
    wrong.ne[0] -= 1;
    require(ggmlq_metal_fill(&wrong, &source, 1.0f, &launch) == GGMLQ_ERROR_LENGTH, "fill: a part of a plane", type);
}

/* Values `at` and up of rows: positional rows times 256 and with `part` a factor, 0 behind them and where that is 0. Positions of any size, in any order. */
static void check_positional(int64_t length, int64_t at, int64_t pairs, bool halves, bool with_part) {
    const int64_t n = 37, heads = 3, seqs = 2, row = length + 2, known = 11;
    static const int32_t ends[known] = { 0, 1, -1, 63, 64, -64, 1 << 20, INT32_MAX, INT32_MIN, INT32_MIN + 1, -1000003 };
    std::vector<uint64_t> turns(pairs);
    for (int64_t i = 0; i < pairs; ++i) { /* the first of one turn less 2^-64: a negative fraction is carried through all bits; others of any size */
        turns[i] = i == 0 ? UINT64_MAX : ((uint64_t) random_bits() << 32 | random_bits()) >> i % 40;
    }
    std::vector<int32_t> positions(n*seqs);
    for (int64_t i = 0; i < n*seqs; ++i) {
        positions[i] = i < known ? ends[i] : i % 3 == 0 ? (int32_t) i : (int32_t) random_bits();
    }
    std::vector<uint8_t> to(row*n*heads*seqs*2, 0xcd), part(2*n*seqs);
    for (int64_t i = 0; i < n*seqs; ++i) {
        ggmlq_store_u16(&part[2*i], i % 4 == 2 ? 0 : i % 4 == 3 ? 0x3a00 : 0x3c00);
    }
    const ggmlq_cuda_view target = { nullptr, GGMLQ_CUDA_F16, { length - at, n, heads, seqs }, { 2, row*heads*2, row*2, row*heads*n*2 } };
    ggmlq_attend_params p = {};
    p.n_kv             = n;
    p.n_seqs_kv        = seqs;
    p.n_pairs          = pairs;
    p.pairs_are_halves = halves;
    p.positions_stride = 4*n;
    p.part             = with_part ? (const uint16_t *) part.data() : nullptr;
    p.part_stride      = 2*n;
    ggmlq_metal_launch launch;
    const void * const operands[] = { to.data() + 2*at, turns.data(), positions.data(), with_part ? part.data() : nullptr };
    require(ggmlq_metal_positional(&target, &p, 256.0f, &launch) == 0 && ggmlq_metal_run(&launch, operands, nullptr) == 0, "positional: refused", 1);
    bool good = true;
    for (int64_t i = 0; i < row*n*heads*seqs; ++i) {
        const int64_t j = i % row, value = j - at, pair = halves ? value % pairs : value/2, token = i/row/heads; /* of all sequences */
        if (j < at || j >= length) {
            good &= to[2*i] == 0xcd && to[2*i + 1] == 0xcd;
            continue;
        }
        const double found = ggmlq_half_to_float(ggmlq_load_u16(&to[2*i])), factor = with_part ? 256*ggmlq_half_to_float(ggmlq_load_u16(&part[2*token])) : 256;
        if (value >= 2*pairs || factor == 0) {
            good &= found == 0;
            continue;
        }
        const double angle = (double) ((uint64_t) (int64_t) positions[token]*turns[pair])/18446744073709551616.0*2*3.14159265358979323846;
        const double wanted = factor*((halves ? value >= pairs : value % 2 == 1) ? std::sin(angle) : std::cos(angle));
        good &= std::fabs(found - wanted) <= std::fabs(wanted)/2048 + 256*2e-7; /* of a half; of floats, and of the upper 32 bits */
    }
    require(good, "positional", 1);

    ggmlq_cuda_view wrong = target;
    wrong.type = GGMLQ_CUDA_F32;
    require(ggmlq_metal_positional(&wrong, &p, 1.0f, &launch) == GGMLQ_ERROR_TYPE, "positional: floats", 1);
    wrong = target;
    wrong.ne[0] -= 1;
    require(ggmlq_metal_positional(&wrong, &p, 1.0f, &launch) == GGMLQ_ERROR_LENGTH, "positional: a part of a plane", 1);
    wrong = target;
    wrong.ne[1] += 1;
    require(ggmlq_metal_positional(&wrong, &p, 1.0f, &launch) == GGMLQ_ERROR_SHAPE, "positional: a row without a token", 1);
    wrong = target;
    wrong.ne[3] = 1;
    require(ggmlq_metal_positional(&wrong, &p, 1.0f, &launch) == GGMLQ_ERROR_SHAPE, "positional: one sequence", 1);
    p.n_pairs = (length - at)/2 + 1;
    require(ggmlq_metal_positional(&target, &p, 1.0f, &launch) == GGMLQ_ERROR_SHAPE, "positional: too many pairs", 1);
}

int main() {
    check_positional(256, 128, 64, false, true);
    check_positional(128, 64, 15, false, false);
    check_positional(192, 128, 32, true, true);
    check_positional(96, 0, 25, true, false);
    check_fill(GGMLQ_CUDA_F16, 96, 0, 50);
    check_fill(GGMLQ_CUDA_F32, 96, 64, 32);
    check(GGMLQ_TYPE_TQ3_0);
    check(GGMLQ_TYPE_PLANAR3);
    printf(failures ? "wrong\n" : "ok\n");
    return failures != 0;
}
