/* SPDX-License-Identifier: MIT
 *
 * The decode attention kernel alone: checked against float64, then timed.
 *
 *   bench_attend check [a b [n]] every case of the list (or those numbered a to b - 1, or every n-th of them) against float64; exit status 1 if one fails, or if the whole
 *                               list leaves out an instance of ggmlq-cuda-attend-decode.def
 *   bench_attend time [search] [number]  medians of replayed graphs; search: many numbers of splits and every variant compiled in; a number: that case
 *   bench_attend center         the times of plain and of centered keys
 *   bench_attend biased         as `time`, but with a mask of random numbers, as `test-backend-ops perf` has
 *
 * Build: see docs/CUDA-ATTENTION.md. The float64 side decodes rows with ggmlq-codec.c and knows nothing of rotations.
 */
#include "ggmlq-cuda-attend-decode.cu"
#include "ggmlq-block.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <thread>
#include <vector>

#ifndef BENCH_VARIANTS
static const ggmlq_decode_instance * bench_variant(int) { return NULL; }
#else
const ggmlq_decode_instance * bench_variant(int i);
#endif

static void check_cuda(cudaError_t error, const char * what, int line) {
    if (error != cudaSuccess) {
        printf("line %d: %s: %s\n", line, what, cudaGetErrorString(error));
        exit(2);
    }
}
#define CUDA(call) check_cuda(call, #call, __LINE__)

int ggmlq_cuda_launched(void) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
        printf("launch: %s\n", cudaGetErrorString(error));
    }
    return error == cudaSuccess ? (int) GGMLQ_OK : (int) GGMLQ_ERROR_DEVICE;
}

static int row_bytes(int type, int n) { return (int) ggmlq_row_bytes(type, n); }

__host__ __device__ static uint32_t hash32(uint64_t x) {
    x ^= x >> 33; x *= 0xff51afd7ed558ccdull; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ull; x ^= x >> 33;
    return (uint32_t) x;
}

/* Rows of any length of a type: random fields, scales that give values of about 1. */
__global__ void fill(uint8_t * data, int64_t bytes, int type, uint64_t seed) {
    for (int64_t i = (int64_t) blockIdx.x*blockDim.x + threadIdx.x; i < bytes/2; i += (int64_t) gridDim.x*blockDim.x) {
        const uint32_t r = hash32(i + seed);
        const float u = (float) (r & 0xffff)/65536.0f;
        uint16_t v = (uint16_t) (r >> 16);
        if (type == GGMLQ_TYPE_TQ3_0 && i % 7 == 6) {
            v = __half_as_ushort(__float2half(0.4f + u));
        } else if (type == GGMLQ_TYPE_PLANAR3 && i % 25 == 0) {
            v = __half_as_ushort(__float2half(4.0f + 8.0f*u));
        } else if (type == GGMLQ_TYPE_Q8_0 && i % 17 == 0) {
            v = __half_as_ushort(__float2half(0.005f + 0.01f*u));
        } else if (type == GGMLQ_TYPE_F16) {
            v = __half_as_ushort(__float2half(3.0f*(u - 0.5f) + (r >> 31 ? 0.3f : -0.3f)));
        }
        ((uint16_t *) data)[i] = v;
    }
}

static void decode(int type, const uint8_t * row, int n, float * x) {
    if (type == GGMLQ_TYPE_F16) {
        for (int i = 0; i < n; ++i) {
            x[i] = ggmlq_half_to_float(ggmlq_load_u16(row + 2*i));
        }
    } else if (type == GGMLQ_TYPE_Q8_0) {
        for (int i = 0; i < n; ++i) {
            x[i] = ggmlq_half_to_float(ggmlq_load_u16(row + i/32*34))*(float) (int8_t) row[i/32*34 + 2 + i % 32];
        }
    } else if (ggmlq_decode_row(type, row, x, n)) {
        exit(2);
    }
}

struct bench_case {
    int type_k, type_v, head_size, heads_kv, group, queries, n_kv;
    int mask;       /* 0: none, 1: causal with holes, 2: a row for each head too, 3: odd stride, 4: zeros, 5: everything hidden from query 0, 6: random numbers, a few blocks of zeros and hidden tokens,
                     * 7: random numbers, half of the tokens hidden */
    int seqs, seqs_kv;
    bool v_in_k, sinks;
    float softcap, max_bias, amplitude;
    bool nan_rows;  /* hidden tokens hold NaN */
    int  term = 0;  /* values of w of centered keys; 0: none. Without `part` if it is odd, of one less */
    int  positions = 0; /* of centered keys: see position_of. Odd: the pairs of w are halves */
    int  head_size_v = 0; /* of MLA, with v_in_k: V is the first part of K; 0: as head_size */
    bool heads_apart = false; /* the rows of a head are one after the other; else those of a token, as in a model */
};

static int values_of_v(const bench_case & c) { return c.head_size_v ? c.head_size_v : c.head_size; }

/* The kinds: a text after the other, as caches hold them; four texts in turn; anything; a text across 0; a text across 2^31; one shifted by 37, with empty cells. */
enum { CONSECUTIVE, IN_TURN, ANYTHING, NEGATIVE, HUGE_ONES, EMPTY_CELLS };
static int32_t position_of(const bench_case & c, int seq, int token) {
    switch (c.positions) {
        case IN_TURN:     return token/4 + 1000*(token % 4) + 5*seq;
        case ANYTHING:    return (int32_t) hash32(token + 77ull*seq);
        case NEGATIVE:    return token - c.n_kv/2 - seq;
        case HUGE_ONES:   return (int32_t) (2147483647u - (uint32_t) c.n_kv/3 + (uint32_t) (token + seq));
        case EMPTY_CELLS: return hash32(token/5 + 1) % 3 == 0 ? 0 : token + 37 + 100*seq;
        default:          return token + 100*seq;
    }
}

struct buffers {
    ggmlq_attend_params p;
    std::vector<uint8_t> k, v; std::vector<float> q, sinks, w; std::vector<uint16_t> mask, part; std::vector<uint64_t> turns; std::vector<int32_t> positions;
    uint8_t * dk, * dv; float * dq, * dout, * dsinks, * dw; uint16_t * dmask, * dpart; uint64_t * dturns; int32_t * dpositions; void * workspace;
    int64_t k_bytes, v_bytes, out_floats;
};

template <typename T> static T * to_device(const std::vector<T> & values) {
    T * data;
    CUDA(cudaMalloc(&data, sizeof(T)*values.size())); CUDA(cudaMemcpy(data, values.data(), sizeof(T)*values.size(), cudaMemcpyHostToDevice));
    return data;
}

/* w of which a score's spread is about that of q and K, and one pair much more; a quarter of the keys isn't centered; other factors than 1 for some kinds of positions. */
static void make_term(const bench_case & c, buffers & b) {
    ggmlq_attend_params & p = b.p;
    const int n = c.term & ~1, heads = c.heads_kv*c.group;
    b.dw = NULL; b.dturns = NULL; b.dpositions = NULL; b.dpart = NULL;
    if (n == 0) return;
    b.w.resize((size_t) c.seqs*c.queries*heads*n);
    for (size_t i = 0; i < b.w.size(); ++i) b.w[i] = (float) (c.amplitude*3*(hash32(i + 5)/4294967296.0 - 0.5)*(i % n == 3 ? 10 : 1));
    for (int i = 0; i < n/2; ++i) b.turns.push_back((uint64_t) (std::pow(10000.0, -2.0*i/n)/6.283185307179586*18446744073709551616.0));
    const int pitch = c.n_kv + 3;
    b.positions.assign((size_t) c.seqs_kv*pitch, 1 << 30); b.part.assign((size_t) c.seqs_kv*pitch, 0x7e00);
    for (int s = 0; s < c.seqs_kv; ++s) for (int t = 0; t < c.n_kv; ++t) {
        b.positions[(size_t) s*pitch + t] = position_of(c, s, t);
        b.part[(size_t) s*pitch + t] = c.positions == EMPTY_CELLS && position_of(c, s, t) == 0 ? 0 : hash32(t + 1000003ull*s)%4 == 0 ? 0 : c.positions >= ANYTHING && hash32(t + 99)%16 == 0 ? 0x3a00 : 0x3c00;
    }
    b.dw = to_device(b.w); b.dturns = to_device(b.turns); b.dpositions = to_device(b.positions); b.dpart = to_device(b.part);
    p.w = b.dw; p.w_stride[0] = 4ll*heads*n; p.w_stride[1] = 4*n; p.w_stride[2] = p.w_stride[0]*c.queries;
    p.n_pairs = n/2; p.pairs_are_halves = c.positions % 2;
    p.turns = b.dturns; p.positions = b.dpositions; p.positions_stride = 4*pitch;
    if (c.term % 2 == 0) { p.part = b.dpart; p.part_stride = 2*pitch; }
}

/* Masks 6 and 7: of a query and a token, or of a block of tokens. */
static uint32_t mask_hash(int query, int seq, int token) { return hash32(token*2654435761ull + seq*40503ull + query*7ull + 3); }

static bool hidden(const bench_case & c, int query, int head, int seq, int token) {
    if (c.mask == 0 || c.mask == 4) return false;
    if (c.mask == 6) return mask_hash(0, seq, token/128) % 128 == 0 && query >= (int) (mask_hash(1, seq, token/128) % c.queries);
    if (c.mask == 7) return mask_hash(query, seq, token) % 2 == 0;
    if (c.mask == 5 && query == 0) return true;
    if (token > c.n_kv - c.queries + query) return true;
    return hash32(token*7919ull + seq*31 + (c.mask == 2 ? head*1013 : 0)) % 4 == 0 || (token/96) % 5 == 3;
}

static uint16_t mask_value(const bench_case & c, int query, int head, int seq, int token) {
    if (hidden(c, query, head, seq, token)) return 0xfc00;
    if (c.mask == 4 || (c.mask == 6 && mask_hash(0, seq, token/128) % 128 == 1)) return 0;
    const float far = c.max_bias > 0 ? (float) (c.n_kv - token)/64 : 0;
    return ggmlq_half_from_float(c.mask >= 6 ? (float) mask_hash(query, seq, token)/2147483648.0f - 1 - far : c.max_bias > 0 ? -far : (float) (token % 7)/8);
}

static void make(const bench_case & c, buffers & b, int sets) {
    ggmlq_attend_params & p = b.p;
    memset(&p, 0, sizeof(p));
    const int heads = c.heads_kv*c.group, n = c.head_size, n_v = values_of_v(c);
    p.type_k = c.type_k; p.type_v = c.type_v; p.head_size_k = n; p.head_size_v = n_v;
    p.n_kv = c.n_kv; p.n_queries = c.queries; p.n_heads = heads; p.n_heads_kv = c.heads_kv; p.n_seqs = c.seqs; p.n_seqs_kv = c.seqs_kv;
    const int kb = row_bytes(c.type_k, n), vb = row_bytes(c.type_v, c.v_in_k ? n : n_v);
    p.k_stride[0] = (int64_t) c.heads_kv*kb; p.k_stride[1] = kb; p.k_stride[2] = p.k_stride[0]*c.n_kv;
    p.v_stride[0] = (int64_t) c.heads_kv*vb; p.v_stride[1] = vb; p.v_stride[2] = p.v_stride[0]*c.n_kv;
    if (c.heads_apart) {
        p.k_stride[0] = kb; p.k_stride[1] = (int64_t) c.n_kv*kb;
        p.v_stride[0] = vb; p.v_stride[1] = (int64_t) c.n_kv*vb;
    }
    b.k_bytes = (p.k_stride[2]*c.seqs_kv + 255)/256*256; b.v_bytes = (p.v_stride[2]*c.seqs_kv + 255)/256*256;
    CUDA(cudaMalloc(&b.dk, b.k_bytes*sets));
    fill<<<1024, 256>>>(b.dk, p.k_stride[2]*c.seqs_kv, c.type_k, 1);
    for (int i = 1; i < sets; ++i) CUDA(cudaMemcpy(b.dk + i*b.k_bytes, b.dk, b.k_bytes, cudaMemcpyDeviceToDevice));
    if (c.v_in_k) {
        b.dv = b.dk;
    } else {
        CUDA(cudaMalloc(&b.dv, b.v_bytes*sets));
        fill<<<1024, 256>>>(b.dv, p.v_stride[2]*c.seqs_kv, c.type_v, 1ull << 40);
        for (int i = 1; i < sets; ++i) CUDA(cudaMemcpy(b.dv + i*b.v_bytes, b.dv, b.v_bytes, cudaMemcpyDeviceToDevice));
    }
    /* query: [seq][token][head][n], as llama.cpp permutes it: strides of token and head are swapped */
    b.q.resize((size_t) c.seqs*c.queries*heads*n);
    for (size_t i = 0; i < b.q.size(); ++i) {
        const double u = (hash32(i*2 + 77) + 1.0)/4294967297.0, w = hash32(i*2 + 78)/4294967296.0;
        b.q[i] = (float) (c.amplitude*std::sqrt(-2*std::log(u))*std::cos(6.283185307179586*w));
    }
    CUDA(cudaMalloc(&b.dq, 4*b.q.size())); CUDA(cudaMemcpy(b.dq, b.q.data(), 4*b.q.size(), cudaMemcpyHostToDevice));
    p.q_stride[0] = 4ll*heads*n; p.q_stride[1] = 4*n; p.q_stride[2] = p.q_stride[0]*c.queries;
    b.out_floats = (int64_t) c.seqs*c.queries*heads*n_v;
    CUDA(cudaMalloc(&b.dout, 4*b.out_floats));
    p.out_stride[0] = 4ll*heads*n_v; p.out_stride[1] = 4*n_v; p.out_stride[2] = p.out_stride[0]*c.queries;
    b.dmask = NULL; b.dsinks = NULL;
    if (c.mask) {
        const int mask_heads = c.mask == 2 ? heads : 1;
        int64_t pitch = c.mask == 3 ? c.n_kv + 1 : (c.n_kv + 63)/64*64;
        p.mask_heads = mask_heads; p.mask_seqs = c.seqs;
        p.mask_stride[0] = 2*pitch; p.mask_stride[1] = p.mask_stride[0]*c.queries; p.mask_stride[2] = p.mask_stride[1]*mask_heads;
        b.mask.assign((size_t) pitch*c.queries*mask_heads*c.seqs, 0x7e00);
        for (int s = 0; s < c.seqs; ++s) for (int h = 0; h < mask_heads; ++h) for (int q = 0; q < c.queries; ++q) for (int t = 0; t < c.n_kv; ++t) {
            b.mask[(((size_t) s*mask_heads + h)*c.queries + q)*pitch + t] = mask_value(c, q, h, s, t);
        }
        CUDA(cudaMalloc(&b.dmask, 2*b.mask.size())); CUDA(cudaMemcpy(b.dmask, b.mask.data(), 2*b.mask.size(), cudaMemcpyHostToDevice));
    }
    if (c.sinks) {
        b.sinks.resize(heads);
        for (int i = 0; i < heads; ++i) b.sinks[i] = (float) (i % 5) - 2;
        CUDA(cudaMalloc(&b.dsinks, 4*heads)); CUDA(cudaMemcpy(b.dsinks, b.sinks.data(), 4*heads, cudaMemcpyHostToDevice));
    }
    p.q = b.dq; p.k = b.dk; p.v = b.dv; p.out = b.dout; p.mask = b.dmask; p.sinks = b.dsinks;
    p.scale = 1.0f/std::sqrt((float) n); p.max_bias = c.max_bias; p.logit_softcap = c.softcap;
    b.workspace = NULL;
    make_term(c, b);
}

static void release(buffers & b) {
    if (b.dv != b.dk) CUDA(cudaFree(b.dv));
    CUDA(cudaFree(b.dk)); CUDA(cudaFree(b.dq)); CUDA(cudaFree(b.dout)); CUDA(cudaFree(b.dmask)); CUDA(cudaFree(b.dsinks)); CUDA(cudaFree(b.workspace));
    CUDA(cudaFree(b.dw)); CUDA(cudaFree(b.dturns)); CUDA(cudaFree(b.dpositions)); CUDA(cudaFree(b.dpart));
}

static double slope_of(const bench_case & c, int head) {
    if (c.max_bias <= 0) return 1;
    const int heads = c.heads_kv*c.group;
    int n = 1;
    while (2*n <= heads) n *= 2;
    return head < n ? std::pow(2.0, -c.max_bias/n*(head + 1)) : std::pow(2.0, -c.max_bias/2/n*(2*(head - n) + 1));
}

/* One (sequence, KV head): rows are decoded once for its columns. */
static void reference(const bench_case & c, const buffers & b, int seq, int hk, std::vector<double> & out) {
    const int n = c.head_size, n_v = values_of_v(c), heads = c.heads_kv*c.group, seq_kv = seq/(c.seqs/c.seqs_kv), columns = c.queries*c.group;
    std::vector<float> k((size_t) c.n_kv*n), v((size_t) c.n_kv*n_v);
    for (int t = 0; t < c.n_kv; ++t) {
        decode(c.type_k, b.k.data() + seq_kv*b.p.k_stride[2] + (int64_t) t*b.p.k_stride[0] + hk*b.p.k_stride[1], n, &k[(size_t) t*n]);
        decode(c.type_v, (c.v_in_k ? b.k : b.v).data() + seq_kv*b.p.v_stride[2] + (int64_t) t*b.p.v_stride[0] + hk*b.p.v_stride[1], n_v, &v[(size_t) t*n_v]);
    }
    std::vector<double> rows; /* (cos, sin) of the pairs of a token */
    for (int t = 0; t < c.n_kv && b.p.n_pairs; ++t) for (const uint64_t turn : b.turns) {
        const double angle = (double) ((uint64_t) (int64_t) b.positions[seq_kv*b.p.positions_stride/4 + t]*turn >> 32)*(6.283185307179586/4294967296.0);
        rows.push_back(std::cos(angle)); rows.push_back(std::sin(angle));
    }
    std::vector<double> s(c.n_kv), o(n_v);
    for (int column = 0; column < columns; ++column) {
        const int token = column/c.group, head = hk*c.group + column % c.group;
        const float * q = &b.q[((size_t) (seq*c.queries + token)*heads + head)*n];
        double max = -INFINITY, sum = 0;
        for (int t = 0; t < c.n_kv; ++t) {
            double a = 0;
            for (int i = 0; i < n; ++i) a += (double) q[i]*k[(size_t) t*n + i];
            if (b.p.n_pairs) {
                const int m = (int) b.p.n_pairs;
                const float * w = &b.w[((size_t) (seq*c.queries + token)*heads + head)*2*m];
                double term = 0;
                for (int i = 0; i < m; ++i) {
                    const double * const at = &rows[((size_t) t*m + i)*2];
                    term += b.p.pairs_are_halves ? w[i]*at[0] + w[i + m]*at[1] : w[2*i]*at[0] + w[2*i + 1]*at[1];
                }
                a += b.p.part ? term*ggmlq_half_to_float(b.part[seq_kv*b.p.part_stride/2 + t]) : term;
            }
            a *= b.p.scale;
            if (c.softcap > 0) a = c.softcap*std::tanh(a/c.softcap);
            if (c.mask) {
                const uint16_t m = b.mask[seq*b.p.mask_stride[2]/2 + (head % b.p.mask_heads)*b.p.mask_stride[1]/2 + token*b.p.mask_stride[0]/2 + t];
                a = m == 0xfc00 ? -INFINITY : a + slope_of(c, head)*ggmlq_half_to_float(m);
            }
            s[t] = a;
            max = std::max(max, a);
        }
        if (c.sinks) { max = std::max(max, (double) b.sinks[head]); sum = std::exp(b.sinks[head] - max); }
        std::fill(o.begin(), o.end(), 0.0);
        for (int t = 0; t < c.n_kv; ++t) {
            if (s[t] == -INFINITY) continue;
            const double e = std::exp(s[t] - max);
            sum += e;
            for (int i = 0; i < n_v; ++i) o[i] += e*v[(size_t) t*n_v + i];
        }
        for (int i = 0; i < n_v; ++i) out[((size_t) (seq*c.queries + token)*heads + head)*n_v + i] = sum > 0 ? o[i]/sum : 0;
    }
}

static std::string name_of(const bench_case & c) {
    char text[256];
    auto type = [](int t) { return ggmlq_type_info_get(t)->name; };
    snprintf(text, sizeof(text), "%-7s %-7s D %3d kv heads %2d group %2d queries %d kv %6d", type(c.type_k), type(c.type_v), c.head_size, c.heads_kv, c.group, c.queries, c.n_kv);
    return text + (c.term ? " term " + std::to_string(c.term) + " positions " + std::to_string(c.positions) : std::string());
}

static std::set<const ggmlq_decode_instance *> checked;

/* Instances that `checked` lacks, a line each. */
static int count_unchecked() {
    int count = 0;
    for (const instance_list list : instance_lists) {
        const ggmlq_decode_instance * i;
        for (int n = 0; (i = list(n)) != NULL; ++n) {
            if (!checked.count(i)) {
                printf("NOT CHECKED  K %s, V %s, slice %d, tail %d, %d columns, %d warps%s%s%s\n", ggmlq_type_info_get(i->type_k)->name, ggmlq_type_info_get(i->type_v)->name,
                       i->slice, i->tail, 8*i->tiles, i->warps, i->term ? ", term" : "", i->lean ? ", lean" : "", i->combine ? ", combined" : "");
                ++count;
            }
        }
    }
    return count;
}

/* Of two calls; every `step`-th head. */
static bool check_plan(const bench_case & c, buffers & b, const ggmlq_decode_instance * instance, ggmlq_decode_plan plan, const std::vector<double> & ref, int step) {
    const int heads = c.heads_kv*c.group, n_v = values_of_v(c);
    std::vector<float> out[2];
    CUDA(cudaMalloc(&b.workspace, plan.workspace_bytes + 256));
    for (int i = 0; i < 2; ++i) {
        if (i == 0) CUDA(cudaMemset(b.workspace, 0xa5, plan.workspace_bytes + 256)); /* the second call finds what the first left */
        CUDA(cudaMemset(b.dout, 0xff, 4*b.out_floats));
        if (launch(&b.p, instance, &plan, b.workspace, NULL)) exit(2);
        CUDA(cudaDeviceSynchronize());
        out[i].resize(b.out_floats); CUDA(cudaMemcpy(out[i].data(), b.dout, 4*b.out_floats, cudaMemcpyDeviceToHost));
    }
    CUDA(cudaFree(b.workspace));
    b.workspace = NULL;
    double error = 0, norm = 0, worst = 0;
    bool nan = false;
    for (int s = 0; s < c.seqs; ++s) for (int q = 0; q < c.queries; ++q) for (int h = 0; h < heads; ++h) {
        if ((s*c.heads_kv + h/c.group) % step) continue;
        double e = 0, r2 = 0;
        for (int i = 0; i < n_v; ++i) {
            const size_t at = ((size_t) (s*c.queries + q)*heads + h)*n_v + i;
            const double d = out[0][at] - ref[at];
            nan |= !(std::fabs(out[0][at]) < 1e30);
            e += d*d; r2 += ref[at]*ref[at];
        }
        error += e; norm += r2;
        worst = std::max(worst, r2 > 0 ? e/r2 : e);
    }
    const bool same = memcmp(out[0].data(), out[1].data(), 4*b.out_floats) == 0;
    const double nmse = norm > 0 ? error/norm : error;
    /* Bytes: a query's step is max/127, at most 3.2 standard deviations of 128 values over 127, so its relative error has a variance of
     * 5e-5, the score's as much of the score's, which is amplitude^2 times the mean square of K, 1.6. Halves: 2^-11 each of query, weight and value. */
    const double limit = 1e-6 + (c.type_k == GGMLQ_TYPE_F16 ? 1e-7 : 1e-4)*c.amplitude*c.amplitude;
    const bool ok = nmse < limit && worst < 50*limit && !nan && same;
    printf("%s %s mask %d seqs %d/%d%s%s cap %g alibi %g amp %g%s slices %d splits %3d  nmse %.1e worst row %.1e%s%s\n", ok ? "ok  " : "FAIL", name_of(c).c_str(), c.mask, c.seqs, c.seqs_kv,
           c.v_in_k ? " V=K" : "", c.sinks ? " sinks" : "", c.softcap, c.max_bias, c.amplitude, c.nan_rows ? " NaN" : "", plan.slices, plan.splits, nmse, worst, nan ? " NOT FINITE" : "", same ? "" : " DIFFERS FROM RUN TO RUN");
    return ok;
}

static bool check(const bench_case & c, const ggmlq_decode_instance * forced) {
    buffers b;
    make(c, b, 1);
    const int heads = c.heads_kv*c.group;
    b.k.resize(b.p.k_stride[2]*c.seqs_kv); CUDA(cudaMemcpy(b.k.data(), b.dk, b.k.size(), cudaMemcpyDeviceToHost));
    b.v.resize(b.p.v_stride[2]*c.seqs_kv); if (!c.v_in_k) CUDA(cudaMemcpy(b.v.data(), b.dv, b.v.size(), cudaMemcpyDeviceToHost));
    if (c.nan_rows) { /* tokens that no query sees, and the last, which only the last query sees, stay or become NaN */
        auto spoil = [&](uint8_t * row, int type) {
            const int at = type == GGMLQ_TYPE_TQ3_0 ? 12 : type == GGMLQ_TYPE_F16 ? 6 : 0;
            row[at] = 0; row[at + 1] = 0x7e;
        };
        for (int s = 0; s < c.seqs_kv; ++s) for (int t = 0; t < c.n_kv; ++t) {
            bool seen = false;
            for (int i = 0; i < c.seqs; ++i) for (int h = 0; h < heads && i/(c.seqs/c.seqs_kv) == s; ++h) for (int q = 0; q < c.queries; ++q) seen |= !hidden(c, q, h, i, t);
            if (seen) continue;
            if (!b.part.empty()) b.part[s*(c.n_kv + 3) + t] = 0x7e00;
            for (int h = 0; h < c.heads_kv; ++h) {
                spoil(&b.k[s*b.p.k_stride[2] + t*b.p.k_stride[0] + h*b.p.k_stride[1]], c.type_k);
                if (!c.v_in_k) spoil(&b.v[s*b.p.v_stride[2] + t*b.p.v_stride[0] + h*b.p.v_stride[1]], c.type_v);
            }
        }
        if (!b.part.empty()) CUDA(cudaMemcpy(b.dpart, b.part.data(), 2*b.part.size(), cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(b.dk, b.k.data(), b.k.size(), cudaMemcpyHostToDevice));
        if (!c.v_in_k) CUDA(cudaMemcpy(b.dv, b.v.data(), b.v.size(), cudaMemcpyHostToDevice));
    }
    std::vector<ggmlq_decode_plan> plans(1);
    const ggmlq_decode_instance * instance = !forced ? make_plan(&b.p, &plans[0]) : plan_instance(&b.p, forced, &plans[0]) ? forced : NULL;
    if (instance == NULL) {
        printf("NOT SUPPORTED  %s\n", name_of(c).c_str());
        release(b);
        return false;
    }
    checked.insert(instance);
    ggmlq_decode_plan in_parts;
    const int several = std::min(7, c.n_kv/instance->rows);
    if (plans[0].splits == 1 && several > 1 && plan_instance(&b.p, instance, &in_parts, several)) { /* few tokens: in several ranges, too */
        plans.push_back(in_parts);
    }
    std::vector<double> ref(b.out_floats);
    std::vector<std::thread> threads;
    const int units = c.seqs*c.heads_kv, step = c.n_kv > 20000 ? 3 : 1;
    for (int w = 0; w < 16; ++w) threads.emplace_back([&, w] { for (int u = w*step; u < units; u += 16*step) reference(c, b, u/c.heads_kv, u % c.heads_kv, ref); });
    for (auto & t : threads) t.join();
    bool ok = true;
    for (const ggmlq_decode_plan & plan : plans) {
        ok &= check_plan(c, b, instance, plan, ref, step);
    }
    release(b);
    return ok;
}

static float median_us(const buffers & b, const ggmlq_decode_instance * instance, const ggmlq_decode_plan & plan, int sets, cudaStream_t stream) {
    enum { LAUNCHES = 24 };
    cudaGraph_t graph; cudaGraphExec_t exec; cudaEvent_t e0, e1;
    CUDA(cudaEventCreate(&e0)); CUDA(cudaEventCreate(&e1));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < LAUNCHES; ++i) {
        ggmlq_attend_params p = b.p;
        ggmlq_decode_plan pl = plan;
        p.k = b.dk + (i % sets)*b.k_bytes;
        p.v = b.dv + (i % sets)*(b.dv == b.dk ? b.k_bytes : b.v_bytes);
        if (launch(&p, instance, &pl, b.workspace, stream)) exit(2);
    }
    CUDA(cudaStreamEndCapture(stream, &graph)); CUDA(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < 13; ++i) {
        CUDA(cudaEventRecord(e0, stream)); CUDA(cudaGraphLaunch(exec, stream)); CUDA(cudaEventRecord(e1, stream)); CUDA(cudaEventSynchronize(e1));
        float ms; CUDA(cudaEventElapsedTime(&ms, e0, e1));
        if (i > 1) times.push_back(1000*ms/LAUNCHES);
    }
    std::sort(times.begin(), times.end());
    CUDA(cudaGraphExecDestroy(exec)); CUDA(cudaGraphDestroy(graph)); CUDA(cudaEventDestroy(e0)); CUDA(cudaEventDestroy(e1));
    return times[times.size()/2];
}

static float time_case(const bench_case & c, double target, bool search, double copy_rate, cudaStream_t stream) {
    buffers b;
    const double bytes_set = (double) c.n_kv*c.heads_kv*(row_bytes(c.type_k, c.head_size) + (c.v_in_k ? 0 : row_bytes(c.type_v, c.head_size)))*c.seqs_kv;
    const int sets = (int) std::max(2.0, std::min(24.0, 250e6/bytes_set));
    make(c, b, sets);
    if (!ggmlq_cuda_attend_decode_supports(&b.p)) { printf("NOT SUPPORTED %s\n", name_of(c).c_str()); release(b); return 0; }
    CUDA(cudaMalloc(&b.workspace, 64 << 20));
    ggmlq_decode_plan plan;
    const ggmlq_decode_instance * instance = make_plan(&b.p, &plan);
    const float us = median_us(b, instance, plan, sets, stream), floor_us = (float) (bytes_set/copy_rate*1e6);
    printf("%s%s  %7.1f us  target %6.1f %s  floor %5.1f (x%.2f)  %.2f TB/s  splits %d\n", name_of(c).c_str(), c.v_in_k ? " V=K" : "", us, target, us <= target ? "met   " : "MISSED", floor_us, us/floor_us, bytes_set/us*1e-6, plan.splits);
    if (search && !c.term) {
        for (int v = -1;; ++v) {
            const ggmlq_decode_instance * variant = v < 0 ? instance : bench_variant(v);
            if (!variant) break;
            if (v >= 0 && (variant->term != (c.term > 0) || variant->type_k != c.type_k || variant->type_v != c.type_v || c.head_size % variant->slice != 0 || (variant->tiles != instance->tiles && (variant->tiles > instance->tiles || c.queries*c.group <= 8)))) continue;
            ggmlq_decode_plan base;
            if (!plan_instance(&b.p, variant, &base) || variant->warps % base.slices) continue;
            int resident = 0;
            CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, variant->kernel, 32*variant->warps, base.shared_bytes));
            const int full = resident*132/base.units;
            const int tried[] = { base.splits, full, full/2, full*2, full*3/2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 33, 36, 40, 44, 48, 56, 64, 66, 96, 128, 132 };
            printf("    variant %2d slice %3d tiles %d warps %2d rows %d x%d resident:", v, variant->slice, variant->tiles, variant->warps, variant->rows, resident);
            float best = 1e9f; int best_splits = 0;
            for (int i = 0; i < (int) (sizeof(tried)/sizeof(tried[0])); ++i) {
                const int splits = tried[i];
                bool again = splits < 2;
                for (int j = 0; j < i; ++j) again |= tried[j] == splits;
                ggmlq_decode_plan pl;
                if (again || !plan_instance(&b.p, variant, &pl, splits) || pl.workspace_bytes > 64 << 20) continue;
                const float u = median_us(b, variant, pl, sets, stream);
                printf(" %d:%.1f", splits, u);
                if (u < best) { best = u; best_splits = splits; }
            }
            printf("  BEST %.1f at %d\n", best, best_splits);
        }
    }
    release(b);
    return us;
}

int main(int argc, char ** argv) {
    const std::string what = argc > 1 ? argv[1] : "check";
    enum { T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3, H = GGMLQ_TYPE_F16, Q = GGMLQ_TYPE_Q8_0 };
    if (what == "check") {
        int failed = 0, count = 0, number = 0;
        const int first = argc > 3 ? atoi(argv[2]) : 0, last = argc > 3 ? atoi(argv[3]) : INT32_MAX, every = argc > 4 ? atoi(argv[4]) : 1;
        auto run = [&](bench_case c, const ggmlq_decode_instance * forced = NULL) {
            if (number >= first && number < last && (number - first) % every == 0) {
                failed += !check(c, forced);
                ++count;
            }
            ++number;
        };
        const int pairs[][2] = { { T, T }, { P, P }, { T, P }, { P, T }, { H, T }, { T, H }, { Q, T }, { T, Q }, { H, P }, { P, H }, { Q, P }, { P, Q } };
        for (auto & pair : pairs) {
            for (int size : { 64, 96, 128, 192, 256, 512 }) {
                if ((pair[0] == P || pair[1] == P) && size % 128) continue;
                run({ pair[0], pair[1], size, 2, 4, 1, 777, 1, 1, 1, false, false, 0, 0, 2, false });
                run({ pair[0], pair[1], size, 3, 5, 3, 301, 3, 2, 1, false, true, 0, 0, 3, true });
                if (size > 128) continue; /* one slice: 8 columns that aren't lean, and 32 */
                run({ pair[0], pair[1], size, 2, 2, 3, 333, 1, 2, 1, false, true, 30, 0, 2, true });
                run({ pair[0], pair[1], size, 2, 8, 5, 530, 2, 2, 2, false, true, 30, 0, 2, true });
            }
            run({ pair[0], pair[1], 128, 1, 64, 2, 1000, 1, 1, 1, false, false, 20, 0, 4, false });
            run({ pair[0], pair[1], 128, 8, 1, 8, 4096, 2, 1, 1, false, true, 0, 8, 3, true });
            run({ pair[0], pair[1], 128, 2, 7, 4, 33, 5, 3, 3, false, false, 0, 0, 1, false });
        }
        for (int type : { T, P }) {
            for (int kv : { 1, 2, 15, 16, 17, 31, 32, 33, 100, 1023 }) run({ type, type, 128, 2, 8, 1, kv, 0, 1, 1, false, false, 0, 0, 2, false });
            run({ type, type, 128, 8, 8, 1, 32768, 4, 1, 1, false, false, 0, 0, 1, false });
            run({ type, type, 128, 8, 8, 1, 131072, 4, 1, 1, false, false, 0, 0, 6, false });
            run({ type, type, 512, 1, 64, 1, 4096, 1, 1, 1, true, false, 0, 0, 2, true });
            run({ type, type, 512, 1, 64, 1, 4096, 4, 2, 2, true, false, 0, 0, 2, false });
            run({ type, type, 128, 1, 1, 1, 500, 1, 64, 64, false, false, 0, 0, 2, false });
            run({ type, type, 128, 4, 8, 8, 2000, 1, 2, 2, false, true, 30, 8, 3, true });
            run({ type, type, 128, 2, 4, 8, 3000, 2, 1, 1, false, false, 0, 0, 2, true });
            run({ type, type, 128, 1, 64, 1, 1500, 1, 2, 1, true, true, 0, 0, 2, true });
            run({ type, type, 128, 8, 4, 8, 32768, 4, 1, 1, false, false, 0, 0, 4, false });
        }
        for (int type : { T, P }) for (int v : { T, P }) { /* lean instances: a mask that heads share, in aligned rows */
            run({ type, v, 128, 2, 6, 1, 1001, 1, 2, 1, false, true, 0, 8, 3, true });
            run({ type, v, 128, 3, 4, 8, 517, 1, 2, 1, false, true, 0, 8, 4, true });
            run({ type, v, 128, 2, 7, 6, 2003, 5, 2, 2, false, false, 0, 0, 3, true });
            run({ type, v, 128, 3, 4, 8, 517, 1, 2, 1, false, true, 0, 8, 4, true, 128 });
            run({ type, v, 128, 2, 6, 1, 1001, 1, 2, 1, false, true, 0, 8, 3, true, 64 });
        }
        const int masked[][3] = { { T, T, 0 }, { P, P, 0 }, { H, T, 0 }, { Q, T, 0 }, { T, T, 64 }, { P, P, 64 }, { T, H, 64 } }; /* types of K and V, values of w */
        for (auto & pair : masked) { /* every query and token has its own number: each way to add a mask */
            const int n = pair[2];
            for (int mask : { 6, 7 }) {
                run({ pair[0], pair[1], 128, 2, 7, 1, 1501, mask, 2, 1, false, false, 0, 0, 2, mask == 7, n, IN_TURN, 0, true });
                run({ pair[0], pair[1], 128, 2, 3, 7, 2111, mask, 1, 1, false, true, 0, 0, 2, mask == 7, n, CONSECUTIVE, 0, true });
                run({ pair[0], pair[1], 128, 2, 8, 7, 1301, mask, 2, 2, false, false, 0, 8, 3, mask == 7, n, EMPTY_CELLS });
                run({ pair[0], pair[1], 256, 1, 5, 2, 901, mask, 1, 1, false, true, 20, 0, 2, mask == 7, n, NEGATIVE, 0, true });
            }
            run({ pair[0], pair[1], 128, 2, 15, 1, 1201, 7, 1, 1, false, false, 0, 8, 2, true, n, ANYTHING });
            run({ pair[0], pair[1], 128, 2, 29, 1, 1203, 7, 1, 1, false, false, 30, 0, 2, true, n, CONSECUTIVE });
        }
        for (auto & pair : pairs) { /* centered keys: every instance, w of the whole head and of a part */
            if (pair[0] != T && pair[0] != P) continue;
            for (int size : { 64, 96, 128, 192, 256, 512 }) {
                if ((pair[0] == P || pair[1] == P) && size % 128) continue;
                run({ pair[0], pair[1], size, 2, 4, 1, 777, 1, 1, 1, false, false, 0, 0, 2, false, size, CONSECUTIVE });
                run({ pair[0], pair[1], size, 3, 5, 3, 301, 3, 2, 1, false, true, 0, 0, 3, true, size/2/32*32, IN_TURN });
                run({ pair[0], pair[1], size, 2, 8, 5, 530, 2, 2, 2, false, true, 30, 0, 2, true, size + 1, NEGATIVE });
                if (size <= 128) run({ pair[0], pair[1], size, 2, 2, 3, 333, 1, 2, 1, false, true, 30, 0, 2, true, size, IN_TURN }); /* 8 columns that aren't lean */
            }
        }
        for (int type : { T, P }) {
            for (int kv : { 1, 15, 16, 17, 100, 1023 }) run({ type, type, 128, 2, 8, 1, kv, 0, 1, 1, false, false, 0, 0, 2, false, 128, CONSECUTIVE });
            for (int kind : { CONSECUTIVE, IN_TURN, ANYTHING, NEGATIVE, HUGE_ONES, EMPTY_CELLS }) { /* lean, and not; all queries at once */
                run({ type, type, 128, 2, 8, 1, 1500, 4, 1, 1, false, false, 0, 0, 2, false, 128, kind });
                run({ type, type, 128, 2, 7, 1, 1501, 1, 2, 2, false, false, 0, 0, 2, true, 96, kind });
                run({ type, type, 128, 2, 4, 8, 999, 1, 1, 1, false, false, 0, 0, 2, false, 128, kind });
                run({ type, type, 256, 2, 4, 2, 700, 2, 2, 1, false, true, 0, 0, 2, false, 256, kind });
                if (type == T) run({ type, type, 64, 2, 8, 1, 1500, 4, 1, 1, false, false, 0, 0, 2, false, 64, kind });
            }
            run({ type, type, 128, 8, 8, 1, 32768, 4, 1, 1, false, false, 0, 0, 1, false, 128, CONSECUTIVE });
            run({ type, type, 128, 8, 4, 1, 131072, 4, 1, 1, false, false, 0, 0, 6, false, 128, CONSECUTIVE });
            run({ type, type, 128, 9, 5, 1, 16390, 1, 2, 1, false, true, 0, 8, 3, true, 65, EMPTY_CELLS });
            run({ type, type, 128, 2, 8, 1, 4096, 5, 2, 2, false, false, 0, 0, 2, true, 32, HUGE_ONES });
            run({ type, type, 128, 1, 12, 1, 500, 1, 64, 64, false, false, 0, 0, 2, false, 64, CONSECUTIVE });
            run({ type, type, 128, 2, 6, 2, 500, 1, 1, 1, false, false, 0, 0, 2, false, 40, IN_TURN });
        }
        for (int size : { 320, 576 }) { /* MLA; 16 columns at once from so many columns times tokens on, see MOST_BY_8 */
            run({ T, T, size, 1, 4, 2, 777, 1, 2, 1, true, false, 0, 0, 2, true, 0, CONSECUTIVE, size - 64 });
            run({ T, T, size, 1, 16, 8, 12301, 1, 4, 4, true, false, 0, 0, 2, true, 0, CONSECUTIVE, size - 64 });
        }
        for (int v = 0; bench_variant(v); ++v) {
            const ggmlq_decode_instance * i = bench_variant(v);
            if (i->term) {
                run({ i->type_k, i->type_v, i->slice, 2, 8*i->tiles, 1, 3001, 1, 1, 1, false, false, 0, 0, 2, true, i->slice }, i);
                continue;
            }
            run({ i->type_k, i->type_v, i->slice, 2, 8*i->tiles, 1, 3001, 1, 1, 1, false, false, 0, 0, 2, true }, i);
            if (i->lean && i->tiles == 1) {
                continue;
            }
            run({ i->type_k, i->type_v, i->slice, 3, i->tiles, 8, 517, i->combine ? 1 : 2 /* it knows no mask of a head's own */, 2, 1, false, true, 0, 8, 4, true }, i);
            if (i->lean) {
                continue;
            }
            run({ i->type_k, i->type_v, i->slice, 8, i->tiles, 8, 32768, 3, 1, 1, i->type_k == i->type_v, false, 20, 0, 3, false }, i);
        }
        const int unchecked = argc > 3 ? 0 : count_unchecked();
        printf("%d of %d failed, %d instances not checked\n", failed, count, unchecked);
        return failed != 0 || unchecked != 0;
    }
    const bool search = argc > 2 && std::string(argv[2]) == "search";
    const int  only   = argc > 2 + search ? atoi(argv[2 + search]) : -1; /* one case of the list, for a profiler */
    int index = 0;
    cudaStream_t stream; CUDA(cudaStreamCreate(&stream));
    double copy_rate = 0;
    { /* bytes read plus written */
        uint8_t * a, * b; cudaEvent_t e0, e1; const size_t n = 1ull << 30;
        CUDA(cudaMalloc(&a, n)); CUDA(cudaMalloc(&b, n)); CUDA(cudaEventCreate(&e0)); CUDA(cudaEventCreate(&e1));
        for (int i = 0; i < 5; ++i) {
            CUDA(cudaEventRecord(e0, stream)); CUDA(cudaMemcpyAsync(b, a, n, cudaMemcpyDeviceToDevice, stream)); CUDA(cudaEventRecord(e1, stream)); CUDA(cudaEventSynchronize(e1));
            float ms; CUDA(cudaEventElapsedTime(&ms, e0, e1)); copy_rate = std::max(copy_rate, 2.0*n/ms*1e3);
        }
        CUDA(cudaFree(a)); CUDA(cudaFree(b));
    }
    cudaDeviceProp prop; CUDA(cudaGetDeviceProperties(&prop, 0));
    printf("%s, copy %.2f TB/s\n", prop.name, copy_rate*1e-12);
    if (what == "center") { /* the same work without and with centered keys */
        auto both = [&](int type, int v, int size, int heads_kv, int group, int queries, int kv, int kind = CONSECUTIVE) {
            if (only >= 0 && only != index++) return;
            const float plain    = time_case({ type, v, size, heads_kv, group, queries, kv, 4, 1, 1, false, false, 0, 0, 1, false, 0,    kind }, 1e9, search, copy_rate, stream);
            const float centered = time_case({ type, v, size, heads_kv, group, queries, kv, 4, 1, 1, false, false, 0, 0, 1, false, size, kind }, 1e9, search, copy_rate, stream);
            printf("    centered: x %.3f\n", centered/plain);
        };
        for (int type : { T, P }) {
            for (int group : { 8, 4 }) for (int kv : { 4096, 32768, 131072 }) both(type, type, 128, 8, group, 1, kv);
            both(type, type, 128, 8, 1, 1, 32768);
            both(type, type, 128, 8, 8, 8, 32768);
            both(type, type, 128, 8, 4, 8, 32768);
            both(type, H,    128, 8, 8, 1, 32768);
            both(type, Q,    128, 8, 8, 1, 32768);
            both(type, type, 256, 4, 4, 1, 32768);
            if (type == T) both(type, type, 64, 8, 4, 1, 32768);
            both(type, type, 128, 8, 8, 1, 32768, IN_TURN);
            both(type, type, 128, 8, 8, 1, 32768, ANYTHING);
        }
        return 0;
    }
    for (int type : { T, P }) {
        auto run = [&](int k, int v, int size, int heads_kv, int group, int queries, int kv, bool v_in_k, double target) {
            if (only < 0 || only == index++) time_case({ k, v, size, heads_kv, group, queries, kv, what == "biased" ? 6 : 4, 1, 1, v_in_k, false, 0, 0, 1, false }, target, search, copy_rate, stream);
        };
        run(type, type, 128, 8, 8, 1,   4096, false, 11.1);
        run(type, type, 128, 8, 8, 1,  32768, false, 21.4);
        run(type, type, 128, 8, 8, 1, 131072, false, 55.9);
        run(type, type, 128, 8, 4, 1,   4096, false,  9.5);
        run(type, type, 128, 8, 4, 1,  32768, false, 21.5);
        run(type, type, 128, 8, 4, 1, 131072, false, 60.7);
        run(type, type, 128, 8, 1, 1,  32768, false, 22.0);
        run(type, type, 128, 8, 4, 8,  32768, false, 30.4);
        if (type == T) run(type, type, 64, 8, 4, 1, 32768, false, 18.3);
        run(type, type, 256, 4, 4, 1,  32768, false, 35.8);
        run(type, type, 512, 1, 64, 1, 32768, true,  74.8);
        run(Q, type, 128, 8, 8, 1,  32768, false, 53.6);
        run(type, H, 128, 8, 8, 1,  32768, false, 53.6);
        run(H, type, 128, 8, 8, 1,  32768, false, 53.6);
    }
    return 0;
}
