/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: rounds a key for the queries that will meet it (docs/CENTERING.md). The values of a head are rounded one after the other, and
 * what rounding one does to the products with queries is taken up by those that follow, as GPTQ does it for weights. The result lies on the
 * levels of the type already, so that the encoder, which comes later, finds them.
 */
#pragma once

#include "ggmlq-block.h"
#include "ggmlq.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

class ggmlq_llama_round {
public:
    ggmlq_llama_round() = default;

    // For keys of `head_size` values and one of our types; `hadamard`: size of the blocks in which llama.cpp rotates them before they are stored
    // (attn_rot), 0 if it doesn't; `square`: of queries, as attention gets them but for that rotation, the mean square of each value. Values that
    // aren't of the same RoPE pair have nothing to do with each other over many positions.
    ggmlq_llama_round(int type, int64_t head_size, int64_t hadamard, std::vector<double> square) :
        type(type), n(head_size), hadamard(hadamard), square(std::move(square)), once(std::make_shared<std::once_flag>()) {}

    // Makes the matrix, if nobody has: up to milliseconds a head, which a model's start needn't wait for. From any thread.
    void prepare() const {
        std::call_once(*once, [this] { make_feedback(); });
    }

    // One key of one head, before llama.cpp's rotation. x and y may be the same. A key that the type has no levels for is left as it is.
    void operator()(const float * x, float * y) const {
        prepare();
        static const float  boundaries[7] = GGMLQ_BOUNDARIES_INIT;
        static const int8_t levels[8]     = GGMLQ_LEVELS_INIT;
        const int64_t length = ggmlq_type_info_get(type)->block_length;
        float rest[GGMLQ_ATTEND_MAX_HEAD_SIZE], rounded[GGMLQ_ATTEND_MAX_HEAD_SIZE];
        std::copy(x, x + n, rest);
        turn(rest);
        for (int64_t start = 0; start < n; start += length) {
            const float unit = step(rest + start, length);
            if (!(unit >= 0 && std::isfinite(unit))) {
                std::copy(x, x + n, y);
                return;
            }
            for (int64_t i = start; i < start + length; ++i) {
                int level = 0;
                for (const float boundary : boundaries) {
                    level += rest[i] >= boundary*unit;
                }
                rounded[i] = unit*levels[level];
                const float error = rest[i] - rounded[i];
                for (int64_t j = i + 1; j < n; ++j) {
                    rest[j] -= error*feedback[i*n + j];
                }
            }
        }
        turn_back(rounded);
        std::copy(rounded, rounded + n, y);
    }

private:
    int     type = 0;
    int64_t n = 0, hadamard = 0;
    std::vector<double> square;
    std::shared_ptr<std::once_flag> once;
    mutable std::vector<float> feedback; // [n][n], above the diagonal: by how much a value's error moves those after it; empty until it is made

    void make_feedback() const {
        // M is the moment of the rotated queries, and a tenth of its mean for queries of other texts, which look elsewhere, too. With M = V D V^T, V
        // unit upper triangular, an error e of value i is undone, as far as the later values can, by moving those by e times the row i of V^-1.
        // The rotation T is orthogonal, so M^-1 = T diag(1/(square + a tenth of the mean)) T^T = V^-T D^-1 V^-1: two rotations of all rows, and
        // elimination without pivoting finds the rows of V^-1.
        double mean = 0;
        for (const double value : square) {
            mean += value/n;
        }
        std::vector<float> half(n*n), row(n);
        for (int64_t k = 0; k < n; ++k) {
            half[k*n + k] = (float) (1.0/(mean > 0 ? square[k]/mean + 0.1 : 1.0)); // times the mean, which changes nothing
            turn(&half[k*n]);
        }
        std::vector<double> rest(n*n);
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t k = 0; k < n; ++k) {
                row[k] = half[k*n + i];
            }
            turn(row.data());
            std::copy(row.begin(), row.end(), &rest[i*n]);
        }
        feedback.resize(n*n);
        for (int64_t i = 0; i < n; ++i) {
            const double * pivot = &rest[i*n];
            for (int64_t j = i + 1; j < n; ++j) {
                const double factor = pivot[j]/pivot[i];
                feedback[i*n + j] = (float) factor;
                for (int64_t k = j; k < n; ++k) {
                    rest[j*n + k] -= factor*pivot[k];
                }
            }
        }
    }

    // llama.cpp's rotation, which is its own inverse.
    void turn_hadamard(float * x) const {
        for (int64_t half = 1; half < hadamard; half *= 2) {
            for (int64_t i = 0; i < n; ++i) {
                if (!(i & half)) {
                    const float a = x[i], b = x[i + half];
                    x[i]        = a + b;
                    x[i + half] = a - b;
                }
            }
        }
        const float norm = hadamard ? 1.0f/std::sqrt((float) hadamard) : 1.0f;
        for (int64_t i = 0; i < n; ++i) {
            x[i] *= norm;
        }
    }

    void turn(float * x) const {
        turn_hadamard(x);
        ggmlq_rotate_row(type, x, x, n);
    }

    void turn_back(float * x) const {
        ggmlq_unrotate_row(type, x, x, n);
        turn_hadamard(x);
    }

    // What the type's encoder takes for one level of a rotated block.
    float step(const float * y, int64_t length) const {
        float x[GGMLQ_MAX_BLOCK_LENGTH];
        int8_t levels[GGMLQ_MAX_BLOCK_LENGTH];
        ggmlq_unrotate_row(type, y, x, length);
        if (type == GGMLQ_TYPE_TQ3_0) {
            ggmlq_block_tq3_0 block;
            ggmlq_encode_row(type, x, &block, length);
            return ggmlq_unpack_block_tq3_0(&block, levels);
        }
        ggmlq_block_planar3 block;
        ggmlq_encode_row(type, x, &block, length);
        return ggmlq_unpack_block_planar3(&block, levels);
    }
};
