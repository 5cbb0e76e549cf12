/* SPDX-License-Identifier: MIT */
#include "llama-ggmlq-state.h"

#include "llama-ggmlq.h"
#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

// Hands out the next bytes of a saved state.
using ggmlq_llama_next = std::function<void(void *, size_t)>;

static constexpr size_t GGMLQ_LLAMA_BATCH_BYTES = 4*1024*1024;

class ggmlq_llama_restore : public llama_io_read_i {
public:
    explicit ggmlq_llama_restore(llama_file & file) : file(file), begin(file.tell()), end(file.size()), outer(current) {
        current = this;
    }

    ~ggmlq_llama_restore() override {
        current = outer;
    }

    void read(void * dst, size_t size) override {
        require(size);
        file.read_raw(dst, size);
    }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        read_later(size, [tensor, offset, size](const ggmlq_llama_next & next) {
            std::vector<uint8_t> bytes(std::min(size, GGMLQ_LLAMA_BATCH_BYTES));
            for (size_t done = 0; done < size; done += bytes.size()) {
                bytes.resize(std::min(size - done, bytes.size()));
                next(bytes.data(), bytes.size());
                ggml_backend_tensor_set(tensor, bytes.data(), offset + done, bytes.size());
            }
        });
    }

    size_t n_bytes() override {
        return file.tell() - begin;
    }

    // Skips `size` bytes, which `store` gets in the second pass.
    void read_later(size_t size, std::function<void(const ggmlq_llama_next &)> store) {
        require(size);
        const size_t at = file.tell();
        second_pass.push_back([this, at, store]() {
            file.seek(at, SEEK_SET);
            store([this](void * dst, size_t n) { file.read_raw(dst, n); });
        });
        file.seek(at + size, SEEK_SET);
    }

    void finish_first_pass() {
        if (file.tell() != end) {
            throw std::runtime_error(format("found %zu bytes behind the end of the state, wanted none", end - file.tell()));
        }
        current = outer;
    }

    void undo() {
        for (auto it = undos.rbegin(); it != undos.rend(); ++it) {
            (*it)();
        }
    }

    void run_second_pass() {
        for (const auto & action : postponed) {
            action();
        }
        for (const auto & action : second_pass) {
            action();
        }
        file.seek(end, SEEK_SET);
    }

    static thread_local ggmlq_llama_restore * current;

    std::string reason; // of a failure; upstream replaces the exception by one that says less

    std::vector<std::function<void()>> undos;
    std::vector<std::function<void()>> postponed;

private:
    void require(size_t size) {
        if (size > end - file.tell()) {
            reason = format("found %zu bytes to the end of the file, wanted %zu: it is truncated or damaged", end - file.tell(), size);
            throw std::runtime_error(reason);
        }
    }

    llama_file & file;
    const size_t begin;
    const size_t end;

    ggmlq_llama_restore * outer;

    std::vector<std::function<void()>> second_pass;
};

thread_local ggmlq_llama_restore * ggmlq_llama_restore::current = nullptr;

size_t ggmlq_llama_restore_file(llama_file & file, const std::function<size_t(llama_io_read_i &)> & read, const std::function<void()> & remove) {
    ggmlq_llama_restore io(file);
    size_t n_read = 0;
    try {
        n_read = read(io);
        io.finish_first_pass();
    } catch (const std::exception & error) {
        io.undo();
        throw std::runtime_error((io.reason.empty() ? error.what() : io.reason) + "; nothing was restored, the context is as it was");
    }
    try {
        io.run_second_pass();
    } catch (const std::exception & error) {
        remove();
        throw std::runtime_error(std::string(error.what()) + "; the file changed or failed while it was restored, what it was to replace is gone");
    }
    return n_read;
}

void ggmlq_llama_require_string(llama_file & file) {
    const size_t at = file.tell();
    const uint32_t size = file.size() - at < sizeof(uint32_t) ? UINT32_MAX : file.read_u32();
    if (size > file.size() - file.tell()) {
        throw std::runtime_error("found no name of an architecture in the file: it is truncated or damaged; nothing was restored, the context is as it was");
    }
    file.seek(at, SEEK_SET);
}

bool ggmlq_llama_restoring() {
    return ggmlq_llama_restore::current != nullptr;
}

void ggmlq_llama_on_failure(std::function<void()> undo) {
    if (ggmlq_llama_restoring()) {
        ggmlq_llama_restore::current->undos.push_back(std::move(undo));
    }
}

bool ggmlq_llama_postpone(std::function<void()> action) {
    if (ggmlq_llama_restoring()) {
        ggmlq_llama_restore::current->postponed.push_back(std::move(action));
    }
    return ggmlq_llama_restoring();
}

void ggmlq_llama_require_cells(uint32_t n_saved, uint32_t n_context) {
    if (n_saved > n_context) {
        throw std::runtime_error(format("found %u saved cells, wanted at most %u, the size of this context's cache", n_saved, n_context));
    }
}

bool ggmlq_llama_cell_is_sane(int32_t pos, uint32_t n_seq_id, uint32_t n_seq_max) {
    if (pos >= 0 && n_seq_id >= 1 && n_seq_id <= n_seq_max) {
        return true;
    }
    LLAMA_LOG_ERROR("%s: found a saved cell at position %d in %u sequences, wanted a position from 0 up and 1 to %u sequences\n",
        __func__, pos, n_seq_id, n_seq_max);
    return false;
}

uint32_t ggmlq_llama_head_behind_newest(uint32_t n, const std::function<int32_t(uint32_t)> & position) {
    uint32_t head = 0;
    int32_t  newest = -1;
    for (uint32_t i = 0; i < n; ++i) {
        if (position(i) >= newest) {
            newest = position(i);
            head   = i + 1;
        }
    }
    return head;
}

// The orthonormal Walsh-Hadamard transform in natural order, its own inverse: what llama_mul_mat_hadamard computes.
static void ggmlq_llama_hadamard(float * x, int64_t n) {
    for (int64_t half = 1; half < n; half *= 2) {
        for (int64_t i = 0; i < n; i += 2*half) {
            for (int64_t j = i; j < i + half; ++j) {
                const float a = x[j];
                const float b = x[j + half];
                x[j]        = a + b;
                x[j + half] = a - b;
            }
        }
    }
    const float scale = 1.0f/std::sqrt((float) n);
    for (int64_t i = 0; i < n; ++i) {
        x[i] *= scale;
    }
}

bool ggmlq_llama_can_convert(int32_t type) {
    if (type < 0 || type >= GGML_TYPE_COUNT || ggml_type_name((ggml_type) type) == nullptr) {
        return false;
    }
    const ggml_type_traits * traits = ggml_get_type_traits((ggml_type) type);
    return type == GGML_TYPE_F32 || (traits->to_float && traits->from_float_ref);
}

static void ggmlq_llama_turn_row(float * values, int64_t n, int64_t turn) {
    for (int64_t i = 0; turn > 0 && i < n; i += turn) {
        ggmlq_llama_hadamard(values + i, turn);
    }
}

static void ggmlq_llama_convert_row(ggml_type from, const uint8_t * src, ggml_type to, uint8_t * dst, float * values, int64_t n,
        const ggmlq_llama_row_change & change, size_t row) {
    if (from == GGML_TYPE_F32) {
        memcpy(values, src, n*sizeof(float));
    } else {
        ggml_get_type_traits(from)->to_float(src, values, n);
    }
    ggmlq_llama_turn_row(values, n, change.turn_from);
    if (change.change) {
        change.change(row, values);
    }
    ggmlq_llama_turn_row(values, n, change.turn_to);
    if (to == GGML_TYPE_F32) {
        memcpy(dst, values, n*sizeof(float));
    } else {
        ggml_get_type_traits(to)->from_float_ref(values, dst, n);
    }
}

// part(first, end) for parts of n rows, on all cores.
static void ggmlq_llama_in_parallel(size_t n, const std::function<void(size_t, size_t)> & part) {
    const size_t n_parts = std::max<size_t>(1, std::min<size_t>(n, std::thread::hardware_concurrency()));
    std::vector<std::thread> threads;
    threads.reserve(n_parts);
    for (size_t i = 1; i < n_parts; ++i) {
        const size_t first = n*i/n_parts;
        const size_t end   = n*(i + 1)/n_parts;
        try {
            threads.emplace_back(part, first, end);
        } catch (const std::system_error &) { // no more threads to have
            part(first, end);
        }
    }
    part(0, n/n_parts);
    for (std::thread & thread : threads) {
        thread.join();
    }
}

// Rows of `n` values; row i belongs to cell cells[i].
static void ggmlq_llama_store_rows(const ggmlq_llama_next & next, ggml_type from, ggml_tensor * tensor, int64_t n, const ggmlq_llama_row_change & change,
        const std::vector<uint32_t> & cells) {
    const size_t row_from = ggml_row_size(from, n);
    const size_t row_to   = ggml_row_size(tensor->type, n);
    const size_t n_batch  = std::min(cells.size(), std::max<size_t>(1, GGMLQ_LLAMA_BATCH_BYTES/std::max(row_from, row_to)));

    std::vector<uint8_t> src(n_batch*row_from);
    std::vector<uint8_t> dst(n_batch*row_to);

    for (size_t i0 = 0; i0 < cells.size(); i0 += n_batch) {
        const size_t n_rows = std::min(n_batch, cells.size() - i0);
        next(src.data(), n_rows*row_from);
        ggmlq_llama_in_parallel(n_rows, [&](size_t first, size_t end) {
            std::vector<float> values(n);
            for (size_t i = first; i < end; ++i) {
                ggmlq_llama_convert_row(from, &src[i*row_from], tensor->type, &dst[i*row_to], values.data(), n, change, i0 + i);
            }
        });
        for (size_t i = 0, run; i < n_rows; i += run) {
            for (run = 1; i + run < n_rows && cells[i0 + i + run] == cells[i0 + i] + run; ++run) {}
            ggml_backend_tensor_set(tensor, &dst[i*row_to], cells[i0 + i]*row_to, run*row_to);
        }
    }
    if (change.after) {
        change.after();
    }
}

// The same transposed: n rows, each with one value for every cell.
static void ggmlq_llama_store_transposed(const ggmlq_llama_next & next, ggml_type from, ggml_tensor * tensor, int64_t n, uint32_t n_cells, const std::vector<uint32_t> & cells) {
    const size_t size_to = ggml_type_size(tensor->type);

    std::vector<uint8_t> src(cells.size()*ggml_type_size(from));
    std::vector<uint8_t> dst(cells.size()*size_to);
    std::vector<float>   values(cells.size());

    for (int64_t row = 0; row < n; ++row) {
        next(src.data(), src.size());
        ggmlq_llama_convert_row(from, src.data(), tensor->type, dst.data(), values.data(), cells.size(), {}, 0);
        for (size_t i = 0, run; i < cells.size(); i += run) {
            for (run = 1; i + run < cells.size() && cells[i + run] == cells[i] + run; ++run) {}
            ggml_backend_tensor_set(tensor, &dst[i*size_to], ((size_t) row*n_cells + cells[i])*size_to, run*size_to);
        }
    }
}

// Size of the Walsh-Hadamard blocks to turn a row by on its way from a cache of type `from` to the context's of type `to`; 0: none;
// -1: unknown. Known is llama.cpp's rule for either type, and what it gave for the context's.
static int64_t ggmlq_llama_rotation_between(ggml_type from, ggml_type to, const ggmlq_llama_rotation & r) {
    const bool wanted_to = ggmlq_llama_wants_attn_rot(to, r.k_is_v);
    if (wanted_to == ggmlq_llama_wants_attn_rot(from, r.k_is_v)) {
        return 0;
    }
    const bool rotates = ggmlq_llama_can_attn_rot(r.head_size_all, r.head_size);
    if (r.active != (wanted_to && rotates)) {
        return r.indexer && r.active ? 0 : -1; // rotated whatever its type, as the saved one; or by a rule that isn't known here
    }
    if (r.indexer && r.active) {
        return -1;
    }
    if (!rotates) {
        return 0;
    }
    int64_t size = 64;
    while (r.largest && r.head_size_all % (2*size) == 0) {
        size *= 2;
    }
    return size;
}

// Size of the blocks that keys of a head are turned by, where they are.
static int64_t ggmlq_llama_block_of_keys(const ggmlq_llama_rotation & r) {
    int64_t size = 64;
    while (r.head_size_all % (2*size) == 0) {
        size *= 2;
    }
    return size;
}

int64_t ggmlq_llama_turn(bool active, bool rotates, ggml_type type, ggml_type own, const ggmlq_llama_rotation & r) {
    const bool can = ggmlq_llama_can_attn_rot(r.head_size_all, r.head_size);
    if (active) {
        return !rotates ? 0 : can ? ggmlq_llama_block_of_keys(r) : -1;
    }
    if (r.indexer || r.active != (can && ggmlq_llama_wants_attn_rot(own, r.k_is_v))) {
        return -1; // a rule that isn't known here
    }
    return can && ggmlq_llama_wants_attn_rot(type, r.k_is_v) ? ggmlq_llama_block_of_keys(r) : 0;
}

// row_size_read: the size of a row, if it isn't still to be read. `change`: what is known to happen between the types; otherwise it is found here.
static bool ggmlq_llama_convert(llama_io_read_i & io, const char * which, int32_t type_saved, const uint64_t * row_size_read, ggml_tensor * tensor, uint32_t n,
        const std::vector<uint32_t> & cells, uint32_t n_cells_transposed, const ggmlq_llama_rotation & rotation, bool announce,
        const ggmlq_llama_row_change * change = nullptr) {
    const ggml_type to = tensor->type;
    if (!ggmlq_llama_can_convert(type_saved) || !ggmlq_llama_can_convert(to)) {
        LLAMA_LOG_ERROR("%s: the saved %s cache is of type %s, this context's of type %s: rows of these types can't be converted\n", __func__, which,
            ggmlq_llama_can_convert(type_saved) ? ggml_type_name((ggml_type) type_saved) : std::to_string(type_saved).c_str(), ggml_type_name(to));
        return false;
    }
    const ggml_type from = (ggml_type) type_saved;
    const auto refuse = [&](const std::string & reason) {
        LLAMA_LOG_ERROR("ggmlq_llama_convert: the saved %s cache is %s, this context's is %s: %s\n",
            which, ggml_type_name(from), ggml_type_name(to), reason.c_str());
        return false;
    };

    std::function<void(const ggmlq_llama_next &)> store;
    size_t size;
    if (n_cells_transposed) {
        uint32_t size_el;
        uint32_t n_saved;
        io.read(&size_el, sizeof(size_el));
        io.read(&n_saved, sizeof(n_saved));
        if (ggml_is_quantized(from) || ggml_is_quantized(to)) {
            return refuse("a transposed V cache (flash attention off) can't be quantized");
        }
        if (size_el != ggml_type_size(from) || n_saved != n) {
            return refuse(format("found rows of %u values of %u bytes, wanted %u of %zu", n_saved, size_el, n, ggml_type_size(from)));
        }
        size = (size_t) n*cells.size()*size_el;
        store = [=](const ggmlq_llama_next & next) { ggmlq_llama_store_transposed(next, from, tensor, n, n_cells_transposed, cells); };
    } else {
        uint64_t row_size;
        if (row_size_read) {
            row_size = *row_size_read;
        } else {
            io.read(&row_size, sizeof(row_size));
        }
        if (n % ggml_blck_size(from) != 0 || row_size != ggml_row_size(from, n)) {
            return refuse(format("found rows of %zu bytes, wanted %u values", (size_t) row_size, n));
        }
        const int64_t turn = change ? 0 : ggmlq_llama_rotation_between(from, to, rotation);
        if (turn < 0) {
            return refuse("the file doesn't say whether its rows are rotated, and for this model it isn't known: restore it with the type it was saved with");
        }
        size = cells.size()*row_size;
        ggmlq_llama_row_change turned;
        turned.turn_from = turn;
        store = [=, all = change ? *change : turned](const ggmlq_llama_next & next) { ggmlq_llama_store_rows(next, from, tensor, n, all, cells); };
    }

    if (announce) {
        LLAMA_LOG_WARN("%s: the saved %s cache is %s, this context's is %s: converting\n", __func__, which, ggml_type_name(from), ggml_type_name(to));
    }
    if (auto * restore = dynamic_cast<ggmlq_llama_restore *>(&io)) {
        restore->read_later(size, store);
    } else {
        store([&io](void * dst, size_t n_bytes) { io.read(dst, n_bytes); });
    }
    return true;
}

bool ggmlq_llama_convert_rows(llama_io_read_i & io, const char * which, int32_t type_saved, ggml_tensor * tensor, uint32_t n,
        const std::vector<uint32_t> & cells, uint32_t n_cells_transposed, const ggmlq_llama_rotation & rotation, bool announce) {
    return ggmlq_llama_convert(io, which, type_saved, nullptr, tensor, n, cells, n_cells_transposed, rotation, announce);
}

bool ggmlq_llama_change_rows(llama_io_read_i & io, int32_t type_saved, ggml_tensor * tensor, uint32_t n, const std::vector<uint32_t> & cells,
        const ggmlq_llama_row_change & change) {
    return ggmlq_llama_convert(io, "K", type_saved, nullptr, tensor, n, cells, 0, {}, false, &change);
}

bool ggmlq_llama_convert_compressed_rows(llama_io_read_i & io, int32_t type_saved, uint64_t row_size, ggml_tensor * tensor, uint32_t n_cells,
        uint32_t n_rows, uint32_t first_stream, uint32_t n_streams, const ggmlq_llama_rotation & rotation, bool announce) {
    std::vector<uint32_t> cells;
    cells.reserve((size_t) n_rows*n_streams);
    for (uint32_t s = first_stream; s < first_stream + n_streams; ++s) {
        for (uint32_t i = 0; i < n_rows; ++i) {
            cells.push_back(s*n_cells + i);
        }
    }
    return ggmlq_llama_convert(io, "compressed K", type_saved, &row_size, tensor, (uint32_t) tensor->ne[0], cells, 0, rotation, announce);
}

void ggmlq_llama_explain_transposition(bool saved_is_transposed) {
    LLAMA_LOG_ERROR("%s: the saved V cache %s transposed, this context's %s: restore it with flash attention %s, as it was saved\n", __func__,
        saved_is_transposed ? "is" : "isn't", saved_is_transposed ? "isn't" : "is", saved_is_transposed ? "off" : "on");
}
