// SPDX-License-Identifier: MIT
//
// What tests/test_llama_center.py asks libllama's inside: how a calibration gets to a device whose memory the host can't see, played by memory of the host that counts the copies. No model is needed.
// Prints for no limit of a buffer's size and for a small one: how many copies the calibration and then the matrices for rounding took, and whether both are as in memory of the host.
// Then what is left in these matrices where they can't be copied (which libllama says, too), and whether they are right when the calibration was filled in three times in a row.
#include "llama-ggmlq-center.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

static size_t most = 0; // bytes of a buffer
static int copies = 0;
static bool refuses = false;

static ggml_backend_buffer_t make(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = [](ggml_backend_buffer_t b) { std::free(b->context); };
    iface.get_base    = [](ggml_backend_buffer_t b) { return b->context; };
    iface.init_tensor = [](ggml_backend_buffer_t, ggml_tensor *) { return refuses ? GGML_STATUS_FAILED : GGML_STATUS_SUCCESS; };
    iface.set_tensor  = [](ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t n) { ++copies; std::memcpy((char *) t->data + offset, data, n); };
    iface.get_tensor  = [](ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t n) { std::memcpy(data, (const char *) t->data + offset, n); };
    iface.clear       = [](ggml_backend_buffer_t b, uint8_t value) { std::memset(b->context, value, b->size); };
    void * memory = std::aligned_alloc(256, (size + 255)/256*256);
    std::memset(memory, 0x5a, size);
    return ggml_backend_buffer_init(buft, iface, memory, size);
}

static ggml_backend_buffer_type_t device() {
    static ggml_backend_buffer_type type = {};
    type.iface.get_name      = [](ggml_backend_buffer_type_t) { return "device"; };
    type.iface.alloc_buffer  = make;
    type.iface.get_alignment = [](ggml_backend_buffer_type_t) { return (size_t) 256; };
    type.iface.get_max_size  = [](ggml_backend_buffer_type_t) { return most; };
    type.device = ggml_backend_cpu_buffer_type()->device;
    return &type;
}

struct uploaded {
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_context_ptr ctx_rope;
    ggmlq_llama_center center;

    uploaded(ggml_backend_buffer_type_t buft) {
        const int64_t size = 64, heads_kv = 2, heads = 6, cells = 32, layers = 5;
        ggml_init_params params = { 64*ggml_tensor_overhead(), nullptr, true };
        ctx.reset(ggml_init(params));
        ctx_rope.reset(ggml_init(params));
        for (int il = 0; il < layers; ++il) {
            ggml_new_tensor_3d(ctx.get(), GGML_TYPE_TQ3_0, size*heads_kv, cells, 1);
        }
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
        const ggml_tensor * node = ggml_rope(ctx_rope.get(), ggml_new_tensor_3d(ctx_rope.get(), GGML_TYPE_F32, size, 1, 1), ggml_new_tensor_1d(ctx_rope.get(), GGML_TYPE_I32, 1), (int) size, 0);
        ggmlq_llama_center_rope rope = {};
        std::memcpy(rope.params.data(), node->op_params, rope.params.size());
        rope.buft  = buft;
        rope.n_rot = (int) size;
        center.ropes.push_back(rope);
        std::mt19937 random(1);
        ggml_tensor * k = ggml_get_first_tensor(ctx.get());
        for (int il = 0; il < layers; ++il, k = ggml_get_next_tensor(ctx.get(), k)) {
            ggmlq_llama_center_layer layer = {};
            layer.il = il;
            layer.k  = k;
            layer.rope       = 0;
            layer.head_size  = size;
            layer.n_head_kv  = heads_kv;
            layer.n_head     = heads;
            layer.is_rounded = il != 2;
            for (int64_t i = 0; i < size*heads_kv; ++i) {
                layer.mean .push_back(std::generate_canonical<float, 24>(random) - 0.5f);
                layer.scale.push_back(std::generate_canonical<float, 24>(random) + 0.5f);
                layer.query.push_back(std::generate_canonical<float, 24>(random));
            }
            center.layers.push_back(layer);
        }
        center.upload(false);
    }

    std::vector<char> bytes(bool of_rounding) const {
        std::vector<char> all;
        const auto add = [&](const ggml_tensor * t) {
            if (t) {
                all.resize(all.size() + ggml_nbytes(t));
                ggml_backend_tensor_get(t, all.data() + all.size() - ggml_nbytes(t), 0, ggml_nbytes(t));
            }
        };
        for (const auto & layer : center.layers) {
            for (const ggml_tensor * t : { layer.s, layer.s_mu, layer.s_mu_2, layer.s_inv, layer.mu_same, layer.mu_turn, layer.part }) {
                add(of_rounding ? nullptr : t);
            }
            add(of_rounding ? layer.feedback : nullptr);
        }
        add(of_rounding ? nullptr : center.ropes[0].turns_there);
        add(of_rounding ? nullptr : center.ropes[0].one);
        return all;
    }
};

int main() {
    uploaded host(ggml_backend_cpu_buffer_type());
    host.center.prepare();
    for (const size_t limit : { (size_t) 1 << 40, (size_t) 9000 }) {
        most = limit;
        copies = 0;
        uploaded there(device());
        std::printf("%d ", copies);
        copies = 0;
        there.center.prepare();
        std::printf("%d %d %d\n", copies, there.bytes(false) == host.bytes(false), there.bytes(true) == host.bytes(true));
    }
    most = (size_t) 1 << 40;
    uploaded there(device());
    refuses = true;
    there.center.prepare();
    refuses = false;
    const auto left = there.bytes(true);
    std::printf("%d ", std::all_of(left.begin(), left.end(), [](char byte) { return byte == 0; }));
    for (int i = 0; i < 3; ++i) { // while the matrices of the time before are being made
        for (auto & layer : there.center.layers) {
            layer.query[i] *= i < 2 ? 2 : 1;
        }
        for (auto & layer : host.center.layers) {
            layer.query[i] *= i < 2 ? 2 : 1;
        }
        there.center.fill();
    }
    host.center.fill();
    for (auto * made : { &there, &host }) {
        made->center.prepare();
    }
    std::printf("%d\n", there.bytes(true) == host.bytes(true));
    uploaded never(device()); // whose matrices are still being made
}
