/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: by how much the values of a key that are rounded later take up what rounding earlier ones does to products with the model's
 * queries (docs/CENTERING.md). The rounding itself is ggmlq_encode_row_for_queries, a part of the store.
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
    // (attn_rot), 0 if it doesn't; `square`: of queries, as attention gets them but for that rotation, the mean square of each value, the
    // same for both of a RoPE pair, which positions turn into each other. Values have nothing to do with each other over many positions.
    ggmlq_llama_round(int type, int64_t head_size, int64_t hadamard, std::vector<double> square) :
        type(type), n(head_size), hadamard(hadamard), square(std::move(square)), lazy(std::make_shared<once_made>()) {}

    // Memory that many calls can use one after the other, since a system may take longer to give it than the matrix takes.
    struct scratch { std::vector<float> half, row; std::vector<double> rest; };

    // What ggmlq_encode_row_for_queries wants: ggmlq_feedback_values(head size) halves. Up to milliseconds.
    void feedback(uint16_t * result, scratch & memory) const {
        // M is the moment of the rotated queries, and a tenth of its mean for queries of other texts, which look elsewhere, too. With M = V D V^T, V
        // unit upper triangular, an error e of value i is undone, as far as the later values can, by moving those by e times the row i of V^-1.
        // The rotation T is orthogonal, so M^-1 = T diag(1/(square + a tenth of the mean)) T^T = V^-T D^-1 V^-1: two rotations of all rows, and
        // elimination without pivoting finds the rows of V^-1.
        double mean = 0;
        for (const double value : square) {
            mean += value/n;
        }
        auto & half = memory.half;
        auto & row  = memory.row;
        auto & rest = memory.rest; // below the diagonal: factors
        half.assign(n*n, 0.0f);
        row.resize(n);
        rest.resize(n*n);
        std::fill_n(result, ggmlq_feedback_values(n), (uint16_t) 0);
        for (int64_t k = 0; k < n; ++k) {
            half[k*n + k] = (float) (1.0/(mean > 0 ? square[k]/mean + 0.1 : 1.0)); // times the mean, which changes nothing
            turn(&half[k*n]);
        }
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t k = 0; k < n; ++k) {
                row[k] = half[k*n + i];
            }
            turn(row.data());
            std::copy(row.begin() + i, row.end(), &rest[i*n + i]);
        }
        for (int64_t i = 0; i < n; ++i) {
            double * const pivot = &rest[i*n];
            take_off(&rest[0], i);
            const int64_t plane = i/GGMLQ_PLANE;
            uint16_t * const to = result + ggmlq_feedback_before((int) plane, (int) (n/GGMLQ_PLANE)) + GGMLQ_PLANE*(i % GGMLQ_PLANE);
            for (int64_t j = i + 1; j < n; ++j) {
                const double factor = pivot[j]/pivot[i];
                to[GGMLQ_PLANE*GGMLQ_PLANE*(j/GGMLQ_PLANE - plane) + j % GGMLQ_PLANE] = ggmlq_half_from_float((float) factor);
                rest[j*n + i] = factor;
            }
        }
    }

    // What comes back of one key of one head, before llama.cpp's rotation and without it, if it is stored so. x and y may be the same. A key that the
    // type has no levels for is left as it is.
    void operator()(const float * x, float * y) const {
        std::call_once(lazy->once, [this] {
            scratch memory;
            lazy->feedback.resize(ggmlq_feedback_values(n));
            feedback(lazy->feedback.data(), memory);
        });
        float rest[GGMLQ_ATTEND_MAX_HEAD_SIZE];
        uint8_t row[GGMLQ_ATTEND_MAX_HEAD_SIZE];
        std::copy(x, x + n, rest);
        turn_hadamard(rest);
        if (ggmlq_encode_row_for_queries(type, rest, lazy->feedback.data(), row, n) != GGMLQ_OK || ggmlq_validate_row(type, row, n, nullptr) != GGMLQ_OK ||
            ggmlq_decode_row(type, row, rest, n) != GGMLQ_OK) {
            std::copy(x, x + n, y);
            return;
        }
        turn_hadamard(rest);
        std::copy(rest, rest + n, y);
    }

private:
    int     type = 0;
    int64_t n = 0, hadamard = 0;
    std::vector<double> square;

    struct once_made { std::once_flag once; std::vector<uint16_t> feedback; };
    std::shared_ptr<once_made> lazy;

    // From row i of n x n values, all rows before it, each times its factor of this row. Four at a time, since a row is read and written again for each.
    void take_off(double * rest, int64_t i) const {
        double * const row = rest + i*n;
        int64_t j = 0;
        for (; j + 4 <= i; j += 4) {
            const double * const p = rest + j*n;
            const double a = row[j], b = row[j + 1], c = row[j + 2], d = row[j + 3];
            for (int64_t k = i; k < n; ++k) {
                row[k] = row[k] - a*p[k] - b*p[n + k] - c*p[2*n + k] - d*p[3*n + k];
            }
        }
        for (; j < i; ++j) {
            const double factor = row[j];
            for (int64_t k = i; k < n; ++k) {
                row[k] -= factor*rest[j*n + k];
            }
        }
    }

    // llama.cpp's rotation, which is its own inverse.
    void turn_hadamard(float * x) const {
        for (int64_t half = 1; half < hadamard; half *= 2) {
            for (int64_t first = 0; first < n; first += 2*half) {
                for (int64_t i = first; i < first + half; ++i) {
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
};
