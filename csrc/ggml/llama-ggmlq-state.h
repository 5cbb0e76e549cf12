/* SPDX-License-Identifier: MIT
 *
 * ggmlq in llama: saved states. A file is restored whole or not at all, and rows that were saved with another cache type
 * are converted.
 */
#pragma once

#include "llama-io.h"
#include "llama-mmap.h"

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

// Restores what is left of `file` in two passes. The first, `read`, takes everything but the rows, which are only noted;
// if it throws, or leaves bytes over, what it changed is undone and the error is thrown again. The second stores the rows.
// Only if the file can't be read in that second pass, `remove` is called: rows have been overwritten. Returns the bytes read.
size_t ggmlq_llama_restore_file(llama_file & file, const std::function<size_t(llama_io_read_i &)> & read, const std::function<void()> & remove);

// Throws if the file doesn't go on with a string: llama_io_read_i::read_string allocates whatever length it finds.
void ggmlq_llama_require_string(llama_file & file);

// The first pass, as those who change memory in it see it. Outside of it these do nothing and return false.
bool ggmlq_llama_restoring();
void ggmlq_llama_on_failure(std::function<void()> undo);
bool ggmlq_llama_postpone(std::function<void()> action); // true: it will run before the second pass, or never

// Throws if a saved cache has more cells than the context's.
void ggmlq_llama_require_cells(uint32_t n_saved, uint32_t n_context);

// False, after an error message, for a cell that no writer makes: the cache takes position -1 for an empty cell.
bool ggmlq_llama_cell_is_sane(int32_t pos, uint32_t n_seq_id, uint32_t n_seq_max);

// Where the search for a free cell goes on after a whole cache of n cells was restored: behind the newest, as without the interruption.
uint32_t ggmlq_llama_head_behind_newest(uint32_t n, const std::function<int32_t(uint32_t)> & position);

// What decides how llama.cpp rotates a cache (attn_rot). A saved state doesn't say: it is taken to be of the same model,
// under the same LLAMA_ATTN_ROT_DISABLE.
struct ggmlq_llama_rotation {
    bool     active;        // the context's cache is rotated
    int32_t  head_size_all; // head size of all layers; not positive if they differ
    uint32_t head_size;
    bool     largest;       // by the largest power of two that divides the head size (K), otherwise by 64 (V)
    bool     k_is_v;        // a row is K and V at once
    bool     indexer;       // may belong to a lightning indexer, whose cache some architectures always rotate
};

// The rows of one layer were saved with type `type_saved`; reads them from `io`, behind that type, and stores them in `tensor` as its
// type: row i of `n` values goes to cell cells[i]. If n_cells_transposed isn't 0, the tensor (and the file) holds n rows of so
// many cells instead. False, after an error message, if that can't be done. `announce`: say what is converted.
bool ggmlq_llama_convert_rows(llama_io_read_i & io, const char * which, int32_t type_saved, ggml_tensor * tensor, uint32_t n,
    const std::vector<uint32_t> & cells, uint32_t n_cells_transposed, const ggmlq_llama_rotation & rotation, bool announce);

// The same for rows of DeepSeek-V4's compressed caches, whose size in the file, `row_size`, has been read too. `tensor` holds streams of
// n_cells rows each; the file holds the first n_rows of n_streams of them, from first_stream on.
bool ggmlq_llama_convert_compressed_rows(llama_io_read_i & io, int32_t type_saved, uint64_t row_size, ggml_tensor * tensor, uint32_t n_cells,
    uint32_t n_rows, uint32_t first_stream, uint32_t n_streams, const ggmlq_llama_rotation & rotation, bool announce);

// Whether ggml has both conversions of a type.
bool ggmlq_llama_can_convert(int32_t type);

// Size of the Walsh-Hadamard blocks that rows of keys are turned by; 0: none; -1: unknown. `active`: the keys are centered, and
// turned if `rotates`; others by llama.cpp's rule, which `rotation` and the type of the context's cache, `own`, tell.
int64_t ggmlq_llama_turn(bool active, bool rotates, ggml_type type, ggml_type own, const ggmlq_llama_rotation & rotation);

// What happens to the values of a row between its types: turned back, changed, turned. `after`: when all rows are stored.
struct ggmlq_llama_row_change {
    int64_t turn_from = 0;
    int64_t turn_to   = 0;
    std::function<void(size_t row, float * values)> change; // from several threads
    std::function<void()> after;
};

// As ggmlq_llama_convert_rows, for rows that aren't transposed, with these changes, also between equal types.
bool ggmlq_llama_change_rows(llama_io_read_i & io, int32_t type_saved, ggml_tensor * tensor, uint32_t n, const std::vector<uint32_t> & cells,
    const ggmlq_llama_row_change & change);

// V is transposed on one side only.
void ggmlq_llama_explain_transposition(bool saved_is_transposed);
