/* SPDX-License-Identifier: MIT
 *
 * Every function of csrc/cuda/ggmlq-cuda.h and -sparse.h against ggmlq-codec.c (bytes and bits) or against float64 (attention, dot products within
 * a derived bound). Without Python, so that it runs under compute-sanitizer too.
 *
 *   check_cuda                   everything; a line per group, exit 1 if one fails
 *   check_cuda --quick [group [n]]  the same on less data; of the cases of attention every n-th
 *   check_cuda --bench [roped | rounded] times, or those of stores after RoPE or of rounded keys alone; nothing is checked
 *
 * Attention is held to a bound for float arithmetic, the plain kernel's: build with GGMLQ_CUDA_ATTEND_PLAIN_ONLY, or the group "attention" fails where the
 * tensor-core kernel with its 8-bit queries is chosen. That one is bench_attend's.
 *
 * compute-sanitizer: --report-api-errors no, because the group "errors" asks for more memory than there is.
 * Build: nvcc -O3 -arch=native -DGGMLQ_CUDA_ATTEND_PLAIN_ONLY -Icsrc -Icsrc/cuda tests/cuda/check_cuda.cu csrc/cuda/ggmlq-cuda-*.cu csrc/ggmlq-codec.c
 */
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ggmlq-block.h"
#include "ggmlq-cuda-sparse.h"
#ifndef GGMLQ_CHECK_METAL
#    include "ggmlq-cuda-center.h"
#    include "ggmlq-cuda-f16.h"
#endif

static const double U = 1.0/16777216.0; /* unit roundoff of float32 */
static const int CACHE_TYPES[] = { GGMLQ_TYPE_TQ3_0, GGMLQ_TYPE_PLANAR3 };
static bool quick = false;
static int  one_of = 1; /* cases of attention and of rounded keys */

/* --- tools ------------------------------------------------------------------------------------------------------ */

static void cuda(cudaError_t error) {
    if (error != cudaSuccess) {
        printf("CUDA: %s\n", cudaGetErrorString(error));
        exit(1);
    }
}

static const char * group_name = "";
static int64_t      group_checks, group_failures, all_failures;

static void require(bool condition, const char * format, ...) __attribute__((format(printf, 2, 3)));
static void require(bool condition, const char * format, ...) {
    ++group_checks;
    if (!condition && ++group_failures <= 5) {
        printf("  %s: ", group_name);
        va_list arguments;
        va_start(arguments, format);
        vprintf(format, arguments);
        va_end(arguments);
        printf("\n");
    }
}

static const char * only = NULL;

static void group(const char * name, const std::function<std::string()> & checks) {
    if (only && strcmp(only, name) != 0) {
        return;
    }
    group_name   = name;
    group_checks = group_failures = 0;
    const std::string note = checks();
    cuda(cudaDeviceSynchronize());
    printf("%-4s %-22s %8lld checks%s%s\n", group_failures ? "FAIL" : "ok", name, (long long) group_checks, note.empty() ? "" : ", ", note.c_str());
    fflush(stdout);
    all_failures += group_failures;
}

static void ok(int error) { require(error == GGMLQ_OK, "%s", ggmlq_cuda_error_text(error)); }

static uint64_t random_state = 88172645463325252ull;
static uint32_t random_bits() { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t) (random_state*2685821657736338717ull >> 32);
}
static int64_t random_below(int64_t n) { return random_bits() % n; }
static float random_normal() {
    const double u = (random_bits() + 1.0)/4294967297.0, v = random_bits()/4294967296.0;
    return (float) (sqrt(-2*log(u))*cos(6.283185307179586*v));
}
static std::vector<float> normals(int64_t n) {
    std::vector<float> x(n);
    for (float & v : x) {
        v = random_normal();
    }
    return x;
}
static std::vector<uint8_t> random_bytes(int64_t n) {
    std::vector<uint8_t> x(n);
    for (uint8_t & v : x) {
        v = (uint8_t) random_bits();
    }
    return x;
}

/* Device memory with the contents of host bytes, `offset` bytes after an aligned address. */
struct device_bytes {
    uint8_t * base = nullptr;
    int64_t   n, offset;
    device_bytes(int64_t n, int64_t offset = 0) : n(n), offset(offset) { cuda(cudaMalloc((void **) &base, n + offset + 16)); }
    template <typename T> device_bytes(const std::vector<T> & host, int64_t offset = 0) : device_bytes((int64_t) (host.size()*sizeof(T)), offset) {
        cuda(cudaMemcpy(data(), host.data(), n, cudaMemcpyHostToDevice));
    }
    device_bytes(const device_bytes &) = delete;
    ~device_bytes() { cudaFree(base); }
    uint8_t * data() const { return base + offset; }
    template <typename T> std::vector<T> host() const {
        std::vector<T> copy(n/sizeof(T));
        cuda(cudaMemcpy(copy.data(), data(), n, cudaMemcpyDeviceToHost));
        return copy;
    }
};

static struct ggmlq_cuda_view view(void * data, int type, const int64_t ne[4], const int64_t nb[4]) {
    struct ggmlq_cuda_view v = { data, type, { ne[0], ne[1], ne[2], ne[3] }, { nb[0], nb[1], nb[2], nb[3] } };
    return v;
}

static bool    is_ours(int type) { return type == GGMLQ_TYPE_TQ3_0 || type == GGMLQ_TYPE_PLANAR3; }
static int64_t row_bytes(int type, int64_t n) { return type == GGMLQ_CUDA_BF16 ? 2*n : ggmlq_row_bytes(type, n); }
static const char * type_name(int type) { return ggmlq_type_info_get(type) ? ggmlq_type_info_get(type)->name : "bf16"; }

/* A view with `gap` bytes after each row, twice that after each plane and so on; its bytes. */
static int64_t spread(struct ggmlq_cuda_view * v, void * data, int type, int64_t n0, int64_t n1, int64_t n2, int64_t n3, int64_t gap) {
    const int64_t ne[4] = { n0, n1, n2, n3 };
    int64_t nb[4];
    nb[0] = is_ours(type) ? ggmlq_type_info_get(type)->block_bytes : row_bytes(type, 1);
    nb[1] = row_bytes(type, n0) + gap;
    nb[2] = nb[1]*n1 + 2*gap;
    nb[3] = nb[2]*n2 + gap;
    *v = view(data, type, ne, nb);
    return nb[3]*n3;
}

static int64_t row_at(const struct ggmlq_cuda_view & v, int64_t i1, int64_t i2, int64_t i3) { return i1*v.nb[1] + i2*v.nb[2] + i3*v.nb[3]; }

static bool same_float(float a, float b) { return ggmlq_float_bits(a) == ggmlq_float_bits(b) || (std::isnan(a) && std::isnan(b)); }

/* float32 -> the 16-bit type as the device should: nearest even, overflow to infinity. */
static uint16_t to_16(int type, float f) {
    const uint32_t bits = ggmlq_float_bits(f);
    if (type == GGMLQ_CUDA_BF16) {
        return (uint16_t) (std::isnan(f) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return (bits & 0x7fffffff) >= 0x477ff000 && !std::isnan(f) ? (uint16_t) ((bits >> 16 & 0x8000) | 0x7c00) : ggmlq_half_from_float(f);
}
static float from_16(int type, uint16_t h) { return type == GGMLQ_CUDA_BF16 ? ggmlq_float_from_bits((uint32_t) h << 16) : ggmlq_half_to_float(h); }

/* Value i of a float row, and writing it. */
static float value_at(int type, const uint8_t * row, int64_t i) {
    if (type == GGMLQ_CUDA_F32) {
        float f;
        memcpy(&f, row + 4*i, 4);
        return f;
    }
    return from_16(type, ggmlq_load_u16(row + 2*i));
}
static void put_value(int type, uint8_t * row, int64_t i, float f) {
    if (type == GGMLQ_CUDA_F32) {
        memcpy(row + 4*i, &f, 4);
    } else {
        ggmlq_store_u16(row + 2*i, to_16(type, f));
    }
}

/* --- encoder ---------------------------------------------------------------------------------------------------- */

/* One block of a kind that an encoder may get wrong. */
static void adversarial_block(int kind, float * x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        x[i] = random_normal();
    }
    switch (kind) {
        case 0: break;
        case 1: for (int64_t i = 0; i < n; ++i) { x[i] = 0.0f*(random_bits() & 1 ? -1.0f : 1.0f); } break;
        case 2: for (int64_t i = 0; i < n; ++i) { x[i] = (float) ((int) (2*x[i])); } break; /* ties after the rotation */
        case 3: for (int64_t i = 0; i < n; ++i) { x[i] = x[i] < 0 ? -1.0f : 1.0f; } break;
        case 4: for (int64_t i = 0; i < n; ++i) { x[i] *= 1e-41f; } break;
        case 5: for (int64_t i = 0; i < n; ++i) { x[i] *= 1e-45f*(float) random_below(3); } break; /* the smallest subnormals */
        case 6: for (int64_t i = 0; i < n; ++i) { x[i] = x[i] < 0 ? -3.402823466e+38f : 3.402823466e+38f; } break;
        case 7: for (int64_t i = 0; i < n; ++i) { x[i] *= 1e30f; } break;
        case 8: x[random_below(n)] = NAN; break;
        case 9: x[random_below(n)] = random_bits() & 1 ? INFINITY : -INFINITY; break;
        case 10: for (int64_t i = 0; i < n; ++i) { x[i] = 0.0f; } x[random_below(n)] = random_normal(); break;
        case 11: for (int64_t i = 0; i < n; ++i) { x[i] = 1.0f; } break;
        case 12: for (int64_t i = 0; i < n; ++i) { x[i] = ggmlq_float_from_bits(random_bits() & 0xbfffffff); } break; /* any finite magnitude */
        case 13: for (int64_t i = 0; i < n; ++i) { x[i] = ggmlq_float_from_bits(random_bits() & 0x807fffff); } break; /* any subnormal */
        case 14: { const float f = ldexpf(1.0f, (int) random_below(250) - 125); for (int64_t i = 0; i < n; ++i) { x[i] *= f; } break; }
        case 15: for (int64_t i = 0; i < n; ++i) { x[i] *= i % 2 ? 1.0f : 1e-38f; } break;
        case 16: x[random_below(n)] *= 1e20f; break;
        case 17: for (int64_t i = 0; i < n; ++i) { x[i] = (float) (random_below(5) - 2)*0.25f; } break;
        case 18: for (int64_t i = 2; i < n; ++i) { x[i] *= 1e-37f*1e-5f; } break; /* subnormal once the largest is 1 */
        case 19: { const float f = ldexpf(65504.0f, (int) random_below(6) - 3); for (int64_t i = 0; i < n; ++i) { x[i] *= f; } break; } /* saturation */
        case 20: { const float f = ldexpf(1.0f, -(int) random_below(20) - 10); for (int64_t i = 0; i < n; ++i) { x[i] *= f; } break; } /* subnormal scale */
        case 21: for (int64_t i = 0; i < n; ++i) { x[i] = (float) (i % 8 < 4 ? 1 : -1)*(float) (1 + random_below(2)); } break;
        case 22: { /* lies exactly on a boundary in one of the passes (planar3): found by trying 2 million blocks, as in tests/levels */
            uint32_t state = random_bits() & 1 ? 2449017636u : 3057662578u;
            for (int64_t i = 0; i < n; ++i) {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                x[i] = state >> 8 & 1 ? (float) ((int) (state >> 16) % 3 - 1) : 0.0f;
            }
            break;
        }
        default: break;
    }
}
enum { KINDS = 23 };

static std::string check_encoder() {
    int64_t blocks_all = 0, different = 0;
    for (int type : CACHE_TYPES) {
        const int64_t length = ggmlq_type_info_get(type)->block_length, bytes = ggmlq_type_info_get(type)->block_bytes;
        for (int source : { GGMLQ_CUDA_F32, GGMLQ_CUDA_F16 }) {
            const int64_t n_blocks = (quick ? 6000 : 600000)*32/length;
            std::vector<float> x(n_blocks*length);
            for (int64_t b = 0; b < n_blocks; ++b) {
                adversarial_block(b % 3 == 0 ? (int) (b/3 % KINDS) : 0, &x[b*length], length);
            }
            std::vector<uint8_t> data(row_bytes(source, (int64_t) x.size())), wanted(n_blocks*bytes);
            for (size_t i = 0; i < x.size(); ++i) {
                put_value(source, data.data(), (int64_t) i, x[i]);
                x[i] = value_at(source, data.data(), (int64_t) i);
            }
            ggmlq_encode_row(type, x.data(), wanted.data(), (int64_t) x.size());
            device_bytes src(data);
            for (int64_t blocks_a_call : { n_blocks, std::min(n_blocks, (int64_t) 1001*32/length) }) { /* many and few: two kernels */
                device_bytes dst(std::vector<uint8_t>(wanted.size(), 0xcd), 2);
                for (int64_t b = 0; b < n_blocks; b += blocks_a_call) {
                    const int64_t n = std::min(blocks_a_call, n_blocks - b)*length;
                    struct ggmlq_cuda_view from, to;
                    spread(&from, src.data() + row_bytes(source, b*length), source, n, 1, 1, 1, 0);
                    spread(&to,   dst.data() + b*bytes,                     type,   n, 1, 1, 1, 0);
                    ok(ggmlq_cuda_copy(&to, &from, NULL));
                }
                const std::vector<uint8_t> found = dst.host<uint8_t>();
                for (int64_t b = 0; b < n_blocks; ++b) {
                    const bool same = memcmp(&found[b*bytes], &wanted[b*bytes], bytes) == 0;
                    different += !same;
                    ++blocks_all;
                    require(same, "%s from %s, %lld blocks a call: block %lld of kind %d differs", type_name(type), type_name(source), (long long) blocks_a_call, (long long) b,
                            b % 3 == 0 ? (int) (b/3 % KINDS) : 0);
                }
            }
        }
    }
    return std::to_string(different) + " of " + std::to_string(blocks_all) + " blocks differ from the C encoder";
}

/* --- decoder ---------------------------------------------------------------------------------------------------- */

/* Blocks of random bytes: any scale, also NaN, infinite, subnormal and 0. */
static std::vector<uint8_t> random_blocks(int type, int64_t n_blocks) {
    const int64_t bytes = ggmlq_type_info_get(type)->block_bytes, scale_at = type == GGMLQ_TYPE_TQ3_0 ? 12 : 0;
    std::vector<uint8_t> rows = random_bytes(n_blocks*bytes);
    for (int64_t b = 0; b < n_blocks; ++b) {
        static const uint16_t scales[] = { 0x0000, 0x8000, 0x0001, 0x03ff, 0x7bff, 0x7c00, 0x7e00, 0xfc00, 0x3c00, 0x0400 };
        if (b % 4 == 0) {
            ggmlq_store_u16(&rows[b*bytes + scale_at], scales[b/4 % 10]);
        }
    }
    return rows;
}

/* Encoded rows whose scales are ordinary. */
static std::vector<uint8_t> encoded_rows(int type, int64_t n_rows, int64_t n) {
    std::vector<uint8_t> rows(n_rows*row_bytes(type, n));
    const std::vector<float> x = normals(n_rows*n);
    ggmlq_encode_row(type, x.data(), rows.data(), n_rows*n);
    return rows;
}

static std::string check_decoder() {
    for (int type : CACHE_TYPES) {
        const int64_t length = ggmlq_type_info_get(type)->block_length;
        for (int many = 0; many < 2; ++many) { /* so many planes: another kernel */
            const int64_t n_blocks = many ? 16640*32/length : (quick ? 3000 : 200000)*32/length + 1, n = n_blocks*length;
            const std::vector<uint8_t> rows = random_blocks(type, n_blocks);
            for (int offset : { 0, 1, 2 }) {
                if (quick && many && offset != 2) {
                    continue;
                }
                device_bytes src(rows, offset);
                for (int rotated = 0; rotated < 2; ++rotated) {
                    std::vector<float> wanted(n);
                    (rotated ? ggmlq_decode_row_rotated : ggmlq_decode_row)(type, rows.data(), wanted.data(), n);
                    for (int target : { GGMLQ_CUDA_F32, GGMLQ_CUDA_F16, GGMLQ_CUDA_BF16 }) {
                        device_bytes dst(std::vector<uint8_t>(row_bytes(target, n), 0xcd));
                        struct ggmlq_cuda_view from, to;
                        spread(&from, src.data(), type,   n, 1, 1, 1, 0);
                        spread(&to,   dst.data(), target, n, 1, 1, 1, 0);
                        ok((rotated ? ggmlq_cuda_decode_rotated : ggmlq_cuda_copy)(&to, &from, NULL));
                        const std::vector<uint8_t> found = dst.host<uint8_t>();
                        int64_t wrong = 0;
                        for (int64_t i = 0; i < n; ++i) {
                            const float w = target == GGMLQ_CUDA_F32 ? wanted[i] : from_16(target, to_16(target, wanted[i]));
                            wrong += !same_float(value_at(target, found.data(), i), w);
                        }
                        require(wrong == 0, "%s to %s, rotated %d, offset %d: %lld of %lld values differ", type_name(type), type_name(target), rotated, offset, (long long) wrong, (long long) n);
                    }
                }
            }
        }
    }
    return "";
}

/* --- rotation --------------------------------------------------------------------------------------------------- */

static std::string check_rotation() {
    for (int type : CACHE_TYPES) {
        const int64_t length = ggmlq_type_info_get(type)->block_length;
        for (int64_t rows : { 1, 3, 67 }) {
            for (int back = 0; back < 2; ++back) {
                for (int in_place = 0; in_place < 2; ++in_place) {
                    for (int64_t gap : { 0, 4, 16 }) {
                        const int64_t n = 3*length;
                        struct ggmlq_cuda_view src, dst;
                        const int64_t bytes = spread(&src, NULL, GGMLQ_CUDA_F32, n, rows, 2, 2, gap), out_bytes = spread(&dst, NULL, GGMLQ_CUDA_F32, n, rows, 2, 2, in_place ? gap : 8);
                        std::vector<float> x = normals(bytes/4);
                        for (size_t i = 0; i < x.size(); i += 97) {
                            x[i] = i % 5 ? 1e-40f : 3e38f;
                        }
                        device_bytes from(x), to(std::vector<uint8_t>(out_bytes, 0xcd));
                        src.data = from.data();
                        dst.data = in_place ? from.data() : to.data();
                        ok((back ? ggmlq_cuda_unrotate : ggmlq_cuda_rotate)(type, &dst, &src, NULL));
                        const std::vector<uint8_t> found = (in_place ? from : to).host<uint8_t>();
                        std::vector<float> wanted(n);
                        for (int64_t i = 0; i < rows*4; ++i) {
                            (back ? ggmlq_unrotate_row : ggmlq_rotate_row)(type, &x[row_at(src, i % rows, i/rows % 2, i/rows/2)/4], wanted.data(), n);
                            const uint8_t * row = &found[row_at(dst, i % rows, i/rows % 2, i/rows/2)];
                            bool same = true;
                            for (int64_t j = 0; j < n; ++j) {
                                same &= same_float(value_at(GGMLQ_CUDA_F32, row, j), wanted[j]);
                            }
                            require(same, "%s, back %d, in place %d, %lld rows, gap %lld", type_name(type), back, in_place, (long long) rows, (long long) gap);
                        }
                    }
                }
            }
        }
    }
    return "";
}

/* --- rows by index ---------------------------------------------------------------------------------------------- */

struct shape { int64_t n, tokens, i2, i3, rows, index2, index3; };
static const struct shape SHAPES[] = { /* n in blocks of 128 */
    { 1, 1, 1, 1, 1, 1, 1 }, { 1, 1, 1, 1, 7, 1, 1 }, { 8, 3, 1, 1, 40, 1, 1 }, { 3, 5, 2, 3, 11, 1, 1 }, { 1, 9, 4, 2, 20, 2, 1 }, { 2, 33, 3, 2, 33, 3, 2 }, { 5, 129, 1, 1, 300, 1, 1 },
};

/* Row numbers: distinct within (i2, i3), some out of range. As bytes, with the view. */
static std::vector<uint8_t> make_indices(const struct shape & s, int index_bytes, struct ggmlq_cuda_view * v) {
    const int64_t ne[4] = { s.tokens, s.index2, s.index3, 1 }, width = index_bytes;
    const int64_t nb[4] = { width, width*(s.tokens + 1), width*(s.tokens + 1)*s.index2, width*(s.tokens + 1)*s.index2*s.index3 };
    *v = view(NULL, 0, ne, nb);
    std::vector<uint8_t> bytes(nb[3] + 8, 0xff);
    for (int64_t i = 0; i < s.index2*s.index3; ++i) {
        std::vector<int64_t> rows(s.rows);
        for (int64_t r = 0; r < s.rows; ++r) {
            rows[r] = r;
        }
        for (int64_t r = s.rows - 1; r > 0; --r) {
            std::swap(rows[r], rows[random_below(r + 1)]);
        }
        for (int64_t t = 0; t < s.tokens; ++t) {
            int64_t row = rows[t % s.rows];
            if (t % 5 == 4) {
                row = t % 2 ? -1 - t : s.rows + t;
            }
            const int32_t narrow = (int32_t) row;
            memcpy(&bytes[i % s.index2*nb[1] + i/s.index2*nb[2] + t*width], index_bytes == 8 ? (const void *) &row : &narrow, width);
        }
    }
    return bytes;
}

static int64_t index_at(const std::vector<uint8_t> & bytes, const struct ggmlq_cuda_view & v, int index_bytes, int64_t i0, int64_t i1, int64_t i2) {
    int64_t wide = 0;
    int32_t narrow = 0;
    const uint8_t * at = &bytes[i0*v.nb[0] + i1%v.ne[1]*v.nb[1] + i2%v.ne[2]*v.nb[2]];
    memcpy(index_bytes == 8 ? (void *) &wide : &narrow, at, index_bytes);
    return index_bytes == 8 ? wide : narrow;
}

#ifndef GGMLQ_CHECK_METAL
/* Two stores in one launch: what two launches write, of equal and of different shapes, also where one has nothing to store. */
static std::string check_set_rows_pair() {
    const int64_t n_shapes = sizeof(SHAPES)/sizeof(SHAPES[0]);
    for (int type : CACHE_TYPES) for (int64_t one = 0; one < n_shapes; ++one) for (int64_t two : { one, n_shapes - 1 - one }) for (int empty = -1; empty < (one == 2 ? 2 : 0); ++empty) {
        const int index_bytes = two % 2 ? 4 : 8, source = one % 2 ? GGMLQ_CUDA_F16 : GGMLQ_CUDA_F32;
        struct ggmlq_cuda_view values[2], rows[2], indices[2];
        std::vector<std::unique_ptr<device_bytes>> memory; /* of each: values, indices, rows stored apart, rows stored together */
        for (int i = 0; i < 2; ++i) {
            struct shape s = SHAPES[i ? two : one];
            s.tokens = s.tokens < s.rows ? s.tokens : s.rows;
            const int64_t n = s.n*128, odd = (one + two + i) % 3, bytes = spread(&rows[i], NULL, type, n, s.rows, s.i2, s.i3, odd == 2 ? 3 : 2*odd);
            std::vector<uint8_t> x(spread(&values[i], NULL, source, n, s.tokens, s.i2, s.i3, 4*odd));
            for (size_t j = 0; j < x.size()/row_bytes(source, 1); ++j) {
                put_value(source, x.data(), (int64_t) j, random_normal());
            }
            memory.emplace_back(new device_bytes(x));
            memory.emplace_back(new device_bytes(make_indices(s, index_bytes, &indices[i])));
            memory.emplace_back(new device_bytes(std::vector<uint8_t>(bytes, 0xcd)));
            memory.emplace_back(new device_bytes(std::vector<uint8_t>(bytes, 0xcd)));
            values[i].data  = memory[4*i]->data();
            indices[i].data = memory[4*i + 1]->data();
            rows[i].data    = memory[4*i + 2]->data();
            if (i == empty) {
                values[i].ne[1] = indices[i].ne[0] = 0;
            }
            ok(ggmlq_cuda_set_rows(&rows[i], &values[i], &indices[i], index_bytes, NULL));
            rows[i].data    = memory[4*i + 3]->data();
        }
        ok(ggmlq_cuda_set_rows_pair(rows, values, indices, index_bytes, NULL));
        for (int i = 0; i < 2; ++i) {
            const std::vector<uint8_t> found = memory[4*i + 3]->host<uint8_t>(), wanted = memory[4*i + 2]->host<uint8_t>();
            require(found == wanted, "%s from %s, shapes %lld and %lld, rows of number %d, empty %d", type_name(type), type_name(source), (long long) one, (long long) two, i, empty);
            require(i == empty || wanted != std::vector<uint8_t>(wanted.size(), 0xcd) || SHAPES[i ? two : one].rows == 1, "nothing was stored");
        }
    }
    return "";
}

/* llama.cpp's kernel for its own rotation, step by step. */
static void turn_as_llama(float * x, int64_t n, int length) {
    const float scale = 1/sqrtf((float) length);
    for (int64_t i = 0; i < n; ++i) {
        x[i] *= scale;
    }
    for (int half = 1; half < length; half *= 2) {
        for (int64_t i = 0; i < n; ++i) {
            if ((i & half) == 0) {
                const float a = x[i], b = x[i + half];
                x[i]        = a + b;
                x[i + half] = a - b;
            }
        }
    }
}

/* Values turned and stored, and turned and written, in one launch. */
static std::string check_set_rows_turned() {
    static const int lengths[][3] = { { 128, 64, 128 }, { 0, 128, 64 }, { 64, 0, 128 } };
    for (const auto & turned : lengths) for (int64_t tokens : { 1, 3, 129 }) for (int64_t blocks : { 1, 5 }) for (int with_query = 0; with_query < 2; ++with_query) {
        if (tokens == 129 && (blocks == 1 || turned[0] != 128)) {
            continue; /* the emulator is slow */
        }
        struct ggmlq_cuda_view values[2], rows[2], indices[2], from, to;
        std::vector<std::unique_ptr<device_bytes>> memory; /* of each: values, indices, rows */
        std::vector<uint8_t> wanted[2];
        const int64_t n = 128*blocks, query_n = 512, n_rows = 2*tokens;
        for (int i = 0; i < 2; ++i) {
            std::vector<float> x = normals(tokens*n);
            std::vector<int64_t> index(tokens);
            spread(&values[i], NULL, GGMLQ_CUDA_F32, n, tokens, 1, 1, 0);
            wanted[i].assign(spread(&rows[i], NULL, GGMLQ_TYPE_PLANAR3, n, n_rows, 1, 1, 2*i), 0xcd);
            memory.emplace_back(new device_bytes(x));
            if (turned[i]) {
                turn_as_llama(x.data(), tokens*n, turned[i]);
            }
            for (int64_t t = 0; t < tokens; ++t) {
                index[t] = (5*t + 1 + i) % n_rows; /* n_rows is no multiple of 5 */
                ggmlq_encode_row(GGMLQ_TYPE_PLANAR3, &x[t*n], &wanted[i][row_at(rows[i], index[t], 0, 0)], n);
            }
            memory.emplace_back(new device_bytes(index));
            memory.emplace_back(new device_bytes(std::vector<uint8_t>(wanted[i].size(), 0xcd)));
            values[i].data = memory[3*i]->data();
            rows[i].data   = memory[3*i + 2]->data();
            const int64_t ne[4] = { tokens, 1, 1, 1 }, nb[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
            indices[i] = view(memory[3*i + 1]->data(), 0, ne, nb);
        }
        std::vector<float> q = normals(tokens*query_n);
        device_bytes d_from(q), d_to(q.size()*4);
        spread(&from, d_from.data(), GGMLQ_CUDA_F32, query_n, tokens, 1, 1, 0);
        spread(&to,   d_to.data(),   GGMLQ_CUDA_F32, query_n, tokens, 1, 1, 0);
        turn_as_llama(q.data(), tokens*query_n, turned[2]);
        ok(ggmlq_cuda_set_rows_turned(rows, values, indices, 8, with_query ? &to : NULL, with_query ? &from : NULL, turned, NULL));
        for (int i = 0; i < 2; ++i) {
            require(memory[3*i + 2]->host<uint8_t>() == wanted[i], "turned by %d, %lld tokens, %lld blocks, rows of number %d", turned[i], (long long) tokens, (long long) blocks, i);
        }
        require(!with_query || d_to.host<float>() == q, "queries turned by %d, %lld tokens", turned[2], (long long) tokens);
    }
    return "";
}

/* Queries after RoPE against doubles; keys after RoPE as they are stored: the rows of what queries of the same values become, and the turned ones after that. */
static void check_roped_case(int type, int64_t head, int64_t heads_kv, int64_t heads, int64_t tokens, int n_rot, bool neox, int k_turned, bool factors) {
    const int64_t n = head*heads_kv, n_rows = 2*tokens + 1;
    const std::vector<float> k = normals(n*tokens), v = normals(n*tokens), q = normals(head*heads*tokens);
    std::vector<float> factor(n_rot/2), v_turned = v;
    std::vector<int32_t> positions(tokens);
    std::vector<int64_t> index(tokens);
    for (int64_t i = 0; i < n_rot/2; ++i) {
        factor[i] = 1 + 0.25f*(float) (i % 4);
    }
    for (int64_t i = 0; i < tokens; ++i) {
        positions[i] = (int32_t) (40 - 37*i);
        index[i]     = 2*i + 1;
    }
    device_bytes dk(k), dv(v), dq(q), d_factor(factor), d_positions(positions), d_index(index), d_out(4*head*heads*tokens), d_k_out(4*n*tokens);
    struct ggmlq_cuda_roped_rows p = {};
    const std::vector<uint8_t> empty(spread(&p.rows[0], NULL, type, n, n_rows, 1, 1, 2), 0xcd);
    device_bytes d_rows[2] = { device_bytes((int64_t) empty.size()), device_bytes((int64_t) empty.size()) };
    const int64_t ne_i[4] = { tokens, 1, 1, 1 }, nb_i[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
    for (int i = 0; i < 2; ++i) {
        cuda(cudaMemcpy(d_rows[i].data(), empty.data(), empty.size(), cudaMemcpyHostToDevice));
        (void) spread(&p.rows[i], d_rows[i].data(), type, n, n_rows, 1, 1, 2);
        (void) spread(&p.values[i], (i ? dv : dk).data(), GGMLQ_CUDA_F32, n, tokens, 1, 1, 0);
        p.indices[i] = view(d_index.data(), 0, ne_i, nb_i);
        p.turned[i]  = i == 0 ? k_turned : k_turned ? 64 : 0;
    }
    p.turned[2]   = k_turned;
    p.index_bytes = 8;
    p.head_size   = head;
    p.k_rope      = { (const int32_t *) d_positions.data(), factors ? (const float *) d_factor.data() : NULL, n_rot, neox, powf(10000.0f, -2.0f/(float) n_rot), 0.5f, 1.25f };
    p.q_rope      = p.k_rope;
    struct ggmlq_cuda_roped_rows alone = p; /* keys as queries, not turned */
    alone.q        = (const float *) dk.data();
    alone.q_out    = (float *) d_k_out.data();
    alone.q_ne[0]  = head; alone.q_ne[1] = heads_kv; alone.q_ne[2] = tokens;
    alone.turned[2] = 0;
    ok(ggmlq_cuda_store_roped(&alone, NULL));
    std::vector<float> roped = d_k_out.host<float>();
    p.q     = (const float *) dq.data();
    p.q_out = (float *) d_out.data();
    p.q_ne[0] = head; p.q_ne[1] = heads; p.q_ne[2] = tokens;
    ok(ggmlq_cuda_store_roped(&p, NULL));
    struct ggmlq_cuda_roped_rows in_place = p;
    in_place.q_out = (float *) dq.data();
    ok(ggmlq_cuda_store_roped(&in_place, NULL));
    require(dq.host<float>() == d_out.host<float>(), "another result in place");

    std::vector<double> wanted_q(q.size());
    for (int pass = 0; pass < 2; ++pass) {
        const std::vector<float> & x = pass ? k : q;
        for (size_t i = 0; i < x.size(); ++i) {
            const int64_t j = (int64_t) i % head, t = (int64_t) i/(pass ? n : head*heads), half = n_rot/2, pair = neox ? j % half : j/2;
            const bool upper = neox ? j >= half : j % 2 == 1;
            const double angle = j >= n_rot ? 0 : positions[t]*std::pow(10000.0, -2.0*(double) pair/n_rot)/(factors ? factor[pair] : 1)*0.5, scale = j >= n_rot ? 1 : 1.25;
            const double other = j >= n_rot ? 0 : x[i + (neox ? (upper ? -half : half) : (upper ? -1 : 1))], y = scale*(x[i]*std::cos(angle) + (upper ? other : -other)*std::sin(angle));
            if (pass) {
                require(std::fabs(roped[i] - y) < 1e-4*(1 + std::fabs(angle))*(std::fabs(x[i]) + std::fabs(other)), "key, value %zu: %g, wanted %g", i, roped[i], y);
            } else {
                wanted_q[i] = y;
            }
        }
    }
    if (k_turned) {
        turn_as_llama(roped.data(), n*tokens, k_turned);
        turn_as_llama(v_turned.data(), n*tokens, 64);
        for (size_t first = 0; first < wanted_q.size(); first += (size_t) k_turned) {
            for (size_t h = 1; h < (size_t) k_turned; h *= 2) for (size_t i = first; i < first + (size_t) k_turned; ++i) {
                if ((i & h) == 0) {
                    const double a = wanted_q[i], b = wanted_q[i + h];
                    wanted_q[i]     = (a + b)*std::sqrt(0.5);
                    wanted_q[i + h] = (a - b)*std::sqrt(0.5);
                }
            }
        }
    }
    const std::vector<float> out = d_out.host<float>();
    for (size_t i = 0; i < out.size(); ++i) {
        require(std::fabs(out[i] - wanted_q[i]) < 2e-2, "query, value %zu: %g, wanted %g", i, out[i], wanted_q[i]); /* angles up to hundreds, __cosf */
    }
    for (int i = 0; i < 2; ++i) {
        std::vector<uint8_t> wanted = empty;
        for (int64_t t = 0; t < tokens; ++t) {
            ggmlq_encode_row(type, (i ? v_turned : roped).data() + t*n, &wanted[row_at(p.rows[i], index[t], 0, 0)], n);
        }
        require(d_rows[i].host<uint8_t>() == wanted, "%s, heads of %lld, n_rot %d: rows of number %d are others", type_name(type), (long long) head, n_rot, i);
    }
}

static std::string check_roped(void) {
    const int T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3;
    for (int neox = 0; neox < 2; ++neox) for (int64_t tokens : { 1, 3 }) {
        check_roped_case(T, 128, 8, 32, tokens, 128, neox, 0, false);
        check_roped_case(T,  64, 3,  9, tokens,  64, neox, 0, true);
        check_roped_case(T,  80, 2,  4, tokens,  40, neox, 0, false);
        check_roped_case(P, 128, 8, 32, tokens, 128, neox, 128, true);
        check_roped_case(P,  64, 4,  6, tokens,  64, neox, 64, false);
        check_roped_case(P, 256, 1,  4, tokens, 256, neox, 128, false);
        check_roped_case(P, 128, 1,  4, tokens,  64, neox, 0, false);
    }
    check_roped_case(P, 192, 2, 2, 2, 128, false, 64, false);
    check_roped_case(T, 256, 4, 4, 24, 256, true, 0, false); /* the most that is taken */
    struct ggmlq_cuda_roped_rows p = {};
    require(ggmlq_cuda_store_roped_check(&p) != GGMLQ_OK && ggmlq_cuda_store_roped(&p, NULL) != GGMLQ_OK, "nothing was taken");
    return "";
}

#endif

/* Keys rounded for queries: the bytes of the C reference. Blocks of all sizes, zeros, NaN and infinities among them; feedback as strong as real one. */
static void check_rounded_keys(int type, int64_t length, int64_t heads, int64_t tokens) {
    const int index_bytes = tokens % 2 ? 4 : 8;
    const int64_t n = length*heads, n_rows = tokens + 3, odd = tokens % 3;
    struct ggmlq_cuda_view values, rows, feedback;
    std::vector<uint8_t> x(spread(&values, NULL, GGMLQ_CUDA_F32, n, tokens, 1, 1, 4*odd)), wanted(spread(&rows, NULL, type, n, n_rows, 1, 1, odd), 0xcd);
    const int64_t n_feedback = ggmlq_feedback_values(length);
    std::vector<uint8_t> f(spread(&feedback, NULL, GGMLQ_CUDA_F16, n_feedback, heads, 1, 1, 16*odd));
    for (int64_t h = 0; h < heads; ++h) for (int64_t i = 0; i < n_feedback; ++i) {
        put_value(GGMLQ_CUDA_F16, &f[row_at(feedback, h, 0, 0)], i, 0.2f*random_normal()); /* no one may look at those below the diagonal */
    }
    std::vector<int64_t> index(tokens);
    for (int64_t token = 0; token < tokens; ++token) {
        uint8_t * in = &x[row_at(values, token, 0, 0)];
        for (int64_t block = 0; block < n/32; ++block) {
            const int kind = (int) random_below(24);
            const float size = kind == 0 ? 1e-24f : kind == 1 ? 1e25f : kind == 2 ? 0.0f : kind == 3 ? 1e-7f : kind == 4 ? 3e4f : 1.0f;
            for (int64_t j = 0; j < 32; ++j) {
                put_value(GGMLQ_CUDA_F32, in, 32*block + j, size*random_normal());
            }
            if (kind == 5 && random_below(8) == 0) {
                put_value(GGMLQ_CUDA_F32, in, 32*block + random_below(32), token % 2 ? NAN : INFINITY);
            }
        }
        index[token] = token == 2 ? -1 : token == 3 ? n_rows : (token + 2) % n_rows;
        for (int64_t h = 0; h < heads && index[token] >= 0 && index[token] < n_rows; ++h) {
            const int error = ggmlq_encode_row_for_queries(type, (const float *) in + h*length, (const uint16_t *) &f[row_at(feedback, h, 0, 0)],
                &wanted[row_at(rows, index[token], 0, 0) + row_bytes(type, h*length)], length);
            require(error == GGMLQ_OK, "%s", ggmlq_error_text(error));
        }
    }
    const std::vector<int32_t> index32(index.begin(), index.end());
    device_bytes dx(x), df(f), dr(std::vector<uint8_t>(wanted.size(), 0xcd), odd), di(index), di32(index32);
    const int64_t ne[4] = { tokens, 1, 1, 1 }, nb[4] = { index_bytes, index_bytes*tokens, index_bytes*tokens, index_bytes*tokens };
    const struct ggmlq_cuda_view indices = view(index_bytes == 8 ? di.data() : di32.data(), 0, ne, nb);
    values.data = dx.data(); rows.data = dr.data(); feedback.data = df.data();
    ok(ggmlq_cuda_set_rows_for_queries(&rows, &values, &indices, index_bytes, &feedback, NULL));
    const std::vector<uint8_t> found = dr.host<uint8_t>();
    int64_t differ = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
        differ += found[i] != wanted[i];
    }
    require(differ == 0, "%s rounded for queries, %lld heads of %lld, %lld tokens: %lld of %lld bytes differ", type_name(type), (long long) heads, (long long) length,
        (long long) tokens, (long long) differ, (long long) wanted.size());
}

#ifndef GGMLQ_CHECK_METAL

/* All stores of new tokens in one launch, turned before. */
static void check_new_rows(int type, int64_t length, int64_t heads, int64_t tokens, int k_turned, int v_turned, int q_turned, bool with_v, bool with_q) {
    const int64_t n = length*heads, n_rows = tokens + 3, v_n = 256*3, n_q = tokens*2*n;
    std::vector<float> k = normals(tokens*n), v = normals(tokens*v_n), q = normals(n_q);
    const int64_t n_feedback = ggmlq_feedback_values(length);
    std::vector<uint16_t> feedback(heads*n_feedback);
    for (uint16_t & h : feedback) {
        h = ggmlq_half_from_float(0.2f*random_normal());
    }
    const device_bytes d_k(k), d_v(v), d_feedback(feedback);
    device_bytes d_q(q);
    turn_as_llama(k.data(), k_turned ? tokens*n : 0, k_turned ? k_turned : 1);
    turn_as_llama(v.data(), v_turned ? tokens*v_n : 0, v_turned ? v_turned : 1);
    turn_as_llama(q.data(), n_q, q_turned);
    const int64_t k_bytes = row_bytes(type, n), v_bytes = row_bytes(type, v_n);
    std::vector<uint8_t> k_wanted(n_rows*k_bytes, 0xcd), v_wanted(n_rows*v_bytes, 0xcd);
    std::vector<int64_t> index(tokens);
    for (int64_t token = 0; token < tokens; ++token) {
        index[token] = token == 1 ? -1 : (token + 2) % n_rows;
        for (int64_t h = 0; h < heads && index[token] >= 0; ++h) {
            ggmlq_encode_row_for_queries(type, &k[token*n + h*length], &feedback[h*n_feedback], &k_wanted[index[token]*k_bytes + row_bytes(type, h*length)], length);
        }
        if (with_v && index[token] >= 0) {
            ggmlq_encode_row(type, &v[token*v_n], &v_wanted[index[token]*v_bytes], v_n);
        }
    }
    device_bytes k_rows(std::vector<uint8_t>(k_wanted.size(), 0xcd)), v_rows(std::vector<uint8_t>(v_wanted.size(), 0xcd)), d_index(index), q_out(n_q*4);
    struct ggmlq_cuda_new_rows p = {};
    spread(&p.k, d_k.data(), GGMLQ_CUDA_F32, n, tokens, 1, 1, 0);
    spread(&p.k_rows, k_rows.data(), type, n, n_rows, 1, 1, 0);
    spread(&p.feedback, d_feedback.data(), GGMLQ_CUDA_F16, n_feedback, heads, 1, 1, 0);
    const int64_t ne[4] = { tokens, 1, 1, 1 }, nb[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
    p.k_indices = p.v_indices = view(d_index.data(), 0, ne, nb);
    if (with_v) {
        spread(&p.v, d_v.data(), GGMLQ_CUDA_F32, v_n, tokens, 1, 1, 0);
        spread(&p.v_rows, v_rows.data(), type, v_n, n_rows, 1, 1, 0);
    }
    const bool in_place = tokens == 3;
    if (with_q) {
        p.q     = (const float *) d_q.data();
        p.q_out = (float *) (in_place ? d_q : q_out).data();
        p.n_q   = n_q;
    }
    p.index_bytes = 8;
    p.k_turned = k_turned; p.v_turned = v_turned; p.q_turned = q_turned;
    ok(ggmlq_cuda_store_new(&p, NULL));
    char text[120];
    snprintf(text, sizeof(text), "%s, %d heads of %d, %d tokens, turned by %d, %d, %d", type_name(type), (int) heads, (int) length, (int) tokens, k_turned, v_turned, q_turned);
    require(k_rows.host<uint8_t>() == k_wanted, "keys: %s", text);
    require(v_rows.host<uint8_t>() == v_wanted, "values: %s", text);
    require(!with_q || (in_place ? d_q : q_out).host<float>() == q, "queries: %s", text);

    const auto refused = [&](const char * what, const std::function<void(struct ggmlq_cuda_new_rows &)> & spoil) {
        struct ggmlq_cuda_new_rows spoilt = p;
        spoil(spoilt);
        require(ggmlq_cuda_store_new_check(&spoilt) < 0 && ggmlq_cuda_store_new(&spoilt, NULL) < 0, "%s was taken: %s", what, text);
    };
    refused("a turn of 32",    [](struct ggmlq_cuda_new_rows & r) { r.k_turned = 32; });
    refused("a turn of 512",   [](struct ggmlq_cuda_new_rows & r) { r.k_turned = 512; });
    refused("no feedback",     [](struct ggmlq_cuda_new_rows & r) { r.feedback.ne[1] = 0; });
    refused("feedback of another length", [](struct ggmlq_cuda_new_rows & r) { r.feedback.ne[0] -= 32; });
    if (with_v) {
        refused("another type of V",     [](struct ggmlq_cuda_new_rows & r) { r.v_rows.type = r.k_rows.type == GGMLQ_TYPE_TQ3_0 ? GGMLQ_TYPE_PLANAR3 : GGMLQ_TYPE_TQ3_0; });
        refused("V turned by 256",       [](struct ggmlq_cuda_new_rows & r) { r.v_turned = 256; });
        refused("fewer values than rows", [](struct ggmlq_cuda_new_rows & r) { r.v.ne[0] -= 128; });
    }
    if (with_q) {
        refused("queries that aren't turned", [](struct ggmlq_cuda_new_rows & r) { r.q_turned = 0; });
        refused("half a turn of queries",     [](struct ggmlq_cuda_new_rows & r) { r.n_q -= 32; });
    }
}

#endif

static std::string check_rounded() {
#ifndef GGMLQ_CHECK_METAL
    for (int type : CACHE_TYPES) for (int with = 0; with < 4; ++with) {
        const bool turns_v = type == GGMLQ_TYPE_PLANAR3, v = with & 1, q = with & 2;
        check_new_rows(type, 128, 8, 1, 128, turns_v ? 128 : 0, 128, v, q);
        check_new_rows(type, 256, 2, 3, 256, turns_v ? 64 : 0, 256, v, q);
        check_new_rows(type, type == GGMLQ_TYPE_TQ3_0 ? 192 : 384, 1, 5, type == GGMLQ_TYPE_TQ3_0 ? 64 : 128, 0, 64, v, q);
    }
    check_new_rows(GGMLQ_TYPE_TQ3_0,   64, 5, 7,  64, 0, 64, true, true);
    check_new_rows(GGMLQ_TYPE_PLANAR3, 128, 3, 19, 0, 0, 128, true, true);
    check_new_rows(GGMLQ_TYPE_TQ3_0,   128, 8, 70, 128, 0, 128, true, true); /* more than 512 keys */
    check_new_rows(GGMLQ_TYPE_TQ3_0,   192, 40, 15, 64, 0, 64, true, false);
    check_new_rows(GGMLQ_TYPE_PLANAR3, 128, 16, 37, 128, 128, 128, true, true);
    check_new_rows(GGMLQ_TYPE_PLANAR3, 256, 48, 11, 256, 64, 256, true, true);
    check_new_rows(GGMLQ_TYPE_PLANAR3, 384, 174, 3, 128, 128, 64, false, true);
#endif
    struct { int64_t length, heads, tokens; } cases[] = {
        { 64, 3, 1 }, { 64, 8, 70 }, { 96, 2, 5 }, { 128, 8, 1 }, { 128, 1, 7 }, { 128, 4, 200 }, { 192, 1, 3 }, { 256, 4, 2 }, { 256, 2, 300 }, { 512, 1, 530 }, { 512, 2, 1 },
#ifdef GGMLQ_CHECK_METAL /* CUDA has heads of up to 512 values */
        { 1024, 2, 2 },
#endif
    };
    int number = 0;
    for (int type : CACHE_TYPES) for (const auto & c : cases) {
        if (number++ % one_of == 0 && c.length % ggmlq_type_info_get(type)->block_length == 0 && !(quick && c.length > 256 && c.tokens > 1 && type == GGMLQ_TYPE_PLANAR3)) {
            check_rounded_keys(type, c.length, c.heads, c.tokens);
        }
    }
    return "";
}

static std::string check_set_rows() {
    for (int type : CACHE_TYPES) for (const struct shape & s : SHAPES) for (int source : { GGMLQ_CUDA_F32, GGMLQ_CUDA_F16 }) for (int index_bytes : { 4, 8 }) for (int odd = 0; odd < 3; ++odd) {
        const int64_t n = s.n*128;
        struct ggmlq_cuda_view values, rows, indices;
        const int64_t value_bytes = spread(&values, NULL, source, n, s.tokens, s.i2, s.i3, odd == 0 ? 0 : 4*odd);
        const int64_t bytes = spread(&rows, NULL, type, n, s.rows, s.i2, s.i3, odd == 0 ? 0 : odd == 1 ? 2 : 3);
        std::vector<uint8_t> x(value_bytes), wanted(bytes, 0xcd);
        std::vector<float> row(n);
        const std::vector<uint8_t> index = make_indices(s, index_bytes, &indices);
        for (int64_t i = 0; i < s.tokens*s.i2*s.i3; ++i) {
            const int64_t i1 = i % s.tokens, i2 = i/s.tokens % s.i2, i3 = i/s.tokens/s.i2;
            for (int64_t j = 0; j < n; ++j) {
                put_value(source, &x[row_at(values, i1, i2, i3)], j, random_normal());
                row[j] = value_at(source, &x[row_at(values, i1, i2, i3)], j);
            }
            const int64_t target = index_at(index, indices, index_bytes, i1, i2, i3);
            if (target >= 0 && target < s.rows && i1 < s.rows) {
                ggmlq_encode_row(type, row.data(), &wanted[row_at(rows, target, i2, i3)], n);
            }
        }
        if (s.tokens > s.rows) {
            continue; /* two tokens for a row: no order is promised */
        }
        device_bytes dx(x, odd == 2 ? 4 : 0), dr(std::vector<uint8_t>(bytes, 0xcd), odd), di(index);
        values.data = dx.data(); rows.data = dr.data(); indices.data = di.data();
        ok(ggmlq_cuda_set_rows(&rows, &values, &indices, index_bytes, NULL));
        require(dr.host<uint8_t>() == wanted, "%s from %s, %d-byte indices, %lld tokens, gaps %d", type_name(type), type_name(source), index_bytes, (long long) s.tokens, odd);
    }
#ifdef GGMLQ_CHECK_METAL
    return "";
#else
    const std::string failed = check_set_rows_pair();
    const std::string turned = failed.empty() ? check_set_rows_turned() : failed;
    return turned.empty() ? check_roped() : turned;
#endif
}

static std::string check_get_rows() {
    for (int type : CACHE_TYPES) for (const struct shape & s0 : SHAPES) for (int target : { GGMLQ_CUDA_F32, GGMLQ_CUDA_F16, GGMLQ_CUDA_BF16 }) for (int index_bytes : { 4, 8 }) for (int odd = 0; odd < 3; ++odd) {
        struct shape s = s0;
        s.index2 = s.i2;
        s.index3 = s.i3;
        const int64_t n = s.n*128;
        struct ggmlq_cuda_view values, rows, indices;
        const int64_t value_bytes = spread(&values, NULL, target, n, s.tokens, s.i2, s.i3, odd == 0 ? 0 : 4*odd);
        const int64_t bytes = spread(&rows, NULL, type, n, s.rows, s.i2, s.i3, odd == 0 ? 0 : odd == 1 ? 2 : 3);
        std::vector<uint8_t> encoded = random_bytes(bytes), wanted(value_bytes, 0xcd);
        std::vector<float> row(n);
        const std::vector<uint8_t> index = make_indices(s, index_bytes, &indices);
        for (int64_t i = 0; i < s.rows*s.i2*s.i3; ++i) {
            const std::vector<uint8_t> good = encoded_rows(type, 1, n);
            memcpy(&encoded[row_at(rows, i % s.rows, i/s.rows % s.i2, i/s.rows/s.i2)], good.data(), good.size());
        }
        for (int64_t i = 0; i < s.tokens*s.i2*s.i3; ++i) {
            const int64_t i1 = i % s.tokens, i2 = i/s.tokens % s.i2, i3 = i/s.tokens/s.i2;
            const int64_t from = index_at(index, indices, index_bytes, i1, i2, i3);
            if (from >= 0 && from < s.rows) {
                ggmlq_decode_row(type, &encoded[row_at(rows, from, i2, i3)], row.data(), n);
                for (int64_t j = 0; j < n; ++j) {
                    put_value(target, &wanted[row_at(values, i1, i2, i3)], j, row[j]);
                }
            }
        }
        device_bytes dv(std::vector<uint8_t>(value_bytes, 0xcd), odd == 2 ? 4 : 0), dr(encoded, odd), di(index);
        values.data = dv.data(); rows.data = dr.data(); indices.data = di.data();
        ok(ggmlq_cuda_get_rows(&values, &rows, &indices, index_bytes, NULL));
        require(dv.host<uint8_t>() == wanted, "%s to %s, %d-byte indices, %lld tokens, gaps %d", type_name(type), type_name(target), index_bytes, (long long) s.tokens, odd);
    }
    return "";
}

/* Different shapes on both sides, both with gaps. */
static std::string check_copy() {
    static const int64_t pairs[][8] = { /* in blocks of 128 values along axis 0 */
        { 1, 1, 1, 1,  1, 1, 1, 1 }, { 6, 4, 1, 1,  1, 24, 1, 1 }, { 1, 24, 1, 1,  6, 2, 2, 1 }, { 2, 3, 4, 5,  5, 4, 3, 2 }, { 1, 7, 3, 2,  42, 1, 1, 1 }, { 3, 35, 2, 1,  2, 5, 7, 3 },
    };
    for (int type : CACHE_TYPES) for (const auto & ne : pairs) for (int odd = 0; odd < 3; ++odd) for (int encoding = 0; encoding < 2; ++encoding) for (int other : { GGMLQ_CUDA_F32, GGMLQ_CUDA_F16, GGMLQ_CUDA_BF16 }) {
        if (encoding && other == GGMLQ_CUDA_BF16) {
            continue;
        }
        struct ggmlq_cuda_view floats, rows;
        const int64_t float_bytes = spread(&floats, NULL, other, 128*ne[0], ne[1], ne[2], ne[3], 4*odd);
        const int64_t bytes       = spread(&rows,   NULL, type,  128*ne[4], ne[5], ne[6], ne[7], odd == 2 ? 5 : 2*odd);
        const int64_t n = 128*ne[0]*ne[1]*ne[2]*ne[3], n0 = floats.ne[0], m0 = rows.ne[0], length = ggmlq_type_info_get(type)->block_length, block_bytes = ggmlq_type_info_get(type)->block_bytes;
        std::vector<uint8_t> f(float_bytes, 0xcd), r(bytes, 0xcd);
        std::vector<float> flat = normals(n);
        std::vector<uint8_t> flat_rows(n/length*block_bytes);
        const auto float_at = [&](int64_t i) { const int64_t k = i/n0; return row_at(floats, k%ne[1], k/ne[1]%ne[2], k/ne[1]/ne[2]); };
        const auto block_at = [&](int64_t i) { const int64_t k = i/m0; return row_at(rows, k%ne[5], k/ne[5]%ne[6], k/ne[5]/ne[6]) + i%m0/length*block_bytes; };
        if (encoding) {
            for (int64_t i = 0; i < n; ++i) {
                put_value(other, &f[float_at(i)], i%n0, flat[i]);
                flat[i] = value_at(other, &f[float_at(i)], i%n0);
            }
        }
        ggmlq_encode_row(type, flat.data(), flat_rows.data(), n);
        const std::vector<uint8_t> untouched = encoding ? r : f;
        for (int64_t i = 0; i < n; i += length) {
            memcpy(&r[block_at(i)], &flat_rows[i/length*block_bytes], block_bytes);
        }
        if (!encoding) {
            ggmlq_decode_row(type, flat_rows.data(), flat.data(), n);
            for (int64_t i = 0; i < n; ++i) {
                put_value(other, &f[float_at(i)], i%n0, flat[i]);
            }
        }
        device_bytes df(encoding ? f : untouched, odd == 1 ? 4 : 0), dr(encoding ? untouched : r, odd);
        floats.data = df.data(); rows.data = dr.data();
        ok(ggmlq_cuda_copy(encoding ? &rows : &floats, encoding ? &floats : &rows, NULL));
        require(encoding ? dr.host<uint8_t>() == r : df.host<uint8_t>() == f, "%s, %s %s, shape of %lld values, gaps %d", type_name(type), encoding ? "from" : "to", type_name(other), (long long) n, odd);
    }
    return "";
}

/* --- mul_mat ---------------------------------------------------------------------------------------------------- */

static std::string check_mul_mat() {
    static const int64_t shapes[][7] = { /* n/128, rows, columns, heads of rows, of x, sequences of rows, of x */
        { 1, 1, 1, 1, 1, 1, 1 }, { 1, 33, 2, 2, 4, 1, 1 }, { 2, 31, 3, 1, 1, 1, 1 }, { 8, 5, 8, 1, 1, 2, 4 }, { 1, 257, 9, 2, 16, 2, 2 }, { 3, 64, 17, 3, 3, 1, 3 }, { 32, 7, 5, 1, 2, 1, 1 }, { 1, 100, 130, 1, 1, 1, 1 },
    };
    double worst = 0;
    for (int type : CACHE_TYPES) for (const auto & s : shapes) for (int odd = 0; odd < 3; ++odd) {
        const int64_t n = 128*s[0] - (type == GGMLQ_TYPE_TQ3_0 && odd == 1 ? 32 : 0), length = ggmlq_type_info_get(type)->block_length, n_blocks = n/length;
        const int64_t block_bytes = ggmlq_type_info_get(type)->block_bytes;
        struct ggmlq_cuda_view rows, x, out;
        const int64_t bytes = spread(&rows, NULL, type, n, s[1], s[3], s[5], odd == 2 ? 7 : 2*odd), x_bytes = spread(&x, NULL, GGMLQ_CUDA_F32, n, s[2], s[4], s[6], 4*odd);
        const int64_t out_bytes = spread(&out, NULL, GGMLQ_CUDA_F32, s[1], s[2], s[4], s[6], 4*odd);
        std::vector<uint8_t> r = random_bytes(bytes);
        std::vector<float> xs = normals(x_bytes/4);
        for (int64_t i = 0; i < s[1]*s[3]*s[5]; ++i) {
            const std::vector<uint8_t> good = encoded_rows(type, 1, n);
            memcpy(&r[row_at(rows, i%s[1], i/s[1]%s[3], i/s[1]/s[3])], good.data(), good.size());
        }
        if (odd == 2) { /* a query with an empty block, one with a NaN */
            std::fill(xs.begin(), xs.begin() + length, 1e-44f);
            xs[row_at(x, s[2] - 1, s[4] - 1, s[6] - 1)/4 + 3] = NAN;
        }
        device_bytes dr(r, odd), dx(xs), d_out(std::vector<uint8_t>(out_bytes, 0xcd));
        rows.data = dr.data(); x.data = dx.data(); out.data = d_out.data();
        const int64_t workspace_bytes = ggmlq_cuda_mul_mat_workspace_bytes(type, &x);
        require(workspace_bytes >= 0, "workspace %lld", (long long) workspace_bytes);
        device_bytes workspace(std::vector<uint8_t>(workspace_bytes, 0xff));
        ok(ggmlq_cuda_mul_mat(&out, &rows, &x, workspace.data(), NULL));
        const std::vector<uint8_t> found = d_out.host<uint8_t>();
        std::vector<uint8_t> query(n_blocks*(4 + length));
        for (int64_t i3 = 0; i3 < s[6]; ++i3) for (int64_t i2 = 0; i2 < s[4]; ++i2) for (int64_t c = 0; c < s[2]; ++c) {
            ggmlq_encode_query_row(type, &xs[row_at(x, c, i2, i3)/4], query.data(), n);
            for (int64_t ir = 0; ir < s[1]; ++ir) {
                const uint8_t * row = &r[row_at(rows, ir, i2/(s[4]/s[3]), i3/(s[6]/s[5]))];
                double sum = 0, magnitude = 0;
                for (int64_t b = 0; b < n_blocks; ++b) {
                    int8_t levels[128];
                    float d;
                    memcpy(&d, &query[b*(4 + length)], 4);
                    const float scale = type == GGMLQ_TYPE_TQ3_0 ? ggmlq_unpack_block_tq3_0((const struct ggmlq_block_tq3_0 *) (row + b*block_bytes), levels)
                                                                 : ggmlq_unpack_block_planar3((const struct ggmlq_block_planar3 *) (row + b*block_bytes), levels);
                    int64_t dot = 0;
                    for (int64_t j = 0; j < length; ++j) {
                        dot += levels[j]*(int8_t) query[b*(4 + length) + 4 + j];
                    }
                    sum       += (double) scale*d*(double) dot;
                    magnitude += std::fabs((double) scale*d*(double) dot);
                }
                const float result = value_at(GGMLQ_CUDA_F32, &found[row_at(out, c, i2, i3)], ir);
                const double bound = (double) (n_blocks + 2)*U*magnitude;
                require(std::isnan(sum) ? std::isnan(result) : std::fabs(result - sum) <= bound, "%s n %lld row %lld column %lld: %g, wanted %g within %g",
                        type_name(type), (long long) n, (long long) ir, (long long) c, result, sum, bound);
                worst = std::isnan(sum) || bound == 0 ? worst : std::max(worst, std::fabs(result - sum)/bound);
            }
        }
    }
    char note[64];
    snprintf(note, sizeof(note), "largest error %.2f of its bound", worst);
    return note;
}

/* --- attention -------------------------------------------------------------------------------------------------- */

struct attention_case {
    int     type_k, type_v;
    int64_t head_k, head_v, n_kv, n_queries, heads, heads_kv, seqs, seqs_kv;
    bool    mask, sinks;
    float   softcap, max_bias;
    int     layout; /* 0: rows of a head adjacent; 1: all heads of a token adjacent, gaps, even addresses; 2: odd addresses */
    bool    poison; /* hidden rows hold NaN */
    int64_t from = 0; /* tokens before are hidden from all, whole ranges of them where tokens are split */
    int64_t term = 0; /* values of w of centered keys; without `part` for one sequence */
};

/* Normal values as rows of any type; what they decode to. */
static void make_rows(int type, int64_t n, uint8_t * row, float * values) {
    const std::vector<float> x = normals(n);
    if (is_ours(type)) {
        ggmlq_encode_row(type, x.data(), row, n);
        ggmlq_decode_row(type, row, values, n);
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        if (type == GGMLQ_TYPE_F32 || type == GGMLQ_TYPE_F16) {
            put_value(type, row, i, x[i]);
            values[i] = value_at(type, row, i);
        } else if (i % 32 == 0) {
            const int64_t bytes = ggmlq_type_info_get(type)->block_bytes;
            uint8_t * block = row + i/32*bytes;
            const std::vector<uint8_t> fields = random_bytes(bytes);
            memcpy(block, fields.data(), bytes);
            ggmlq_store_u16(block, ggmlq_half_from_float(0.01f + 0.001f*(float) random_below(10)));
            const float d = ggmlq_half_to_float(ggmlq_load_u16(block));
            for (int j = 0; j < 32; ++j) {
                values[i + j] = type == GGMLQ_TYPE_Q8_0 ? d*(float) (int8_t) block[2 + j] : d*(float) ((j < 16 ? block[2 + j] & 15 : block[2 + j - 16] >> 4) - 8);
            }
        }
    }
}

/* NaN wherever a type can say so. */
static void poison_row(int type, int64_t n, uint8_t * row) {
    const struct ggmlq_type_info * info = ggmlq_type_info_get(type);
    for (int64_t b = 0; b < n/info->block_length; ++b) {
        if (type == GGMLQ_TYPE_F32) {
            put_value(type, row, b, NAN);
        } else {
            ggmlq_store_u16(row + b*info->block_bytes + (type == GGMLQ_TYPE_TQ3_0 ? 12 : 0), 0x7e00);
        }
    }
}

static double alibi_slope(int64_t n_heads, int64_t head, double max_bias) {
    if (max_bias == 0) {
        return 1;
    }
    int64_t n = 1;
    while (2*n <= n_heads) {
        n *= 2;
    }
    return head < n ? pow(2, -max_bias/n*(double) (head + 1)) : pow(2, -max_bias/2/n*(double) (2*(head - n) + 1));
}

/* What pairs turn from one position to the next: as RoPE does, and some as nothing does. */
static std::vector<uint64_t> make_turns(int64_t pairs) {
    std::vector<uint64_t> turns(pairs);
    for (int64_t i = 0; i < pairs; ++i) {
        turns[i] = i % 8 == 5 ? (uint64_t) random_below(1 << 30) << 34 | (uint64_t) random_below(1 << 30) : (uint64_t) ldexp(pow(10000, -(double) i/(double) pairs)/6.283185307179586, 64);
    }
    return turns;
}

/* Positions of a cache: one after the other; anything; across 0; across 2^31; those of two texts in turn, and empty cells. */
static std::vector<int32_t> make_positions(int64_t n) {
    const int kind = (int) random_below(5);
    std::vector<int32_t> positions(n);
    for (int64_t i = 0; i < n; ++i) {
        positions[i] = kind == 0 ? 57 + (int32_t) i : kind == 1 ? (int32_t) ((uint32_t) random_below(1 << 16) << 16 | (uint32_t) random_below(1 << 16)) : kind == 2 ? (int32_t) (i - n/2) :
            kind == 3 ? (int32_t) (uint32_t) (2147483647 - n/2 + i) : i % 7 == 3 ? 0 : (int32_t) (i/2 + 1000*(i % 2));
    }
    return positions;
}

/* Of a positional row: the cosine (0) or the sine (1) of a pair. */
static double positional(int32_t position, uint64_t turn, int which) {
    const double angle = (double) ((uint64_t) (int64_t) position*turn >> 32)*(6.283185307179586476925/4294967296.0);
    return which ? sin(angle) : cos(angle);
}

static double worst_attention;

static void check_attention_case(const struct attention_case & c) {
    static int number = 0;
    if (number++ % one_of != 0) {
        return;
    }
    random_state = 88172645463325252ull + 0x9e3779b97f4a7c15ull*(uint64_t) number; /* a case is the same whichever others ran */
    struct ggmlq_attend_params p = {};
    p.type_k = c.type_k; p.type_v = c.type_v;
    p.head_size_k = c.head_k; p.head_size_v = c.head_v;
    p.n_kv = c.n_kv; p.n_queries = c.n_queries;
    p.n_heads = c.heads; p.n_heads_kv = c.heads_kv;
    p.n_seqs = c.seqs; p.n_seqs_kv = c.seqs_kv;
    p.scale = 1.0f/sqrtf((float) c.head_k);
    p.max_bias = c.max_bias;
    p.logit_softcap = c.softcap;

    std::vector<uint8_t> bytes[2];
    std::vector<float>   values[2];
    int64_t stride[2][3];
    for (int i = 0; i < 2; ++i) {
        const int type = i ? c.type_v : c.type_k;
        const int64_t n = i ? c.head_v : c.head_k, row = row_bytes(type, n), gap = c.layout == 0 ? 0 : is_ours(type) ? (c.layout == 2 ? 3 : 2) : type == GGMLQ_TYPE_F32 ? 4 : 2;
        stride[i][0] = c.layout == 0 ? row : (row + gap)*c.heads_kv + gap;
        stride[i][1] = c.layout == 0 ? row*c.n_kv : row + gap;
        stride[i][2] = c.layout == 0 ? row*c.n_kv*c.heads_kv : stride[i][0]*c.n_kv + gap;
        bytes[i].assign(stride[i][2]*c.seqs_kv + 16, 0xff);
        values[i].resize(n*c.n_kv*c.heads_kv*c.seqs_kv);
        for (int64_t s = 0; s < c.seqs_kv; ++s) for (int64_t h = 0; h < c.heads_kv; ++h) for (int64_t t = 0; t < c.n_kv; ++t) {
            make_rows(type, n, &bytes[i][t*stride[i][0] + h*stride[i][1] + s*stride[i][2]], &values[i][((s*c.heads_kv + h)*c.n_kv + t)*n]);
        }
    }
    p.mask_heads = c.mask && c.heads % 2 == 0 ? 2 : 1;
    p.mask_seqs  = c.mask && c.seqs  % 2 == 0 ? 2 : 1;
    std::vector<uint16_t> mask(p.mask_seqs*p.mask_heads*c.n_queries*(c.n_kv + 1));
    p.mask_stride[0] = 2*(c.n_kv + 1);
    p.mask_stride[1] = p.mask_stride[0]*c.n_queries;
    p.mask_stride[2] = p.mask_stride[1]*p.mask_heads;
    /* A third is hidden, of query 1 all, of everyone a run of 40 tokens, which is what poison lies in. */
    const int64_t run = c.n_kv/3;
    for (size_t i = 0; i < mask.size(); ++i) {
        const int64_t t = (int64_t) i % (c.n_kv + 1), query = (int64_t) i/(c.n_kv + 1) % c.n_queries;
        mask[i] = random_below(3) == 0 || (c.n_queries > 1 && query == 1) || (t >= run && t < run + 40 && t < c.n_kv) || t < c.from ? 0xfc00 : ggmlq_half_from_float(-3.0f*std::fabs(random_normal()));
    }
    if (c.poison) {
        for (int64_t s = 0; s < c.seqs_kv; ++s) for (int64_t h = 0; h < c.heads_kv; ++h) for (int64_t t = run; t < run + 40 && t < c.n_kv; ++t) {
            poison_row(c.type_k, c.head_k, &bytes[0][t*stride[0][0] + h*stride[0][1] + s*stride[0][2]]);
            poison_row(c.type_v, c.head_v, &bytes[1][t*stride[1][0] + h*stride[1][1] + s*stride[1][2]]);
        }
    }
    const int64_t q_gap = c.layout ? 4 : 0;
    const int64_t q_row = 4*c.head_k + q_gap, out_row = 4*c.head_v + q_gap;
    std::vector<float> q = normals(q_row/4*c.n_queries*c.heads*c.seqs), sinks = normals(c.heads);
    const int64_t out_bytes = out_row*c.heads*c.n_queries*c.seqs;
    device_bytes dq(q), dk(bytes[0], c.layout == 2 && is_ours(c.type_k) ? 1 : 0), dv(bytes[1], c.layout == 2 && is_ours(c.type_v) ? 1 : 0), d_mask(mask), d_sinks(sinks), d_out(std::vector<uint8_t>(out_bytes, 0xff));
    p.q = (const float *) dq.data();
    p.q_stride[0] = q_row; p.q_stride[1] = q_row*c.n_queries; p.q_stride[2] = q_row*c.n_queries*c.heads;
    p.k = dk.data(); p.v = dv.data();
    memcpy(p.k_stride, stride[0], sizeof(p.k_stride));
    memcpy(p.v_stride, stride[1], sizeof(p.v_stride));
    p.out = (float *) d_out.data();
    p.out_stride[0] = out_row*c.heads; p.out_stride[1] = out_row; p.out_stride[2] = out_row*c.heads*c.n_queries;
    p.mask  = c.mask  ? (const uint16_t *) d_mask.data() : NULL;
    p.sinks = c.sinks ? (const float *) d_sinks.data() : NULL;

    /* Layouts 1 and 2: something lies between rows, and between sequences. A key of five has the factor 0, another one 0.75. */
    const int64_t gap = c.layout ? 1 : 0, w_row = c.term + gap, kv_row = c.n_kv + gap, pairs = c.term/2;
    std::vector<float> w = normals(std::max<int64_t>(w_row*c.n_queries*c.heads*c.seqs, 1));
    std::vector<uint16_t> part(kv_row*c.seqs_kv + 1);
    for (auto & value : part) { value = random_below(5) == 0 ? 0 : random_below(5) == 0 ? 0x3a00 : 0x3c00; }
    std::vector<uint64_t> turns(1);
    std::vector<int32_t> positions(1);
    if (c.term) {
        turns     = make_turns(pairs);
        positions = make_positions(kv_row*c.seqs_kv + 1);
    }
    if (c.poison && c.term) {
        for (int64_t s = 0; s < c.seqs_kv; ++s) for (int64_t t = run; t < run + 40 && t < c.n_kv; ++t) { part[s*kv_row + t] = 0x7e00; }
    }
    device_bytes dw(w), d_turns(turns), d_positions(positions), dpart(part);
    if (c.term) {
        p.w = (const float *) dw.data();
        p.w_stride[0] = 4*w_row*c.heads; p.w_stride[1] = 4*w_row; p.w_stride[2] = 4*w_row*c.heads*c.n_queries;
        p.n_pairs = pairs;
        p.pairs_are_halves = (int) random_below(2);
        p.turns     = (const uint64_t *) d_turns.data();
        p.positions = (const int32_t *) d_positions.data();
        p.positions_stride = 4*kv_row;
        p.part = c.seqs == 1 ? NULL : (const uint16_t *) dpart.data();
        p.part_stride = 2*kv_row;
    }

    char text[256];
    const char * kernel = ggmlq_cuda_attend_kernel(&p);
    snprintf(text, sizeof(text), "%s: K %s %lld, V %s %lld, kv %lld, %lld queries, %lld/%lld heads, %lld/%lld sequences, mask %d, sinks %d, cap %g, alibi %g, layout %d, term %lld", kernel ? kernel : "none",
             type_name(c.type_k), (long long) c.head_k, type_name(c.type_v), (long long) c.head_v, (long long) c.n_kv, (long long) c.n_queries, (long long) c.heads, (long long) c.heads_kv,
             (long long) c.seqs, (long long) c.seqs_kv, c.mask, c.sinks, c.softcap, c.max_bias, c.layout, (long long) c.term);

    const int64_t workspace_bytes = ggmlq_cuda_attend_workspace_bytes(&p);
    require(ggmlq_cuda_attend_check(&p) == GGMLQ_OK && workspace_bytes >= 0, "refused: %s", text);
    if (workspace_bytes < 0) {
        return;
    }
    device_bytes workspace(std::vector<uint8_t>(workspace_bytes, 0xff));
    ok(ggmlq_cuda_attend(&p, workspace.data(), NULL));
    const std::vector<float> found = d_out.host<float>();
    cuda(cudaMemset(workspace.data(), 0x11, workspace_bytes));
    ok(ggmlq_cuda_attend(&p, workspace.data(), NULL));
    require(memcmp(d_out.host<float>().data(), found.data(), out_bytes) == 0, "not the same twice: %s", text);

    std::vector<double> score(c.n_kv), wanted(c.head_v), rows;
    for (int64_t s = 0; s < c.seqs_kv; ++s) for (int64_t t = 0; t < c.n_kv; ++t) for (int64_t j = 0; j < c.term; ++j) {
        rows.push_back(positional(positions[s*kv_row + t], turns[j/2], (int) (j % 2)));
    }
    for (int64_t s = 0; s < c.seqs; ++s) for (int64_t h = 0; h < c.heads; ++h) for (int64_t iq = 0; iq < c.n_queries; ++iq) {
        const int64_t kv = s/(c.seqs/c.seqs_kv)*c.heads_kv + h/(c.heads/c.heads_kv);
        const float * query = &q[(s*c.heads*c.n_queries + h*c.n_queries + iq)*q_row/4];
        const uint16_t * m = c.mask ? &mask[((s%p.mask_seqs*p.mask_heads + h%p.mask_heads)*c.n_queries + iq)*(c.n_kv + 1)] : NULL;
        double top = c.sinks ? sinks[h] : -INFINITY, norm_q = 0, norm_k = 0, norm_v = 0, norm_w = 0, bias_max = 0;
        const float * w_of_query = &w[(s*c.heads*c.n_queries + iq*c.heads + h)*w_row];
        for (int64_t j = 0; j < c.term; ++j) {
            norm_w += (double) w_of_query[j]*w_of_query[j];
        }
        for (int64_t j = 0; j < c.head_k; ++j) {
            norm_q += (double) query[j]*query[j];
        }
        for (int64_t t = 0; t < c.n_kv; ++t) {
            double dot = 0, square = 0, square_v = 0;
            const float * k = &values[0][(kv*c.n_kv + t)*c.head_k], * v = &values[1][(kv*c.n_kv + t)*c.head_v];
            for (int64_t j = 0; j < c.head_k; ++j) {
                dot    += (double) query[j]*k[j];
                square += (double) k[j]*k[j];
            }
            for (int64_t j = 0; j < c.head_v; ++j) {
                square_v += (double) v[j]*v[j];
            }
            if (c.term) {
                const int64_t at = s/(c.seqs/c.seqs_kv)*kv_row + t;
                double term = 0;
                for (int64_t j = 0; j < pairs; ++j) {
                    const double * const row = &rows[(s/(c.seqs/c.seqs_kv)*c.n_kv + t)*c.term + 2*j];
                    term += p.pairs_are_halves ? w_of_query[j]*row[0] + w_of_query[j + pairs]*row[1] : w_of_query[2*j]*row[0] + w_of_query[2*j + 1]*row[1];
                }
                dot += term*(p.part ? ggmlq_half_to_float(part[at]) : 1);
            }
            norm_k = std::max(norm_k, square);
            norm_v = std::max(norm_v, square_v);
            dot *= p.scale;
            dot  = c.softcap != 0 ? c.softcap*tanh(dot/c.softcap) : dot;
            if (m) {
                const double bias = m[t] == 0xfc00 ? -INFINITY : alibi_slope(c.heads, h, c.max_bias)*ggmlq_half_to_float(m[t]);
                bias_max = std::isinf(bias) ? bias_max : std::max(bias_max, std::fabs(bias));
                dot = std::isinf(bias) ? bias : dot + bias;
            }
            score[t] = dot;
            top = std::max(top, dot);
        }
        double total = c.sinks ? exp(sinks[h] - top) : 0;
        std::fill(wanted.begin(), wanted.end(), 0);
        for (int64_t t = 0; t < c.n_kv; ++t) {
            if (score[t] == -INFINITY) {
                continue;
            }
            const double weight = exp(score[t] - top);
            total += weight;
            const float * v = &values[1][(kv*c.n_kv + t)*c.head_v];
            for (int64_t j = 0; j < c.head_v; ++j) {
                wanted[j] += weight*v[j];
            }
        }
        /* tests/tolerances.py, attention: rotations of K and of the query (16 U each), the cap's tanh (8 U), the exponential (64 U); cosines and sines, from angles of 24 bits (8 U). */
        const double e = ((double) c.head_k + 40)*U*std::fabs(p.scale)*sqrt(norm_q*norm_k) + (double) (c.term + 8)*U*std::fabs(p.scale)*sqrt(norm_w*(double) pairs) + 16*U*bias_max + 8*U*c.softcap;
        const double bound = (2*e + 2*(double) c.n_kv*U + 80*U)*sqrt(norm_v);
        double error = 0, norm = 0;
        const float * out = &found[(s*c.heads*c.n_queries + iq*c.heads + h)*out_row/4];
        for (int64_t j = 0; j < c.head_v; ++j) {
            const double w = total == 0 ? 0 : wanted[j]/total, d = out[j] - w;
            error += d*d;
            norm  += w*w;
        }
        error = sqrt(error);
        norm  = sqrt(norm);
        require(error <= bound, "error %g, bound %g, norm %g, sequence %lld head %lld query %lld: %s", error, bound, norm, (long long) s, (long long) h, (long long) iq, text); /* false for NaN */
        require(norm == 0 || bound < 0.5*norm, "a bound of %g says nothing where the norm is %g: %s", bound, norm, text);
        worst_attention = bound > 0 && !(error/bound <= worst_attention) ? error/bound : worst_attention;
    }
}

#ifndef GGMLQ_CHECK_METAL
/* Rows of K and V as f16 against double precision; nothing else is written. */
struct f16_case {
    int type_k, type_v;
    int64_t length_k, length_v, n_kv, heads, seqs, pairs; /* no pairs: plain keys */
    int  turned;
    bool halves, with_part, in_place;
};

static double worst_f16;

static void check_f16_case(const struct f16_case & c) {
    char text[200];
    snprintf(text, sizeof(text), "%s %s, %lld heads of %lld and %lld, %lld tokens, %lld pairs, %s, turned by %d", type_name(c.type_k), type_name(c.type_v), (long long) c.heads, (long long) c.length_k,
             (long long) c.length_v, (long long) c.n_kv, (long long) c.pairs, c.halves ? "halves" : "side by side", c.turned);
    const int64_t length[2] = { c.length_k, c.length_v };
    const int type[2] = { c.type_k, c.type_v };
    struct ggmlq_cuda_f16_rows p = {};
    std::vector<uint8_t> rows[2];
    std::unique_ptr<device_bytes> d_rows[2], d_values[2];
    for (int i = 0; i < 2; ++i) {
        const int64_t gap = type[i] == GGMLQ_TYPE_F16 ? 16 : 2; /* behind every row */
        p.wanted[i] = i == 0 || type[1] >= 0;
        if (!p.wanted[i]) {
            continue;
        }
        const int64_t row = row_bytes(type[i], length[i]) + gap, to = 2*length[i] + 16;
        rows[i].assign(row*c.n_kv*c.heads*c.seqs, 0x77);
        for (int64_t r = 0; r < c.n_kv*c.heads*c.seqs; ++r) {
            std::vector<float> unused(length[i]);
            make_rows(type[i], length[i], rows[i].data() + r*row, unused.data());
        }
        d_rows[i].reset(new device_bytes(rows[i]));
        const int64_t ne[4] = { length[i], c.n_kv, c.heads, c.seqs }, nb_rows[4] = { 2, row*c.heads, row, row*c.heads*c.n_kv }, nb_values[4] = { 2, to, to*c.n_kv, to*c.n_kv*c.heads };
        d_values[i].reset(new device_bytes(std::vector<uint16_t>(to/2*c.n_kv*c.heads*c.seqs, 0x7e01)));
        p.rows[i]   = view(d_rows[i]->data(), type[i], ne, nb_rows);
        p.values[i] = c.in_place && i == 0 ? p.rows[i] : view(d_values[i]->data(), GGMLQ_CUDA_F16, ne, nb_values);
    }
    const std::vector<float> mean = normals(c.length_k*c.heads);
    const std::vector<uint64_t> turns = make_turns(c.pairs);
    const std::vector<int32_t> positions = make_positions(c.n_kv*c.seqs);
    std::vector<uint16_t> part(c.n_kv*c.seqs);
    for (auto & value : part) { value = random_below(3) == 0 ? 0 : 0x3c00; }
    device_bytes d_mean(mean), d_turns(turns), d_positions(positions), d_part(part);
    struct ggmlq_attend_params term = {};
    term.n_pairs = c.pairs; term.pairs_are_halves = c.halves; term.turns = (const uint64_t *) d_turns.data();
    term.positions = (const int32_t *) d_positions.data(); term.positions_stride = 4*c.n_kv;
    term.part = c.with_part ? (const uint16_t *) d_part.data() : NULL; term.part_stride = 2*c.n_kv;
    p.mean   = (const float *) d_mean.data();
    p.factor = 0.7f;
    p.turned = c.turned;
    p.term   = c.pairs ? &term : NULL;
    ok(ggmlq_cuda_to_f16(&p, NULL));
    for (int i = 0; i < 2; ++i) {
        if (!p.wanted[i]) {
            continue;
        }
        const std::vector<uint16_t> found = (c.in_place && i == 0 ? d_rows[i] : d_values[i])->host<uint16_t>();
        const int64_t n = length[i], row = p.rows[i].nb[2];
        for (int64_t s = 0; s < c.seqs; ++s) for (int64_t t = 0; t < c.n_kv; ++t) for (int64_t h = 0; h < c.heads; ++h) {
            const uint8_t * from = rows[i].data() + ((s*c.n_kv + t)*c.heads + h)*row;
            std::vector<float> decoded(n);
            std::vector<double> lacks(n);
            if (type[i] == GGMLQ_TYPE_F16) {
                for (int64_t j = 0; j < n; ++j) { decoded[j] = from_16(GGMLQ_CUDA_F16, ((const uint16_t *) from)[j]); }
            } else {
                ggmlq_decode_row(type[i], from, decoded.data(), n);
            }
            const double factor = p.factor*(c.with_part ? ggmlq_half_to_float(part[s*c.n_kv + t]) : 1);
            for (int64_t pair = 0; pair < c.pairs && i == 0; ++pair) {
                const int64_t a = c.halves ? pair : 2*pair, b = c.halves ? pair + c.pairs : a + 1;
                const double x = mean[h*n + a], y = mean[h*n + b], cosine = positional(positions[s*c.n_kv + t], turns[pair], 0), sine = positional(positions[s*c.n_kv + t], turns[pair], 1);
                lacks[a] = factor*(x*cosine - y*sine);
                lacks[b] = factor*(x*sine + y*cosine);
            }
            for (int64_t first = 0; first < n && c.turned && i == 0; first += c.turned) {
                for (int64_t half = 1; half < c.turned; half *= 2) for (int64_t j = 0; j < c.turned; ++j) if ((j & half) == 0) {
                    const double x = lacks[first + j], y = lacks[first + (j | half)];
                    lacks[first + j]          = (x + y)*std::sqrt(0.5);
                    lacks[first + (j | half)] = (x - y)*std::sqrt(0.5);
                }
            }
            double square = 0, square_lacks = 0; /* all is computed in halves */
            for (int64_t j = 0; j < n; ++j) {
                square       += decoded[j]*(double) decoded[j];
                square_lacks += lacks[j]*lacks[j]/(2*(double) std::max<int64_t>(1, c.pairs));
            }
            for (int64_t j = 0; j < n + 8; ++j) {
                const int64_t at = s*p.values[i].nb[3] + h*p.values[i].nb[2] + t*p.values[i].nb[1] + 2*j;
                const uint16_t value = found[at/2];
                if (j >= n) {
                    require(c.in_place && i == 0 ? value == 0x7777 : value == 0x7e01, "%s: written behind a row: %04x", text, value);
                    continue;
                }
                const double wanted = decoded[j] + lacks[j], error = std::fabs(ggmlq_half_to_float(value) - wanted), terms = type[i] == GGMLQ_TYPE_F16 ? 0 : 3*std::fabs(decoded[j]) + 3*std::sqrt(square/(double) n),
                    bound = (std::fabs(wanted) + terms + 16*std::sqrt(square_lacks))/2048 + 1.5e-7;
                require(error <= bound, "%s: value %lld of token %lld, head %lld: %g, wanted %g", text, (long long) j, (long long) t, (long long) h, ggmlq_half_to_float(value), wanted);
                worst_f16 = std::max(worst_f16, error/bound);
            }
        }
    }
}

static std::string check_f16() {
    worst_f16 = 0;
    const int T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3, H = GGMLQ_TYPE_F16;
    const int types[] = { T, P, H };
    for (int k : types) for (int v : { T, P, -1 }) { /* one launch and two, K alone */
        check_f16_case({ k, v, 128, 128, 37, 8, 1, 0, 0, false, false, false });
        check_f16_case({ k, v, 128, 256, 37, 3, 2, 64, 128, true, true, k == H });
    }
    for (int k : types) for (bool halves : { false, true }) for (int turned : { 0, 64, 128, 256 }) for (int64_t pairs : { 128, 60, 6 }) {
        check_f16_case({ k, k == P ? T : P, 256, 128, 19, 2, 2, pairs, turned, halves, turned != 64, false });
    }
    for (int64_t length : { 32, 64, 96, 192, 320, 512, 576, 1024 }) for (int64_t n_kv : { 1, 130 }) { /* parts of blocks of threads, heads that aren't powers of 2 */
        check_f16_case({ T, T, length, 32, n_kv, 1, 1, 0, 0, false, false, false });
        check_f16_case({ T, H, length, 64, n_kv, length < 512 ? 5 : 1, 1, length/2 - 8, length % 64 ? 0 : length == 512 || length == 1024 ? (int) length : 64, true, true, false });
        check_f16_case({ H, T, length, 96, n_kv, 2, 1, length/2, 0, false, false, true });
    }
    check_f16_case({ P, P, 512, 128, 9, 40, 1, 256, 512, true, true, false }); /* more than a block of threads has of a token */
    check_f16_case({ P, T, 128, 128, 0, 2, 1, 64, 128, true, true, false });
    struct ggmlq_attend_params term = {};
    struct ggmlq_cuda_f16_rows p = {};
    const int64_t ne[4] = { 128, 5, 2, 1 }, nb[4] = { 2, 512, 256, 2560 }, odd[4] = { 2, 258, 1290, 2580 };
    auto refuses = [&](const char * what, int error) { require(ggmlq_cuda_to_f16_check(&p) == error && ggmlq_cuda_to_f16(&p, NULL) == error, "%s: %d", what, ggmlq_cuda_to_f16_check(&p)); };
    p.wanted[0] = 1;
    p.values[0] = p.rows[0] = view(NULL, GGMLQ_CUDA_F16, ne, nb);
    p.rows[0].type = GGMLQ_CUDA_F32;   refuses("rows of floats", GGMLQ_ERROR_TYPE);
    p.rows[0].type = GGMLQ_TYPE_Q8_0;  refuses("rows of q8_0", GGMLQ_ERROR_TYPE);
    p.rows[0] = view(NULL, GGMLQ_CUDA_F16, ne, odd); refuses("rows on odd addresses", GGMLQ_ERROR_SHAPE);
    p.rows[0] = p.values[0];
    p.rows[0].ne[1] = 4;               refuses("fewer rows", GGMLQ_ERROR_SHAPE);
    p.rows[0].ne[1] = 5;
    p.term = &term;
    for (int64_t pairs : { 0, 5, 66 }) { term.n_pairs = pairs; refuses("pairs", GGMLQ_ERROR_SHAPE); }
    term.n_pairs = 64;
    for (int turned : { 32, 96, 256 }) { p.turned = turned; refuses("turned", GGMLQ_ERROR_SHAPE); }
    char note[64];
    snprintf(note, sizeof(note), "largest error %.4f of its bound", worst_f16);
    return note;
}
#endif

#ifndef GGMLQ_CHECK_METAL
/* What belongs to ggmlq_cuda_center's call for `tokens` tokens of heads side by side, `gap` floats apart; in place where gap is 0. */
struct centering_case {
    int64_t head, heads_kv, heads, tokens, gap, n_v, n_rows;
    std::vector<float>   k, v, q, s, s_mu, s_inv, mu_same, mu_turn, s_mu_2;
    std::vector<int64_t> index;
    std::vector<int32_t> positions;
    device_bytes dk, dv, dq, ds, ds_mu, ds_inv, dmu_same, dmu_turn, ds_mu_2, d_index, d_positions, d_part, dk_out, dv_out, dq_out, dw;

    static std::vector<int64_t> some_rows(int64_t tokens, int64_t n_rows) {
        std::vector<int64_t> rows(tokens);
        for (int64_t t = 0; t < tokens; ++t) {
            rows[t] = t % 5 == 3 ? (t % 2 ? -1 : n_rows) : (t*7 + 2) % n_rows; /* one in five is out of range */
        }
        return rows;
    }

    centering_case(int64_t head, int64_t heads_kv, int64_t heads, int64_t tokens, int64_t gap, int32_t position) : head(head), heads_kv(heads_kv), heads(heads), tokens(tokens), gap(gap),
        n_v(head*heads_kv*tokens), n_rows(7*tokens + 3), k(normals((head + gap)*heads_kv*tokens)), v(normals(n_v)), q(normals((head + gap)*heads*tokens)), s(normals(head*heads_kv)),
        s_mu(normals(head*heads_kv)), s_inv(normals(head*heads)), mu_same(normals(head*heads)), mu_turn(normals(head*heads)), s_mu_2(1, 0.3f), index(some_rows(tokens, n_rows)),
        positions(tokens, position), dk(k), dv(v), dq(q), ds(s), ds_mu(s_mu), ds_inv(s_inv), dmu_same(mu_same), dmu_turn(mu_turn), ds_mu_2(s_mu_2), d_index(index), d_positions(positions),
        d_part(std::vector<uint16_t>(2*n_rows, 0x7e01)), dk_out(4*n_v), dv_out(4*n_v), dq_out(4*head*heads*tokens), dw(4*head*heads*tokens) {}

    struct ggmlq_cuda_centering arguments(int n_rot, bool neox, float turn) const {
        struct ggmlq_cuda_centering p = {};
        const int64_t row = 4*(head + gap), ne_k[4] = { head, heads_kv, tokens, 1 }, nb_k[4] = { 4, row, row*heads_kv, row*heads_kv*tokens }, ne_q[4] = { head, heads, tokens, 1 },
            nb_q[4] = { 4, row, row*heads, row*heads*tokens }, ne_p[4] = { 1, n_rows, 1, 1 }, nb_p[4] = { 2, 4, 4*n_rows, 4*n_rows }, ne_i[4] = { tokens, 1, 1, 1 }, nb_i[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
        p.k = view(dk.data(), GGMLQ_CUDA_F32, ne_k, nb_k);
        p.q = view(dq.data(), GGMLQ_CUDA_F32, ne_q, nb_q);
        p.part    = view(d_part.data(), GGMLQ_CUDA_F16, ne_p, nb_p);
        p.indices = view(d_index.data(), 0, ne_i, nb_i);
        p.index_bytes = 8;
        p.s = (const float *) ds.data(); p.s_mu = (const float *) ds_mu.data(); p.s_mu_2 = (const float *) ds_mu_2.data();
        p.v = (const float *) dv.data(); p.n_v = n_v; p.v_scale = 1.032f; p.v_bias = 0.25f;
        p.s_inv = (const float *) ds_inv.data(); p.mu_same = (const float *) dmu_same.data(); p.mu_turn = (const float *) dmu_turn.data();
        p.positions = (const int32_t *) d_positions.data(); p.turn = turn; p.n_rot = n_rot; p.neox = neox;
        p.k_out = (float *) (gap ? dk_out : dk).data(); p.v_out = (float *) (gap ? dv_out : dv).data(); p.q_out = (float *) (gap ? dq_out : dq).data(); p.w = (float *) dw.data();
        return p;
    }
};

static int64_t uncentered_tokens;

static void check_centering_case(int64_t head, int64_t heads_kv, int64_t heads, int64_t tokens, int64_t gap, int n_rot, bool neox, int32_t position, float turn) {
    const centering_case c(head, heads_kv, heads, tokens, gap, position);
    struct ggmlq_cuda_centering p = c.arguments(n_rot, neox, turn);
    ok(ggmlq_cuda_center(&p, NULL));
    const std::vector<float> k_out = (gap ? c.dk_out : c.dk).host<float>(), v_out = (gap ? c.dv_out : c.dv).host<float>(), q_out = (gap ? c.dq_out : c.dq).host<float>(), w = c.dw.host<float>();
    const std::vector<uint16_t> part = c.d_part.host<uint16_t>();
    std::vector<uint16_t> wanted_part(part.size(), 0x7e01);
    const int64_t n = head*heads_kv;
    for (int64_t t = 0; t < tokens; ++t) {
        double along = 0, size = 0;
        for (int64_t j = 0; j < n; ++j) {
            const double term = (double) c.s[j]*c.k[(t*heads_kv + j/head)*(head + gap) + j % head]*c.s_mu[j];
            along += term;
            size  += std::fabs(term);
        }
        const bool centered = along > c.s_mu_2[0];
        uncentered_tokens += !centered;
        if (std::fabs(along - c.s_mu_2[0]) < (double) n*U*size) {
            continue; /* either is right */
        }
        if (c.index[t] >= 0 && c.index[t] < c.n_rows) {
            wanted_part[2*c.index[t]] = centered ? 0x3c00 : 0;
        }
        for (int64_t j = 0; j < n; ++j) {
            const float x = c.s[j]*c.k[(t*heads_kv + j/head)*(head + gap) + j % head], wanted = x - c.s_mu[j]*(centered ? 1.0f : 0.0f);
            require(k_out[t*n + j] == wanted, "k of token %lld, value %lld: %g, wanted %g", (long long) t, (long long) j, k_out[t*n + j], wanted);
        }
        for (int64_t i = 0; i < head*heads; ++i) {
            const int64_t h = i/head, j = i % head, at = (t*heads + h)*(head + gap), half = n_rot/2, partner = j >= n_rot ? j : !neox ? (j ^ 1) : j < half ? j + half : j - half;
            const double x = c.q[at + j], y = c.q[at + partner], angle = (double) (turn*(float) position);
            const double turned = j >= n_rot ? x : x*std::cos(angle) + (j < partner ? -y : y)*std::sin(angle), wanted = x*c.mu_same[i] + turned*c.mu_turn[i];
            const double bound = 4*U*(std::fabs(x*c.mu_same[i]) + (std::fabs(x) + std::fabs(y))*std::fabs(c.mu_turn[i])) + 1e-6*(std::fabs(x) + std::fabs(y))*std::fabs(c.mu_turn[i]);
            require(std::fabs(w[t*head*heads + i] - wanted) <= bound, "w of token %lld, value %lld: %g, wanted %g", (long long) t, (long long) i, w[t*head*heads + i], wanted);
            require(q_out[t*head*heads + i] == (float) x*c.s_inv[i], "q of token %lld, value %lld", (long long) t, (long long) i);
        }
    }
    for (size_t i = 0; i < part.size(); ++i) { /* the second of each pair is the gap between rows */
        require(part[i] == wanted_part[i] || (i % 2 == 0 && wanted_part[i] == 0x7e01 && part[i] != 0x7e01 && std::find(c.index.begin(), c.index.end(), (int64_t) i/2) != c.index.end()),
                "part of row %lld: %04x, wanted %04x", (long long) i/2, part[i], wanted_part[i]);
    }
    for (int64_t i = 0; i < c.n_v; ++i) {
        require(v_out[i] == std::fmaf(1.032f, c.v[i], 0.25f), "v, value %lld: %g", (long long) i, v_out[i]);
    }
}

static std::string check_centering() {
    uncentered_tokens = 0;
    const float quarter = -1.57079632679f;
    for (int64_t gap : { 0, 4 }) for (int64_t tokens : { 1, 3, 8, quick ? 20 : 512 }) {
        check_centering_case(128, 8, 32, tokens, gap, 128, true,  1, quarter);
        check_centering_case( 64, 3,  9, tokens, gap,  64, false, 1, quarter);
        check_centering_case( 64, 1,  1, tokens, gap,  32, true,  3, 0.4f);
        check_centering_case(256, 1,  4, tokens, gap, 128, false, 1, quarter);
        check_centering_case(  8, 3,  6, tokens, gap,   8, true,  1, quarter);
    }
    require(uncentered_tokens > 20, "only %lld keys stay uncentered", (long long) uncentered_tokens);

    const centering_case c(64, 2, 4, 3, 0, 1); /* parts alone, and what is refused */
    for (int part = 0; part < 3; ++part) {
        struct ggmlq_cuda_centering p = c.arguments(64, true, quarter);
        p.k.data = part == 0 ? p.k.data : NULL;
        p.v      = part == 1 ? p.v : NULL;
        p.q.data = part == 2 ? p.q.data : NULL;
        const std::vector<float> before[3] = { c.dk.host<float>(), c.dv.host<float>(), c.dq.host<float>() };
        ok(ggmlq_cuda_center(&p, NULL));
        const std::vector<float> after[3] = { c.dk.host<float>(), c.dv.host<float>(), c.dq.host<float>() };
        for (int i = 0; i < 3; ++i) {
            require((before[i] != after[i]) == (i == part), "part %d: input %d %s", part, i, i == part ? "is as it was" : "was written");
        }
    }
    const auto refused = [&](int wanted, const char * what, const std::function<void(struct ggmlq_cuda_centering &)> & spoil) {
        struct ggmlq_cuda_centering p = c.arguments(64, true, quarter);
        spoil(p);
        require(ggmlq_cuda_center_check(&p) == wanted && ggmlq_cuda_center(&p, NULL) == wanted, "%s was taken", what);
    };
    refused(GGMLQ_ERROR_TYPE,   "keys in halves",           [](auto & p) { p.k.type = GGMLQ_CUDA_F16; });
    refused(GGMLQ_ERROR_TYPE,   "floats as part",           [](auto & p) { p.part.type = GGMLQ_CUDA_F32; });
    refused(GGMLQ_ERROR_TYPE,   "indices of 2 bytes",       [](auto & p) { p.index_bytes = 2; });
    refused(GGMLQ_ERROR_SHAPE,  "an index too few",         [](auto & p) { p.indices.ne[0] = 2; });
    refused(GGMLQ_ERROR_SHAPE,  "keys at an odd address",   [](auto & p) { p.k.data = (char *) p.k.data + 4; });
    refused(GGMLQ_ERROR_LENGTH, "a query head of 60",       [](auto & p) { p.q.ne[0] = 60; });
    refused(GGMLQ_ERROR_SHAPE,  "12 values that are turned", [](auto & p) { p.n_rot = 12; });
    refused(GGMLQ_ERROR_SHAPE,  "72 of 64 values turned",   [](auto & p) { p.n_rot = 72; });
    refused(GGMLQ_ERROR_SHAPE,  "6 values",                 [](auto & p) { p.n_v = 6; });
    return "";
}
#endif

static std::string check_attention() {
    static const int types[] = { GGMLQ_TYPE_TQ3_0, GGMLQ_TYPE_PLANAR3, GGMLQ_TYPE_F16, GGMLQ_TYPE_F32, GGMLQ_TYPE_Q8_0, GGMLQ_TYPE_Q4_0 };
    const int T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3, H = GGMLQ_TYPE_F16;
    worst_attention = 0;
    for (int k : types) for (int v : types) for (int layout = 0; layout < 3; ++layout) {
        check_attention_case({ k, v, 128, 128, 70, 3, 4, 2, 1, 1, true, false, 0, 0, layout, layout == 1 });
    }
    for (int64_t head : { 32, 64, 96, 128, 192, 256, 320, 512, 544, 576, 1024 }) for (int64_t n_kv : { 33, 300 }) {
        check_attention_case({ T, T, head, head, n_kv, 2, 4, 1, 1, 1, false, false, 0, 0, 1, false });
        check_attention_case({ T, H, head, head < 1024 ? head + 5 : 999, n_kv, 1, 2, 2, 1, 1, true, true, 0, 0, 1, false });
        if (head % 128 == 0) {
            check_attention_case({ P, P, head, head, n_kv, 1, 6, 2, 1, 1, true, true, 0, 0, 1, true });
        }
    }
    check_attention_case({ T, T, 576, 512, 77, 1, 64, 1, 1, 1, true, false, 0, 0, 0, false });
    check_attention_case({ T, P, 32, 1024, 77, 1, 2, 1, 1, 1, true, false, 0, 0, 0, false });
    check_attention_case({ H, T, 7, 32, 77, 1, 2, 1, 1, 1, true, false, 0, 0, 1, false });
    for (int64_t n_kv : { 0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 129, 255, 257, 1000 }) {
        check_attention_case({ T, P, 128, 128, n_kv, 1, 8, 2, 1, 1, false, false, 0, 0, 1, false });
        check_attention_case({ P, T, 128, 128, n_kv, 2, 4, 4, 1, 1, n_kv > 2, true, 0, 0, 1, n_kv > 2 });
    }
    for (int64_t group : { 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64 }) {
        check_attention_case({ T, T, 64, 64, 150, 1, 2*group, 2, 1, 1, true, false, 0, 0, 1, true });
        check_attention_case({ P, P, 128, 128, 90, 2, group, 1, 1, 1, true, false, 0, 8, 1, false });
    }
    for (int64_t queries : { 1, 2, 5, 8, 16, 17, 33, 130 }) {
        check_attention_case({ T, T, 128, 128, 200, queries, 4, 2, 1, 1, true, false, 0, 0, 1, true });
    }
    for (float cap : { 0.0f, 5.0f, 50.0f }) for (float alibi : { 0.0f, 8.0f }) for (int sinks = 0; sinks < 2; ++sinks) {
        check_attention_case({ T, P, 128, 128, 100, 3, 6, 2, 1, 1, true, sinks == 1, cap, alibi, 1, true });
        check_attention_case({ P, T, 128, 128, 100, 3, 12, 3, 4, 2, true, sinks == 1, cap, alibi, 2, true });
    }
    for (int64_t heads_kv : { 1, 10, 70 }) { /* Metal: six, six and three parts */
        check_attention_case({ T, T, 32, 32, 1300, 1, 2*heads_kv, heads_kv, 1, 1, true, heads_kv != 10, heads_kv == 1 ? 5.0f : 0, heads_kv == 10 ? 8.0f : 0, 1, true, heads_kv == 70 ? 700 : 1250 });
    }
    check_attention_case({ P, P, 128, 128, 600, 2, 4, 2, 1, 1, true, true, 0, 0, 1, true, 520 });
    check_attention_case({ T, T, 128, 128, 65, 2, 4, 2, 6, 3, false, false, 0, 0, 0, false });
    check_attention_case({ P, P, 128, 128, 65, 2, 4, 2, 5, 1, false, false, 0, 0, 0, false });
    for (int k : types) for (int layout = 0; layout < 3; ++layout) { /* centered keys */
        check_attention_case({ k, T, 128, 128, 70, 3, 4, 2, 2, 1, true, false, 0, 0, layout, layout == 1, 0, 128 });
    }
    for (int64_t head : { 64, 96, 256, 512, 544, 1024 }) for (int64_t term : { head, head/2 + 2, (int64_t) 2 }) {
        check_attention_case({ T, H, head, 40, 130, 2, 4, 2, 4, 2, true, true, term == 2 ? 5.0f : 0, 0, term == 2, false, 0, term });
    }
    for (int64_t n_kv : { 1, 31, 33, 300 }) {
        check_attention_case({ P, P, 128, 128, n_kv, 2, 17, 1, 1, 1, n_kv > 2, n_kv > 2, 0, n_kv > 2 ? 8.0f : 0, 1, n_kv > 2, 0, 96 });
    }
    check_attention_case({ P, T, 128, 128, 600, 70, 4, 2, 3, 3, true, true, 0, 0, 0, true, 520, 64 });
    if (!quick) {
        check_attention_case({ T, T, 128, 128, 20000, 1, 8, 1, 1, 1, true, false, 0, 0, 1, true });
        check_attention_case({ P, P, 128, 128, 20001, 2, 8, 2, 1, 1, false, true, 0, 0, 1, false });
        check_attention_case({ T, P, 128, 128, 600, 512, 4, 1, 1, 1, true, false, 0, 0, 1, false });
        check_attention_case({ T, T, 64, 64, 300, 2048, 2, 2, 1, 1, true, false, 0, 0, 1, false });
    }
    char note[64];
    snprintf(note, sizeof(note), "largest error %.4f of its bound", worst_attention);
    return note;
}

/* --- errors ----------------------------------------------------------------------------------------------------- */

static std::string check_errors() {
    const int T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3;
    device_bytes memory(std::vector<uint8_t>(65536, 0));
    struct ggmlq_cuda_view rows, values, other, index;
    spread(&rows, memory.data(), T, 128, 4, 2, 1, 0);
    spread(&values, memory.data(), GGMLQ_CUDA_F32, 128, 3, 2, 1, 0);
    spread(&index, memory.data(), GGMLQ_CUDA_F32, 3, 1, 1, 1, 0);
    const auto expect = [](int found, int wanted, const char * what) { require(found == wanted, "%s: %d, wanted %d", what, found, wanted); };
    const auto changed = [](struct ggmlq_cuda_view v, const std::function<void(struct ggmlq_cuda_view &)> & change) { change(v); return v; };

    other = changed(rows, [](auto & v) { v.type = 8; });
    expect(ggmlq_cuda_set_rows(&other, &values, &index, 8, NULL), GGMLQ_ERROR_TYPE, "rows of another type");
    other = changed(values, [](auto & v) { v.type = GGMLQ_CUDA_BF16; });
    expect(ggmlq_cuda_set_rows(&rows, &other, &index, 8, NULL), GGMLQ_ERROR_TYPE, "values of bf16");
    expect(ggmlq_cuda_set_rows(&rows, &values, &index, 2, NULL), GGMLQ_ERROR_TYPE, "2-byte indices");
    other = changed(rows, [](auto & v) { v.ne[0] = 100; });
    expect(ggmlq_cuda_set_rows(&other, &values, &index, 8, NULL), GGMLQ_ERROR_LENGTH, "100 values");
    other = changed(values, [](auto & v) { v.ne[0] = -32; });
    expect(ggmlq_cuda_set_rows(&rows, &other, &index, 8, NULL), GGMLQ_ERROR_LENGTH, "-32 values");
    other = changed(values, [](auto & v) { v.ne[0] = 64; });
    expect(ggmlq_cuda_set_rows(&rows, &other, &index, 8, NULL), GGMLQ_ERROR_SHAPE, "row lengths differ");
    other = changed(values, [](auto & v) { v.nb[0] = 8; });
    expect(ggmlq_cuda_set_rows(&rows, &other, &index, 8, NULL), GGMLQ_ERROR_SHAPE, "values not adjacent");
    other = changed(index, [](auto & v) { v.ne[0] = 2; });
    expect(ggmlq_cuda_set_rows(&rows, &values, &other, 8, NULL), GGMLQ_ERROR_SHAPE, "too few indices");
    other = changed(index, [](auto & v) { v.ne[1] = 3; });
    expect(ggmlq_cuda_set_rows(&rows, &values, &other, 8, NULL), GGMLQ_ERROR_SHAPE, "indices don't repeat");
    other = changed(index, [](auto & v) { v.ne[1] = 0; });
    expect(ggmlq_cuda_set_rows(&rows, &values, &other, 8, NULL), GGMLQ_ERROR_SHAPE, "no indices");
#ifndef GGMLQ_CHECK_METAL
    {
        const struct ggmlq_cuda_view two_rows[2] = { rows, changed(rows, [](auto & v) { v.type = GGMLQ_TYPE_PLANAR3; }) }, two_values[2] = { values, values },
                                     two_indices[2] = { index, index }, bad_values[2] = { values, changed(values, [](auto & v) { v.nb[0] = 8; }) };
        expect(ggmlq_cuda_set_rows_pair(two_rows, two_values, two_indices, 8, NULL), GGMLQ_ERROR_TYPE, "a pair of two types");
        expect(ggmlq_cuda_set_rows_pair(two_rows, bad_values, two_indices, 8, NULL), GGMLQ_ERROR_SHAPE, "a pair: values not adjacent");
        const int turned[3] = { 64, 32, 128 };
        const struct ggmlq_cuda_view planar3[2] = { two_rows[1], two_rows[1] };
        expect(ggmlq_cuda_set_rows_turned(two_rows, two_values, two_indices, 8, NULL, NULL, turned, NULL), GGMLQ_ERROR_TYPE, "turned rows of tq3_0");
        expect(ggmlq_cuda_set_rows_turned(planar3, two_values, two_indices, 8, NULL, NULL, turned, NULL), GGMLQ_ERROR_LENGTH, "turned by 32");
        expect(ggmlq_cuda_set_rows_turned(planar3, two_values, two_indices, 8, &rows, &values, turned, NULL), GGMLQ_ERROR_LENGTH, "turned by 32");
    }
#endif
    expect(ggmlq_cuda_get_rows(&values, &rows, &index, 8, NULL), GGMLQ_ERROR_SHAPE, "get_rows: indices don't repeat");
    other = changed(rows, [](auto & v) { v.ne[1] = (int64_t) 1 << 40; });
    expect(ggmlq_cuda_copy(&values, &other, NULL), GGMLQ_ERROR_SHAPE, "an axis beyond 2^31");
    expect(ggmlq_cuda_copy(&rows, &rows, NULL), GGMLQ_ERROR_TYPE, "copy between encoded");
    expect(ggmlq_cuda_copy(&values, &values, NULL), GGMLQ_ERROR_TYPE, "copy between floats");
    expect(ggmlq_cuda_copy(&rows, &values, NULL), GGMLQ_ERROR_SHAPE, "copy of fewer values");
    expect(ggmlq_cuda_decode_rotated(&rows, &values, NULL), GGMLQ_ERROR_TYPE, "decode_rotated to encoded");
    expect(ggmlq_cuda_rotate(T, &rows, &values, NULL), GGMLQ_ERROR_TYPE, "rotate encoded");
    expect(ggmlq_cuda_rotate(0, &values, &values, NULL), GGMLQ_ERROR_TYPE, "rotate as f32");
    other = changed(values, [](auto & v) { v.ne[0] = 96; });
    expect(ggmlq_cuda_rotate(P, &other, &other, NULL), GGMLQ_ERROR_LENGTH, "rotate 96 as planar3");
    expect(ggmlq_cuda_rotate(T, &other, &values, NULL), GGMLQ_ERROR_SHAPE, "rotate shapes");
    expect((int) ggmlq_cuda_mul_mat_workspace_bytes(P, &other), GGMLQ_ERROR_LENGTH, "mul_mat 96 as planar3");
    expect((int) ggmlq_cuda_mul_mat_workspace_bytes(1, &values), GGMLQ_ERROR_TYPE, "mul_mat of f16");
    expect(ggmlq_cuda_mul_mat(&values, &rows, &values, memory.data(), NULL), GGMLQ_ERROR_SHAPE, "mul_mat out shape");

    /* Empty inputs. */
    for (int axis = 0; axis < 4; ++axis) {
        struct ggmlq_cuda_view r = rows, v = values, i = index;
        r.ne[axis] = v.ne[axis] = 0;
        i.ne[0] = v.ne[1];
        i.ne[1] = v.ne[2];
        i.ne[2] = v.ne[3];
        expect(ggmlq_cuda_set_rows(&r, &v, &i, 8, NULL), GGMLQ_OK, "empty set_rows");
        expect(ggmlq_cuda_get_rows(&v, &r, &i, 8, NULL), GGMLQ_OK, "empty get_rows");
        expect(ggmlq_cuda_copy(&v, &r, NULL), GGMLQ_OK, "empty copy");
        expect(ggmlq_cuda_rotate(T, &v, &v, NULL), GGMLQ_OK, "empty rotate");
        if (axis > 0) {
            struct ggmlq_cuda_view out = v;
            out.ne[0] = r.ne[1];
            expect(ggmlq_cuda_mul_mat(&out, &r, &v, NULL, NULL), GGMLQ_OK, "empty mul_mat");
        }
    }

    struct ggmlq_attend_params p = {};
    p.type_k = T; p.type_v = P; p.head_size_k = p.head_size_v = 128; p.n_heads = p.n_heads_kv = p.n_seqs = p.n_seqs_kv = 1; p.n_kv = 10;
    expect(ggmlq_cuda_attend(&p, NULL, NULL), GGMLQ_OK, "attend without queries");
    p.n_queries = 1;
    const auto attend = [&](const std::function<void(struct ggmlq_attend_params &)> & change) { struct ggmlq_attend_params c = p; change(c); return ggmlq_cuda_attend(&c, NULL, NULL); };
    expect(attend([](auto & c) { c.type_k = 92; }), GGMLQ_ERROR_TYPE, "attend type");
    expect(attend([](auto & c) { c.head_size_v = 64; }), GGMLQ_ERROR_LENGTH, "attend head 64 as planar3");
    expect(attend([](auto & c) { c.head_size_k = 0; }), GGMLQ_ERROR_LENGTH, "attend head 0");
    expect(attend([](auto & c) { c.head_size_k = 2048; }), GGMLQ_ERROR_SHAPE, "attend head 2048");
    expect(attend([](auto & c) { c.n_heads = 3; c.n_heads_kv = 2; }), GGMLQ_ERROR_SHAPE, "attend heads");
    expect(attend([](auto & c) { c.n_seqs_kv = 0; }), GGMLQ_ERROR_SHAPE, "attend sequences");
    expect(attend([](auto & c) { c.mask = (const uint16_t *) 16; }), GGMLQ_ERROR_SHAPE, "attend mask periods");
    expect(attend([](auto & c) { c.n_pairs = 65; }), GGMLQ_ERROR_SHAPE, "attend with more pairs than the head has");
    expect(attend([](auto & c) { c.n_pairs = -1; }), GGMLQ_ERROR_SHAPE, "attend with fewer pairs than none");
    expect(attend([](auto & c) { c.n_queries = (int64_t) 1 << 32; }), GGMLQ_ERROR_SHAPE, "attend too many rows");

    /* What the driver said: here, that there isn't as much memory. */
    void * none = NULL;
    const cudaError_t error = cudaMalloc(&none, (size_t) 1 << 50);
    struct ggmlq_cuda_view in_place = values;
    expect(ggmlq_cuda_rotate(T, &in_place, &values, NULL), GGMLQ_ERROR_DEVICE, "an error of the driver");
    require(error != cudaSuccess && strcmp(ggmlq_cuda_error_text(GGMLQ_ERROR_DEVICE), cudaGetErrorString(error)) == 0, "%s", ggmlq_cuda_error_text(GGMLQ_ERROR_DEVICE));
    require(strcmp(ggmlq_cuda_error_text(GGMLQ_ERROR_SHAPE), ggmlq_error_text(GGMLQ_ERROR_SHAPE)) == 0, "text of another error");
    expect(ggmlq_cuda_rotate(T, &in_place, &values, NULL), GGMLQ_OK, "after it");
    return "";
}

/* --- times ------------------------------------------------------------------------------------------------------ */

/* Median time in microseconds of one of `n` calls that are captured into a graph and replayed. */
static double time_calls(int n, const std::function<void(int, cudaStream_t)> & call) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    cudaEvent_t start, stop;
    cuda(cudaStreamCreate(&stream));
    cuda(cudaEventCreate(&start));
    cuda(cudaEventCreate(&stop));
    call(0, stream); /* loads the kernel */
    cuda(cudaStreamSynchronize(stream));
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; ++i) {
        call(i, stream);
    }
    cuda(cudaStreamEndCapture(stream, &graph));
    cuda(cudaGraphInstantiate(&replay, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < 60; ++i) {
        float ms;
        cuda(cudaEventRecord(start, stream));
        cuda(cudaGraphLaunch(replay, stream));
        cuda(cudaEventRecord(stop, stream));
        cuda(cudaEventSynchronize(stop));
        cuda(cudaEventElapsedTime(&ms, start, stop));
        if (i >= 10) {
            times.push_back(ms);
        }
    }
    std::sort(times.begin(), times.end());
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    cudaStreamDestroy(stream);
    return 1000.0*times[times.size()/2]/n;
}

#ifndef GGMLQ_CHECK_METAL
static __global__ void do_nothing(int) {}

/* Reads and writes what set_rows of tq3_0 does, 32 values and 14 bytes a thread, and computes nothing. */
static __global__ void only_move(const float4 * values, const int64_t * index, uint8_t * rows, int64_t bytes, int blocks) {
    const int block = (int) (blockIdx.x*128 + threadIdx.x);
    const int64_t row = index[block/blocks];
    float sum = 0.0f;
    for (int i = 0; i < 8; ++i) {
        const float4 f = values[8*(int64_t) block + i];
        sum += f.x + f.y + f.z + f.w;
    }
    uint16_t * out = (uint16_t *) (rows + row*bytes + 14*(block % blocks));
    for (int i = 0; i < 7; ++i) {
        out[i] = (uint16_t) (ggmlq_float_bits(sum) >> 2*i);
    }
}

/* New tokens of 8 KV heads and 32 heads of 128, all turned by RoPE and for planar3 as llama.cpp does it. */
static void bench_roped() {
    enum { LAYERS = 32, MOST = 24, HEAD = 128, N = 8*HEAD, Q = 32*HEAD };
    device_bytes kv(normals(2*MOST*N)), q(normals(MOST*Q)), q_out(MOST*Q*4);
    std::vector<int32_t> positions(MOST);
    std::vector<int64_t> index(MOST);
    for (int i = 0; i < MOST; ++i) {
        positions[i] = 1000 + i;
        index[i]     = i;
    }
    device_bytes d_positions(positions), d_index(index);
    for (int type : CACHE_TYPES) for (int64_t tokens : { 1, 8, (int) MOST }) {
        device_bytes rows(2*LAYERS*MOST*row_bytes(type, N));
        struct ggmlq_cuda_roped_rows p = {};
        p.index_bytes = 8;
        p.head_size   = HEAD;
        p.k_rope      = p.q_rope = { (const int32_t *) d_positions.data(), NULL, HEAD, 0, powf(500000.0f, -2.0f/HEAD), 1.0f, 1.0f };
        p.q           = (const float *) q.data();
        p.q_out       = (float *) q_out.data();
        p.q_ne[0] = HEAD; p.q_ne[1] = Q/HEAD; p.q_ne[2] = tokens;
        const double us = time_calls(LAYERS, [&](int layer, cudaStream_t stream) {
            for (int i = 0; i < 2; ++i) {
                const int64_t ne[4] = { tokens, 1, 1, 1 }, nb[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
                spread(&p.rows[i], rows.data() + (2*layer + i)*MOST*row_bytes(type, N), type, N, MOST, 1, 1, 0);
                spread(&p.values[i], kv.data() + i*MOST*N*4, GGMLQ_CUDA_F32, N, tokens, 1, 1, 0);
                p.indices[i] = view(d_index.data(), 0, ne, nb);
            }
            for (int i = 0; i < 3 && type == GGMLQ_TYPE_PLANAR3; ++i) {
                p.turned[i] = i == 1 ? 64 : 128;
            }
            if (ggmlq_cuda_store_roped(&p, stream)) {
                printf("store_roped: %s\n", ggmlq_cuda_error_text(GGMLQ_ERROR_DEVICE));
                exit(1);
            }
        });
        printf("store_roped %-8s %2lld tokens of 8 KV heads and 32 heads of 128 %9.2f us\n", type_name(type), (long long) tokens, us);
    }
}

/* Keys of 1024 values that are rounded for queries, 32 layers' feedback; and with V and the queries of four times as many heads, all turned as llama.cpp does it. */
static void bench_rounded() {
    enum { LAYERS = 32, MOST = 512 };
    const int64_t n = 1024;
    device_bytes x(normals(MOST*n));
    std::vector<int64_t> index(MOST);
    for (int64_t i = 0; i < MOST; ++i) {
        index[i] = i;
    }
    device_bytes d_index(index), q(4*MOST*n*4);
    for (int type : CACHE_TYPES) for (int64_t length : { 64, 128, 256 }) for (int64_t tokens : { 1, 8, 64, (int) MOST }) {
        if (length % ggmlq_type_info_get(type)->block_length != 0) {
            continue;
        }
        const int64_t n_feedback = ggmlq_feedback_values(length), heads = n/length;
        std::vector<uint16_t> f(LAYERS*heads*n_feedback);
        for (uint16_t & h : f) {
            h = ggmlq_half_from_float(0.2f*random_normal());
        }
        device_bytes rows(MOST*row_bytes(type, n)), v_rows(MOST*row_bytes(type, n)), feedback(f);
        const auto views = [&](int layer) {
            struct ggmlq_cuda_new_rows p = {};
            spread(&p.k_rows, rows.data(), type, n, MOST, 1, 1, 0);
            spread(&p.v_rows, v_rows.data(), type, n, MOST, 1, 1, 0);
            spread(&p.k, x.data(), GGMLQ_CUDA_F32, n, tokens, 1, 1, 0);
            p.v = p.k;
            spread(&p.feedback, feedback.data() + layer*2*heads*n_feedback, GGMLQ_CUDA_F16, n_feedback, heads, 1, 1, 0);
            const int64_t ne[4] = { tokens, 1, 1, 1 }, nb[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
            p.k_indices = p.v_indices = view(d_index.data(), 0, ne, nb);
            p.index_bytes = 8;
            p.k_turned = p.q_turned = (int) length;
            p.v_turned = type == GGMLQ_TYPE_TQ3_0 ? 0 : 128;
            p.q        = (const float *) q.data();
            p.q_out    = (float *) q.data();
            p.n_q      = 4*tokens*n;
            return p;
        };
        const auto done = [](const char * what, int error) {
            if (error) {
                printf("%s: %s\n", what, ggmlq_cuda_error_text(error));
                exit(1);
            }
        };
        const double us = time_calls(LAYERS, [&](int layer, cudaStream_t stream) {
            const struct ggmlq_cuda_new_rows p = views(layer);
            done("set_rows_for_queries", ggmlq_cuda_set_rows_for_queries(&p.k_rows, &p.k, &p.k_indices, 8, &p.feedback, stream));
        });
        printf("set_rows_for_queries %-8s %2lld heads of %3lld, %3lld tokens    %9.2f us", type_name(type), (long long) (n/length), (long long) length, (long long) tokens, us);
        const double all_us = time_calls(LAYERS, [&](int layer, cudaStream_t stream) {
            const struct ggmlq_cuda_new_rows p = views(layer);
            done("store_new", ggmlq_cuda_store_new(&p, stream));
        });
        printf(", turned, with V and queries (store_new) %9.2f us\n", all_us);
    }
}
#endif

static void bench() {
    const int64_t copy_bytes = (int64_t) 1 << 29;
    double copy_rate;
    {
        device_bytes a(copy_bytes), b(copy_bytes);
        cuda(cudaMemset(a.data(), 0x5a, copy_bytes));
        const double us = time_calls(4, [&](int, cudaStream_t s) { cuda(cudaMemcpyAsync(b.data(), a.data(), copy_bytes, cudaMemcpyDeviceToDevice, s)); });
        copy_rate = 2.0*copy_bytes/us/1000;
        printf("copy of 512 MiB                                %9.1f GB/s (read + written)\n", copy_rate);
    }
    /* 32 sources, 64 MiB: more than the L2 holds. */
    enum { SETS = 32, TOKENS = 512 };
    const int64_t n = 1024;
    device_bytes x(normals(SETS*TOKENS*n)), x16(SETS*TOKENS*n*2), copied(SETS*TOKENS*n*4);
    cuda(cudaMemset(x16.data(), 0x3a, x16.n));
#ifndef GGMLQ_CHECK_METAL
    for (int64_t tokens : { 1, 8, 64, 512 }) {
        const centering_case c(128, 8, 32, tokens, 4, 1);
        const struct ggmlq_cuda_centering p = c.arguments(128, true, -1.57079632679f);
        const double us = time_calls(SETS, [&](int, cudaStream_t stream) {
            if (ggmlq_cuda_center(&p, stream)) {
                printf("center: %s\n", ggmlq_cuda_error_text(GGMLQ_ERROR_DEVICE));
                exit(1);
            }
        });
        printf("center, %3lld tokens of 8 KV heads and 32 heads of 128 %9.2f us\n", (long long) tokens, us);
    }
#endif
    for (int type : CACHE_TYPES) {
        const int64_t bytes = row_bytes(type, n), n_rows = SETS*TOKENS;
        device_bytes rows(n_rows*bytes);
        std::vector<int64_t> index(n_rows);
        for (int64_t i = 0; i < n_rows; ++i) {
            index[i] = i;
        }
        device_bytes d_index(index);
        for (int source : { GGMLQ_CUDA_F32, GGMLQ_CUDA_F16 }) for (int64_t tokens : { (int64_t) TOKENS, (int64_t) 1 }) {
            const auto call = [&](int set, cudaStream_t stream) {
                struct ggmlq_cuda_view to, from, at;
                spread(&to, rows.data(), type, n, n_rows, 1, 1, 0);
                spread(&from, (source == GGMLQ_CUDA_F32 ? x : x16).data() + set*TOKENS*row_bytes(source, n), source, n, tokens, 1, 1, 0);
                const int64_t ne[4] = { tokens, 1, 1, 1 }, nb[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
                at = view(d_index.data() + 8*set*TOKENS, 0, ne, nb);
                if (ggmlq_cuda_set_rows(&to, &from, &at, 8, stream)) {
                    printf("set_rows: %s\n", ggmlq_cuda_error_text(GGMLQ_ERROR_DEVICE));
                    exit(1);
                }
            };
            const double us = time_calls(SETS, call), rate = (double) tokens*(row_bytes(source, n) + bytes)/us/1000;
#ifndef GGMLQ_CHECK_METAL
            const double pair_us = time_calls(SETS, [&](int set, cudaStream_t stream) {
                struct ggmlq_cuda_view to[2], from[2], at[2];
                for (int i = 0; i < 2; ++i) {
                    const int64_t there = (set + i) % SETS*TOKENS, ne[4] = { tokens, 1, 1, 1 }, nb[4] = { 8, 8*tokens, 8*tokens, 8*tokens };
                    spread(&to[i], rows.data(), type, n, n_rows, 1, 1, 0);
                    spread(&from[i], (source == GGMLQ_CUDA_F32 ? x : x16).data() + there*row_bytes(source, n), source, n, tokens, 1, 1, 0);
                    at[i] = view(d_index.data() + 8*there, 0, ne, nb);
                }
                if (ggmlq_cuda_set_rows_pair(to, from, at, 8, stream)) {
                    printf("set_rows_pair: %s\n", ggmlq_cuda_error_text(GGMLQ_ERROR_DEVICE));
                    exit(1);
                }
            });
            printf("twice set_rows %-8s from %s, %3lld tokens in one launch %9.2f us\n", type_name(type), type_name(source), (long long) tokens, pair_us);
#endif
            /* Launched the same way: a copy that reads and writes as many bytes together. */
            const int64_t half = tokens*(row_bytes(source, n) + bytes)/2;
            const double copy_us = time_calls(SETS, [&](int set, cudaStream_t stream) {
                cuda(cudaMemcpyAsync(copied.data() + set*TOKENS*n*4, x.data() + set*TOKENS*n*4, half, cudaMemcpyDeviceToDevice, stream));
            });
            printf("set_rows %-8s from %s, %3lld tokens of 1024  %9.2f us %9.1f GB/s, %5.1f %% of the copy rate; a copy of as many bytes %6.2f us, %5.1f %% of its rate\n", type_name(type), type_name(source),
                   (long long) tokens, us, rate, 100*rate/copy_rate, copy_us, 100*copy_us/us);
        }
#ifndef GGMLQ_CHECK_METAL
        if (type == GGMLQ_TYPE_TQ3_0) {
            const double nothing = time_calls(SETS, [&](int, cudaStream_t stream) { do_nothing<<<128, 128, 0, stream>>>(0); });
            const double moving  = time_calls(SETS, [&](int set, cudaStream_t stream) {
                only_move<<<TOKENS*n/32/128, 128, 0, stream>>>((const float4 *) (x.data() + set*TOKENS*n*4), (const int64_t *) d_index.data() + set*TOKENS, rows.data(), bytes, (int) (n/32));
            });
            printf("the floor of a kernel: launched %.2f us, and with the loads and stores of 512 tokens %.2f us\n", nothing, moving);
        }
#endif
        device_bytes values(TOKENS*n*4);
        const double us = time_calls(SETS, [&](int set, cudaStream_t stream) {
            struct ggmlq_cuda_view to, from, at;
            spread(&to, values.data(), GGMLQ_CUDA_F32, n, TOKENS, 1, 1, 0);
            spread(&from, rows.data(), type, n, n_rows, 1, 1, 0);
            const int64_t ne[4] = { TOKENS, 1, 1, 1 }, nb[4] = { 8, 8*TOKENS, 8*TOKENS, 8*TOKENS };
            at = view(d_index.data() + 8*set*TOKENS, 0, ne, nb);
            ggmlq_cuda_get_rows(&to, &from, &at, 8, stream);
        });
        printf("get_rows %-8s to f32, 512 rows of 1024         %9.2f us %9.1f GB/s\n", type_name(type), us, TOKENS*(4*n + bytes)/us/1000);

        /* K Q^T of 8 KV heads of 128 values, 4 query heads each. */
        for (int64_t columns : { 1, 8, 512 }) {
            device_bytes q(normals(128*columns*32)), out(16384*columns*32*4);
            struct ggmlq_cuda_view k, xq, o;
            const int64_t ne[4] = { 128, 16384, 8, 1 }, nb[4] = { row_bytes(type, 1280) - row_bytes(type, 1152), row_bytes(type, 1024), row_bytes(type, 128), 16384*row_bytes(type, 1024) };
            k = view(rows.data(), type, ne, nb);
            spread(&xq, q.data(), GGMLQ_CUDA_F32, 128, columns, 32, 1, 0);
            spread(&o, out.data(), GGMLQ_CUDA_F32, 16384, columns, 32, 1, 0);
            device_bytes workspace(ggmlq_cuda_mul_mat_workspace_bytes(type, &xq));
            const double time = time_calls(4, [&](int, cudaStream_t stream) { ggmlq_cuda_mul_mat(&o, &k, &xq, workspace.data(), stream); });
            printf("mul_mat %-8s 16384 rows, 8 x 4 heads of 128, %3lld columns %9.1f us\n", type_name(type), (long long) columns, time);
        }
        for (int64_t group : { 1, 4, 8 }) for (int64_t queries : { 1, 512 }) for (int64_t n_kv : { 4096, 16384 }) {
            if (queries > 1 && (group != 4 || n_kv > 4096)) {
                continue;
            }
            device_bytes q(normals(128*8*group*queries)), out(128*8*group*queries*4);
            struct ggmlq_attend_params p = {};
            p.type_k = p.type_v = type; p.head_size_k = p.head_size_v = 128; p.n_kv = n_kv; p.n_queries = queries; p.n_heads = 8*group; p.n_heads_kv = 8; p.n_seqs = p.n_seqs_kv = 1;
            p.scale = 0.088f;
            p.q = (const float *) q.data(); p.k = p.v = rows.data(); p.out = (float *) out.data();
            p.q_stride[0] = 512*8*group; p.q_stride[1] = 512; p.out_stride[0] = 512*8*group; p.out_stride[1] = 512;
            p.k_stride[0] = p.v_stride[0] = row_bytes(type, 1024); p.k_stride[1] = p.v_stride[1] = row_bytes(type, 128);
            device_bytes workspace(ggmlq_cuda_attend_workspace_bytes(&p));
            const double time = time_calls(4, [&](int, cudaStream_t stream) { ggmlq_cuda_attend(&p, workspace.data(), stream); });
            printf("attend (%s) %-8s head 128, 8 KV heads, GQA %lld, %3lld queries, kv %5lld %9.1f us\n", ggmlq_cuda_attend_kernel(&p), type_name(type), (long long) group, (long long) queries, (long long) n_kv, time);
        }
    }
}

/* --- sparse attention ------------------------------------------------------------------------------------------- */

struct selected_case {
    int     type_k, type_v;
    int64_t head_k, head_v;
    bool    part;                    /* V is the first part of K */
    int64_t n_kv, most, visible, n_queries, heads, seqs;
};

/* Against attention over all rows with the same mask, which check_attention has measured. What is hidden holds NaN. */
static void check_selected_case(const struct selected_case & c) {
    struct ggmlq_attend_params p = {};
    p.type_k = c.type_k; p.type_v = c.type_v;
    p.head_size_k = c.head_k; p.head_size_v = c.head_v;
    p.n_kv = c.n_kv; p.n_queries = c.n_queries; p.n_heads = c.heads; p.n_heads_kv = 1; p.n_seqs = p.n_seqs_kv = c.seqs;
    p.scale = 1.0f/sqrtf((float) c.head_k);
    p.mask_heads = 1; p.mask_seqs = c.seqs;
    const int64_t mask_row = c.n_kv + 1;
    p.mask_stride[0] = 2*mask_row; p.mask_stride[1] = p.mask_stride[2] = 2*mask_row*c.n_queries;
    std::vector<uint16_t> mask(mask_row*c.n_queries*c.seqs, 0xfc00);
    std::vector<bool> seen(c.n_kv*c.seqs, false);
    for (int64_t s = 0; s < c.seqs; ++s) for (int64_t iq = 0; iq < c.n_queries; ++iq) {
        const int64_t wanted = iq == 1 ? c.visible/2 : c.visible; /* the last column is among them */
        for (int64_t n = 0; n < wanted;) {
            const int64_t t = n == 0 ? c.n_kv - 1 : random_below(c.n_kv);
            uint16_t & m = mask[(s*c.n_queries + iq)*mask_row + t];
            if (m == 0xfc00) {
                m = ggmlq_half_from_float(n % 3 ? 0.0f : -1.0f);
                seen[s*c.n_kv + t] = true;
                ++n;
            }
        }
    }
    std::vector<uint8_t> bytes[2];
    int64_t stride[2];
    for (int i = 0; i < 2; ++i) {
        const int     type = i ? c.type_v : c.type_k;
        const int64_t n    = i ? c.head_v : c.head_k, row = row_bytes(type, n);
        stride[i] = row + 2;
        bytes[i].assign(stride[i]*c.n_kv*c.seqs, 0xff);
        std::vector<float> values(n);
        for (int64_t t = 0; t < c.n_kv*c.seqs; ++t) {
            if (seen[t]) {
                make_rows(type, n, &bytes[i][t*stride[i]], values.data());
            } else {
                poison_row(type, n, &bytes[i][t*stride[i]]);
            }
        }
    }
    std::vector<float> q = normals(c.head_k*c.n_queries*c.heads*c.seqs), sinks = normals(c.heads);
    const int64_t n_out = c.head_v*c.heads*c.n_queries*c.seqs;
    device_bytes dq(q), dk(bytes[0]), dv(bytes[1]), d_mask(mask), d_sinks(sinks), d_out(4*n_out);
    p.q = (const float *) dq.data(); p.k = dk.data(); p.v = c.part ? dk.data() : dv.data(); p.out = (float *) d_out.data();
    p.q_stride[0] = 4*c.head_k; p.q_stride[1] = p.q_stride[0]*c.n_queries; p.q_stride[2] = p.q_stride[1]*c.heads;
    p.out_stride[1] = 4*c.head_v; p.out_stride[0] = p.out_stride[1]*c.heads; p.out_stride[2] = p.out_stride[0]*c.n_queries;
    for (int i = 0; i < 3; ++i) {
        p.k_stride[i] = i ? stride[0]*c.n_kv : stride[0];
        p.v_stride[i] = c.part ? p.k_stride[i] : i ? stride[1]*c.n_kv : stride[1];
    }
    p.mask = (const uint16_t *) d_mask.data(); p.sinks = (const float *) d_sinks.data();

    char text[256];
    const char * kernel = ggmlq_cuda_attend_selected_kernel(&p, c.most);
    snprintf(text, sizeof(text), "%s: K %s %lld, V %s %lld, %lld of at most %lld of %lld rows, %lld queries, %lld heads, %lld sequences", kernel ? kernel : "none", type_name(c.type_k), (long long) c.head_k,
             type_name(c.type_v), (long long) c.head_v, (long long) c.visible, (long long) c.most, (long long) c.n_kv, (long long) c.n_queries, (long long) c.heads, (long long) c.seqs);
    const int64_t dense_bytes = ggmlq_cuda_attend_workspace_bytes(&p), sparse_bytes = ggmlq_cuda_attend_selected_workspace_bytes(&p, c.most);
    require(dense_bytes >= 0 && sparse_bytes > 0, "refused: %s", text);
    if (dense_bytes < 0 || sparse_bytes < 0) {
        return;
    }
    device_bytes dense(std::vector<uint8_t>(dense_bytes, 0xff)), sparse(std::vector<uint8_t>(sparse_bytes, 0xff));
    ok(ggmlq_cuda_attend(&p, dense.data(), NULL));
    const std::vector<float> wanted = d_out.host<float>();
    cuda(cudaMemset(d_out.data(), 0xff, 4*n_out));
    ok(ggmlq_cuda_attend_selected(&p, c.most, sparse.data(), NULL));
    const std::vector<float> found = d_out.host<float>();
    cuda(cudaMemset(sparse.data(), 0x11, sparse_bytes));
    ok(ggmlq_cuda_attend_selected(&p, c.most, sparse.data(), NULL));
    require(memcmp(d_out.host<float>().data(), found.data(), 4*n_out) == 0, "not the same twice: %s", text);
    double square = 0, error = 0;
    bool finite = true;
    for (int64_t i = 0; i < n_out; ++i) {
        finite = finite && std::isfinite(found[i]) && std::isfinite(wanted[i]);
        square += (double) wanted[i]*wanted[i];
        error  += ((double) found[i] - wanted[i])*((double) found[i] - wanted[i]);
    }
    /* Weights are rounded to halves in both, but the two see different maxima on their way: 2^-11 each. Where rows lie such that only the gathered ones
     * fit the fast kernel, that one alone also rounds queries to 8 bits. */
    const bool same_kernel = strcmp(kernel, ggmlq_cuda_attend_kernel(&p)) == 0;
    require(finite && error <= square*(same_kernel ? 1e-6 : 1e-4), "%s: the relative difference to attention over all rows (%s) is %g", text, ggmlq_cuda_attend_kernel(&p), sqrt(error/square));
}

static std::string check_selected() {
    const int T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3;
    const int64_t heads = quick ? 4 : 64, kv = quick ? 4500 : 33000;
    const struct selected_case cases[] = {
        { P, P, 512, 512, true,  kv,   640, 640, 1, heads, 1 },
        { T, T, 512, 512, true,  kv,   640, 640, 1, heads, 1 },
        { T, T, 576, 512, true,  kv,   100, 100, 1, heads, 1 },
        { T, T, 576, 512, true,  3000, 100, 100, 4, 20, 1 },
        { T, T, 576, 512, true,  1000, 70,  65, 1, 2*heads, 2 },
        { T, T, 320, 256, true,  700,  64,  50, 1, 3, 1 },
        { P, T, 512, 512, false, kv,    64,  60, 2, heads, 1 },
        { T, GGMLQ_TYPE_Q8_0, 128, 128, false, kv, 70, 70, 3, 4, 1 },
        { GGMLQ_TYPE_F16, P, 128, 128, false, 2049, 33, 33, 1, 4, 2 },
        { P, P, 512, 512, true,  2048, 65,  65, 1, 8, 3 },
        { P, P, 512, 512, true,  300, 130, 1, 2, 8, 1 },
    };
    for (const struct selected_case & c : cases) {
        check_selected_case(c);
    }
    return "";
}

/* Against sums in float64 over the same 8-bit queries. */
static std::string check_indexer() {
    for (int type : CACHE_TYPES) for (int64_t heads : { 64, 32, 5, 70 }) for (int64_t seqs : { 1, 2 }) {
        const int64_t n = 128, n_rows = quick ? 300 : 5000, tokens = 3, block = ggmlq_type_info_get(type)->block_length, gap = seqs > 1 ? 2 : 0;
        const int64_t row = row_bytes(type, n) + gap;
        std::vector<uint8_t> rows(row*n_rows*seqs, 0xff);
        std::vector<float>   keys(n*n_rows*seqs), q = normals(n*heads*tokens*seqs), weights = normals(heads*tokens*seqs);
        for (int64_t r = 0; r < n_rows*seqs; ++r) {
            const std::vector<float> x = normals(n);
            ggmlq_encode_row(type, x.data(), &rows[r*row], n);
            ggmlq_decode_row_rotated(type, &rows[r*row], &keys[r*n], n);
        }
        std::vector<uint16_t> mask(n_rows*tokens);
        for (uint16_t & m : mask) {
            m = random_below(4) ? 0 : 0xfc00;
        }
        device_bytes d_rows(rows), dq(q), d_weights(weights), d_mask(mask), d_out(4*n_rows*tokens*seqs);
        struct ggmlq_cuda_view vs, vq, vr, vw, vm;
        spread(&vs, d_out.data(),     GGMLQ_TYPE_F32, n_rows, tokens, 1, seqs, 0);
        spread(&vq, dq.data(),        GGMLQ_TYPE_F32, n, heads, tokens, seqs, 0);
        spread(&vw, d_weights.data(), GGMLQ_TYPE_F32, heads, tokens, 1, seqs, 0);
        spread(&vm, d_mask.data(),    GGMLQ_TYPE_F16, n_rows, tokens, 1, 1, 0);
        const int64_t ne[4] = { n, 1, n_rows, seqs }, nb[4] = { ggmlq_type_info_get(type)->block_bytes, row, row, row*n_rows };
        vr = view(d_rows.data(), type, ne, nb);
        require(ggmlq_cuda_indexer_check(&vs, &vq, &vr, &vw, &vm) == GGMLQ_OK, "%s, %lld heads: refused", type_name(type), (long long) heads);
        device_bytes workspace(std::vector<uint8_t>(ggmlq_cuda_indexer_workspace_bytes(type, &vq), 0xff));
        ok(ggmlq_cuda_indexer(&vs, &vq, &vr, &vw, &vm, workspace.data(), NULL));
        const std::vector<float> found = d_out.host<float>();

        std::vector<uint8_t> query(ggmlq_row_bytes(ggmlq_type_info_get(type)->query_type, n)*heads);
        for (int64_t s = 0; s < seqs; ++s) for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t h = 0; h < heads; ++h) {
                ggmlq_encode_query_row(type, &q[((s*tokens + t)*heads + h)*n], &query[h*(int64_t) query.size()/heads], n);
            }
            for (int64_t r = 0; r < n_rows; ++r) {
                double wanted = mask[t*n_rows + r] ? -INFINITY : 0, size = 0;
                for (int64_t h = 0; h < heads; ++h) {
                    double dot = 0;
                    for (int64_t b = 0; b < n/block; ++b) {
                        const uint8_t * at = &query[h*(int64_t) query.size()/heads + b*(4 + block)];
                        float d;
                        memcpy(&d, at, 4);
                        for (int64_t j = 0; j < block; ++j) {
                            dot += (double) d*(int8_t) at[4 + j]*keys[(s*n_rows + r)*n + b*block + j];
                        }
                    }
                    const double part = weights[(s*tokens + t)*heads + h]*std::max(dot, 0.0);
                    wanted += part;
                    size   += std::fabs(part) + std::fabs(dot)*1e-1;
                }
                const float score = found[(s*tokens + t)*n_rows + r];
                require(std::isinf(wanted) ? score == -INFINITY : std::fabs(score - wanted) <= 100*U*size, "%s, %lld heads, row %lld: found %g, wanted %g", type_name(type), (long long) heads,
                        (long long) r, score, wanted);
            }
        }
        struct ggmlq_cuda_view wrong = vr;
        wrong.ne[0] = 96;
        require(ggmlq_cuda_indexer_check(&vs, &vq, &wrong, &vw, &vm) == GGMLQ_ERROR_LENGTH, "a row of 96 was taken");
        wrong = vw;
        wrong.ne[0] = heads + 1;
        require(ggmlq_cuda_indexer_check(&vs, &vq, &vr, &wrong, &vm) == GGMLQ_ERROR_SHAPE, "a weight too many was taken");
    }
    return "";
}

int main(int argc, char ** argv) {
    const std::string option = argc > 1 ? argv[1] : "";
    cudaDeviceProp device;
    cuda(cudaGetDeviceProperties(&device, 0));
    printf("%s, compute capability %d.%d\n", device.name, device.major, device.minor);
    if (option == "--bench") {
        const std::string what = argc > 2 ? argv[2] : "";
        if (what.empty()) {
            bench();
        }
#ifndef GGMLQ_CHECK_METAL
        if (what != "rounded") {
            bench_roped();
        }
        if (what != "roped") {
            bench_rounded();
        }
#endif
        return 0;
    }
    quick = option == "--quick";
    if (!option.empty() && !quick) {
        printf("usage: check_cuda [--quick [group [n]] | --bench [roped | rounded]]\n");
        return 2;
    }
    only   = argc > 2 ? argv[2] : NULL;
    one_of = argc > 3 ? std::max(atoi(argv[3]), 1) : 1;
    group("encoder",   check_encoder);
    group("decoder",   check_decoder);
    group("rotation",  check_rotation);
    group("set_rows",  check_set_rows);
    group("rounded",   check_rounded);
    group("get_rows",  check_get_rows);
    group("copy",      check_copy);
    group("mul_mat",   check_mul_mat);
#ifndef GGMLQ_CHECK_METAL
    group("center",    check_centering);
    group("f16",       check_f16);
#endif
    group("attention", check_attention);
    group("selected",  check_selected);
    group("indexer",   check_indexer);
    group("errors",    check_errors);
    printf(all_failures ? "%lld checks failed\n" : "ok\n", (long long) all_failures);
    return all_failures ? 1 : 0;
}
