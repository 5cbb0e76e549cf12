/* SPDX-License-Identifier: MIT
 *
 * Attention over selected rows at the shapes of DeepSeek-V4 (64 heads of 512, V = K, 640 rows seen) and of MLA models with an indexer (heads of 576, V their
 * first 512, 2048 rows seen): the call, its two kernels by themselves, and attention over all rows, which it has to beat; both with 16 columns at a time too.
 * Checked against each other, and for few rows against the plain kernel. Medians of replayed graphs, everything in the L2 cache as it is after the CONCAT before it.
 *
 * bench_selected search: up to 8192 rows and one token, other numbers of splits too. Build: see docs/DEEPSEEK.md.
 */
#include "ggmlq-cuda-attend-decode.cu"
#include "ggmlq-cuda-attend.cu"
#include "ggmlq-cuda-sparse.cu"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

static void check_cuda(cudaError_t error, const char * what, int line) {
    if (error != cudaSuccess) {
        printf("line %d: %s: %s\n", line, what, cudaGetErrorString(error));
        exit(2);
    }
}
#define CUDA(call) check_cuda(call, #call, __LINE__)

static void ok(int error) {
    if (error) {
        printf("error %d\n", error);
        exit(2);
    }
}

int ggmlq_cuda_launched(void) { return cudaGetLastError() == cudaSuccess ? 0 : (int) GGMLQ_ERROR_DEVICE; }

static cudaStream_t stream;

static float median_us(const std::function<void()> & call) {
    enum { CALLS = 24 };
    cudaGraph_t graph; cudaGraphExec_t exec; cudaEvent_t e0, e1;
    CUDA(cudaEventCreate(&e0)); CUDA(cudaEventCreate(&e1));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < CALLS; ++i) {
        call();
    }
    CUDA(cudaStreamEndCapture(stream, &graph)); CUDA(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < 13; ++i) {
        CUDA(cudaEventRecord(e0, stream)); CUDA(cudaGraphLaunch(exec, stream)); CUDA(cudaEventRecord(e1, stream)); CUDA(cudaEventSynchronize(e1));
        float ms; CUDA(cudaEventElapsedTime(&ms, e0, e1));
        if (i > 1) times.push_back(1000*ms/CALLS);
    }
    std::sort(times.begin(), times.end());
    CUDA(cudaGraphExecDestroy(exec)); CUDA(cudaGraphDestroy(graph)); CUDA(cudaEventDestroy(e0)); CUDA(cudaEventDestroy(e1));
    return times[times.size()/2];
}

static float median_by_16(const ggmlq_attend_params & p, uint8_t * workspace) {
    const ggmlq_decode_instance * instance = find_instance(&p, 2);
    ggmlq_decode_plan plan;
    if (!instance || !plan_instance(&p, instance, &plan)) {
        return 0.0f;
    }
    return median_us([&] { ggmlq_decode_plan each = plan; ok(launch(&p, instance, &each, workspace, stream)); });
}

/* Other numbers of splits than what `estimate` chooses. */
static void search(const char * what, const ggmlq_attend_params & p, uint8_t * workspace) {
    for (int tiles : { 1, 2, 4 }) {
        const ggmlq_decode_instance * instance = find_instance(&p, tiles);
        ggmlq_decode_plan plan;
        if (!instance || !plan_instance(&p, instance, &plan)) {
            continue;
        }
        printf("    %s, %lld rows, %d columns, chosen %d:", what, (long long) p.n_kv, 8*tiles, plan.splits);
        for (int splits : { plan.splits, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64 }) {
            ggmlq_decode_plan pl;
            if (!plan_instance(&p, instance, &pl, splits) || pl.workspace_bytes > 256 << 20) continue;
            printf(" %d:%.1f", splits, median_us([&] { ggmlq_decode_plan each = pl; ok(launch(&p, instance, &each, workspace, stream)); }));
        }
        printf("\n");
    }
}

/* Every byte random, but for scales that give values of about 1. */
static std::vector<uint8_t> make_rows(int type, int64_t head, int64_t n, std::mt19937 & random) {
    const int64_t row = ggmlq_row_bytes(type, head), block = type == GGMLQ_TYPE_TQ3_0 ? 14 : 50, scale = type == GGMLQ_TYPE_TQ3_0 ? 12 : 0;
    std::vector<uint8_t> rows(n*row);
    for (uint8_t & byte : rows) byte = (uint8_t) (random() >> 9);
    for (int64_t i = 0; i < n*row; i += block) { rows[i + scale] = (uint8_t) random(); rows[i + scale + 1] = type == GGMLQ_TYPE_TQ3_0 ? 0x38 : 0x48; }
    return rows;
}

struct shape { int type; int64_t head_k, heads, most; std::vector<int64_t> queries, rows; };

/* Root mean square, relative. */
static double difference(const std::vector<float> & found, const std::vector<float> & wanted) {
    double error = 0, square = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        error  += ((double) found[i] - wanted[i])*((double) found[i] - wanted[i]);
        square += (double) wanted[i]*wanted[i];
    }
    return std::sqrt(error/square);
}

int main(int argc, char ** argv) {
    const bool searching = argc > 1 && strcmp(argv[1], "search") == 0;
    enum { HEAD_V = 512 };
    const std::vector<int64_t> few = { 1, 4, 8 }, rows_v4 = { 1280, 2048, 4096, 8192, 16384, 33024, 66048, 131328, 262400 }, rows_mla = { 4096, 16384, 49152, 131072 };
    const shape shapes[] = {
        { GGMLQ_TYPE_TQ3_0,   512,  64,  640, few, rows_v4 }, { GGMLQ_TYPE_PLANAR3, 512, 64, 640, few, rows_v4 },
        { GGMLQ_TYPE_TQ3_0,   576,  16, 2048, { 1 }, rows_mla }, { GGMLQ_TYPE_TQ3_0, 576, 128, 2048, { 1, 4 }, rows_mla },
    };
    CUDA(cudaStreamCreate(&stream));
    cudaDeviceProp prop; CUDA(cudaGetDeviceProperties(&prop, 0));
    printf("%s, us\n%-8s %4s %5s %6s %7s %8s %8s %10s %8s %10s %8s   difference to attention over all, to the plain kernel\n", prop.name, "type", "head", "heads", "tokens", "rows", "call", "gather", "attention", "by 16", "over all", "by 16");
    bool good = true;
    for (const shape & c : shapes) for (int64_t n_queries : c.queries) for (int64_t n_kv : c.rows) {
        if (searching && (n_queries > 1 || n_kv > 8192)) continue;
        std::mt19937 random(1);
        const std::vector<uint8_t> rows = make_rows(c.type, c.head_k, n_kv, random);
        std::vector<uint16_t> mask(n_kv*n_queries, 0xfc00);
        std::vector<uint32_t> order(n_kv);
        for (int64_t i = 0; i < n_kv; ++i) order[i] = (uint32_t) i;
        for (int64_t q = 0; q < n_queries; ++q) {
            std::shuffle(order.begin() + 128, order.end(), random); /* the window, and what the indexer chose */
            for (int64_t i = 0; i < c.most - q; ++i) mask[q*n_kv + order[i]] = i % 3 ? 0x0000 : 0xb800;
        }
        std::normal_distribution<float> normal;
        std::vector<float> q(c.head_k*c.heads*n_queries), out[3];
        for (float & x : q) x = normal(random);
        const size_t n_out = HEAD_V*c.heads*n_queries;
        uint8_t * d_rows, * workspace; uint16_t * d_mask; float * d_q, * d_out;
        CUDA(cudaMalloc(&d_rows, rows.size())); CUDA(cudaMemcpy(d_rows, rows.data(), rows.size(), cudaMemcpyHostToDevice));
        CUDA(cudaMalloc(&d_mask, 2*mask.size())); CUDA(cudaMemcpy(d_mask, mask.data(), 2*mask.size(), cudaMemcpyHostToDevice));
        CUDA(cudaMalloc(&d_q, 4*q.size())); CUDA(cudaMemcpy(d_q, q.data(), 4*q.size(), cudaMemcpyHostToDevice));
        CUDA(cudaMalloc(&d_out, 4*n_out)); CUDA(cudaMalloc(&workspace, 256 << 20));

        ggmlq_attend_params p = {};
        p.type_k = p.type_v = c.type; p.head_size_k = c.head_k; p.head_size_v = HEAD_V;
        p.n_kv = n_kv; p.n_queries = n_queries; p.n_heads = c.heads; p.n_heads_kv = p.n_seqs = p.n_seqs_kv = p.mask_heads = p.mask_seqs = 1;
        p.q = d_q; p.k = p.v = d_rows; p.mask = d_mask; p.out = d_out;
        p.q_stride[1] = 4*c.head_k; p.q_stride[0] = p.q_stride[1]*c.heads; p.q_stride[2] = p.q_stride[0]*n_queries;
        p.out_stride[1] = 4*HEAD_V; p.out_stride[0] = p.out_stride[1]*c.heads; p.out_stride[2] = p.out_stride[0]*n_queries;
        p.k_stride[0] = p.v_stride[0] = ggmlq_row_bytes(c.type, c.head_k); p.k_stride[1] = p.k_stride[2] = p.v_stride[1] = p.v_stride[2] = p.k_stride[0]*n_kv;
        p.mask_stride[0] = 2*n_kv; p.mask_stride[1] = p.mask_stride[2] = 2*n_kv*n_queries;
        p.scale = 1.0f/std::sqrt((float) c.head_k);

        if (ggmlq_cuda_attend_workspace_bytes(&p) > 256 << 20 || ggmlq_cuda_attend_selected_workspace_bytes(&p, c.most) > 256 << 20 || strcmp(ggmlq_cuda_attend_kernel(&p), "decode") != 0) exit(3);
        const bool plain = n_kv <= 4096 && ggmlq_cuda_attend_plain_workspace_bytes(&p) <= 256 << 20;
        for (int i = 0; i < 2 + plain; ++i) {
            CUDA(cudaMemset(d_out, 0xff, 4*n_out));
            ok(i == 0 ? ggmlq_cuda_attend(&p, workspace, stream) : i == 1 ? ggmlq_cuda_attend_selected(&p, c.most, workspace, stream) : ggmlq_cuda_attend_plain_launch(&p, workspace, stream));
            CUDA(cudaStreamSynchronize(stream));
            out[i].resize(n_out); CUDA(cudaMemcpy(out[i].data(), d_out, 4*n_out, cudaMemcpyDeviceToHost));
        }
        /* As in check_cuda: weights rounded to halves under other maxima; queries of 8 bits against floats. Comparisons are false for NaN. */
        const double dense = difference(out[1], out[0]), exact = plain ? difference(out[1], out[2]) : 0.0;
        const bool same = dense < 1e-3 && exact < 1e-2;
        good = good && same;
        const layout l = lay_out(&p, c.most, workspace);
        const selection s = select(&p, c.most, &l, workspace);
        if (searching) {
            printf("%s, %lld heads of %lld\n", c.type == GGMLQ_TYPE_TQ3_0 ? "tq3_0" : "planar3", (long long) c.heads, (long long) c.head_k);
            if (n_kv > 4000) search("gathered", l.dense, workspace + l.attention);
            search("all", p, workspace);
        }
        const float call      = median_us([&] { ok(ggmlq_cuda_attend_selected(&p, c.most, workspace, stream)); });
        const float gathering = median_us([&] { ok(gather(s, l.tokens, stream)); });
        const float attention = median_us([&] { ok(ggmlq_cuda_attend(&l.dense, workspace + l.attention, stream)); });
        const float attention16 = median_by_16(l.dense, workspace + l.attention);
        const float over_all  = median_us([&] { ok(ggmlq_cuda_attend(&p, workspace, stream)); });
        const float over_all16 = median_by_16(p, workspace); /* over the gathered rows, which nobody needs any more */
        printf("%-8s %4lld %5lld %6lld %7lld %8.1f %8.1f %10.1f %8.1f %10.1f %8.1f   %.1e %.1e%s\n", c.type == GGMLQ_TYPE_TQ3_0 ? "tq3_0" : "planar3", (long long) c.head_k, (long long) c.heads, (long long) n_queries, (long long) n_kv,
               call, gathering, attention, attention16, over_all, over_all16, dense, exact, same ? "" : "  WRONG");
        fflush(stdout);
        CUDA(cudaFree(d_rows)); CUDA(cudaFree(d_mask)); CUDA(cudaFree(d_q)); CUDA(cudaFree(d_out)); CUDA(cudaFree(workspace));
    }
    return good ? 0 : 1;
}
