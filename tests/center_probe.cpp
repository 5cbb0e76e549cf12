// SPDX-License-Identifier: MIT
//
// What tests/test_llama_center.py asks libllama's inside: whether the turns that it finds of a RoPE node give the rows that this node gives. No model is needed.
// Prints for every RoPE its name and the largest angle, at many positions, between a row of the node and that of the turns, over what float rounding explains; then the magnitude.
#include "llama-ggmlq-center.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

int main() {
    struct { const char * name; int n_rot, mode; float base, scale, extension, magnitude; bool factors; } cases[] = {
        { "neighbours",  64, GGML_ROPE_TYPE_NORMAL, 1e5f, 1.0f,  0.0f, 1.0f, false },
        { "halves",     256, GGML_ROPE_TYPE_NEOX,   1e6f, 1.0f,  0.0f, 1.0f, false },
        { "scaled",     128, GGML_ROPE_TYPE_NEOX,   1e4f, 0.125f, 0.0f, 1.0f, false },
        { "yarn",       128, GGML_ROPE_TYPE_NORMAL, 1e4f, 0.25f, 1.0f, 1.0f, false },
        { "factors",    128, GGML_ROPE_TYPE_NORMAL, 5e5f, 1.0f,  0.0f, 1.0f, true },
        { "magnitude",   96, GGML_ROPE_TYPE_NEOX,   1e4f, 1.0f,  0.0f, 1.19f, true },
    };
    std::mt19937 random(1);
    for (const auto & one : cases) {
        ggml_init_params params = { 1 << 20, nullptr, false };
        ggml_context_ptr ctx { ggml_init(params) };
        ggml_context_ptr data;
        ggml_tensor * factors = nullptr;
        ggml_backend_buffer_ptr buffer;
        if (one.factors) {
            ggml_init_params unallocated = { 4*ggml_tensor_overhead(), nullptr, true };
            data.reset(ggml_init(unallocated));
            factors = ggml_new_tensor_1d(data.get(), GGML_TYPE_F32, one.n_rot/2);
            buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(data.get(), ggml_backend_cpu_buffer_type()));
            for (int i = 0; i < one.n_rot/2; ++i) {
                ((float *) factors->data)[i] = 1.0f + 7.0f*(i > one.n_rot/5)*std::generate_canonical<float, 24>(random);
            }
        }
        ggml_tensor * node = ggml_rope_ext(ctx.get(), ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, one.n_rot, 1, 1), ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 1),
            factors, one.n_rot, one.mode, 4096, one.base, one.scale, one.extension, one.magnitude, 32.0f, 1.0f);
        ggmlq_llama_center_rope rope = {};
        std::memcpy(rope.params.data(), node->op_params, rope.params.size());
        rope.factors = factors;
        rope.n_rot   = one.n_rot;
        rope.neox    = one.mode == GGML_ROPE_TYPE_NEOX;
        rope.measure();

        std::vector<int32_t> positions = { 0, 1, 2, 63, 64, 4095, 32767, 100000, 131071, 1 << 20, (1 << 24) - 1 };
        while (positions.size() < 2000) {
            positions.push_back((int32_t) (random() >> (8 + random() % 20)));
        }
        const auto rows = rope.at(positions);
        std::vector<float> row(one.n_rot);
        double worst = 0;
        for (size_t t = 0; t < positions.size(); ++t) {
            ggmlq_llama_center_row(rope.turns, rope.neox, positions[t], row.data());
            for (int pair = 0; pair < one.n_rot/2; ++pair) {
                const int i = rope.neox ? pair : 2*pair, j = rope.neox ? pair + one.n_rot/2 : 2*pair + 1;
                const float * wanted = &rows[t*one.n_rot];
                const double turned = std::fabs(std::atan2(wanted[j]*row[i] - wanted[i]*row[j], wanted[i]*row[i] + wanted[j]*row[j]));
                const double length = std::fabs(std::hypot(wanted[i], wanted[j])/rope.magnitude - 1);
                // The node multiplies the angle once a pair, and some times more; the turns come from the node at other positions, so as often again.
                const double radians = std::fabs(std::ldexp((double) (int64_t) rope.turns[pair], -64))*6.2831853;
                const double rounded = 0x1p-22 + 2*(pair + 6)*0x1p-24*radians*positions[t];
                worst = std::max(worst, std::max(turned/rounded, length/0x1p-20));
            }
        }
        std::printf("%s %.3f %.6f\n", one.name, worst, rope.magnitude);
    }
    return 0;
}
