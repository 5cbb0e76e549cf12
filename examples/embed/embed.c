/* SPDX-License-Identifier: MIT
 *
 * A cache of 512-wide rows in planar3, without ggml and without an allocation: encoded one by one and in a batch, by two
 * threads, written to a file, read back, decoded, and asked for dot products while still encoded.
 *
 * C99, and C++. docs/EMBEDDING.md has the commands that build it.
 */
#define _POSIX_C_SOURCE 200112L

#include "ggmlq.h"

#include <pthread.h>
#include <stdio.h>

enum {
    TYPE      = GGMLQ_TYPE_PLANAR3,
    WIDTH     = 512,
    ROW_BYTES = 200, /* checked against ggmlq_row_bytes below */
    ROWS      = 1024
};

static float   values[ROWS][WIDTH];
static float   decoded[ROWS][WIDTH];
static uint8_t cache[ROWS][ROW_BYTES];
static uint8_t restored[ROWS][ROW_BYTES];
static int64_t indices[ROWS];

static int fail(const char * what, int error) {
    fprintf(stderr, "%s: %s\n", what, ggmlq_error_text(error));
    return 1;
}

/* Something like normally distributed: the sum of four uniform numbers. */
static void fill(void) {
    uint32_t z = 1;
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < WIDTH; ++j) {
            float sum = 0.0f;
            for (int k = 0; k < 4; ++k) {
                z = z*1664525u + 1013904223u;
                sum += (float) (z >> 8)/16777216.0f - 0.5f;
            }
            values[i][j] = sum;
        }
    }
}

/* Half of the rows, in one call. Rows of another thread lie beside them; no lock is needed. */
struct half {
    int first;
    int error;
};

static void * encode_half(void * argument) {
    struct half * half = (struct half *) argument;
    half->error = ggmlq_cpu_set_rows(TYPE, cache, ROW_BYTES, ROWS, values[half->first], indices + half->first, ROWS/2, WIDTH);
    return NULL;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s FILE\n", argv[0]);
        return 2;
    }
    const int64_t row_bytes = ggmlq_row_bytes(TYPE, WIDTH);
    if (row_bytes != ROW_BYTES) {
        return row_bytes < 0 ? fail("ggmlq_row_bytes", (int) row_bytes) : fail("ROW_BYTES", GGMLQ_ERROR_LENGTH);
    }
    if (ggmlq_cpu_level_active() == NULL) {
        return fail("GGMLQ_CPU", GGMLQ_ERROR_LEVEL);
    }
    printf("%d rows of %d values, %d bytes each instead of %d, CPU level %s\n",
        (int) ROWS, (int) WIDTH, (int) row_bytes, (int) (2*WIDTH), ggmlq_cpu_level_active());
    fill();
    for (int i = 0; i < ROWS; ++i) {
        indices[i] = i;
    }

    /* Two threads, a batch each. */
    struct half halves[2] = { { 0, 0 }, { ROWS/2, 0 } };
    pthread_t   threads[2];
    for (int i = 0; i < 2; ++i) {
        if (pthread_create(&threads[i], NULL, encode_half, &halves[i]) != 0) {
            fprintf(stderr, "found no thread to start\n");
            return 1;
        }
    }
    for (int i = 0; i < 2; ++i) {
        pthread_join(threads[i], NULL);
        if (halves[i].error) {
            return fail("ggmlq_cpu_set_rows", halves[i].error);
        }
    }

    /* One row at a time: the same bytes. */
    for (int i = 0; i < ROWS; ++i) {
        uint8_t   row[ROW_BYTES];
        const int error = ggmlq_cpu_encode_row(TYPE, values[i], row, WIDTH);
        if (error) {
            return fail("ggmlq_cpu_encode_row", error);
        }
        if (memcmp(row, cache[i], ROW_BYTES) != 0) {
            fprintf(stderr, "row %d differs from the batch\n", i);
            return 1;
        }
    }

    /* What doesn't fit is an error, and nothing is written. */
    printf("a row of 500 values: %s\n", ggmlq_error_text(ggmlq_cpu_encode_row(TYPE, values[0], restored[0], 500)));
    const int64_t outside = ROWS;
    printf("row %d of %d: %s\n", (int) ROWS, (int) ROWS,
        ggmlq_error_text(ggmlq_cpu_get_rows(TYPE, cache, ROW_BYTES, ROWS, decoded[0], &outside, 1, WIDTH)));

    /* Encoded rows are plain bytes, the same on every machine: store and restore them as they are. */
    FILE * file = fopen(argv[1], "w+b");
    if (file == NULL) {
        fprintf(stderr, "found no way to write %s\n", argv[1]);
        return 1;
    }
    const int stored = fwrite(cache, ROW_BYTES, ROWS, file) == ROWS && fseek(file, 0, SEEK_SET) == 0 &&
                       fread(restored, ROW_BYTES, ROWS, file) == ROWS;
    if (fclose(file) != 0 || !stored || memcmp(cache, restored, sizeof(cache)) != 0) {
        fprintf(stderr, "%s does not hold what was written\n", argv[1]);
        return 1;
    }
    for (int i = 0; i < ROWS; ++i) { /* a file may be damaged: a scale that isn't finite is found, not decoded */
        const int error = ggmlq_validate_row(TYPE, restored[i], WIDTH, NULL);
        if (error) {
            return fail("ggmlq_validate_row", error);
        }
    }

    const int error = ggmlq_cpu_get_rows(TYPE, restored, ROW_BYTES, ROWS, decoded[0], indices, ROWS, WIDTH);
    if (error) {
        return fail("ggmlq_cpu_get_rows", error);
    }
    double difference = 0.0, sum = 0.0;
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < WIDTH; ++j) {
            const double d = (double) decoded[i][j] - (double) values[i][j];
            difference += d*d;
            sum        += (double) values[i][j]*(double) values[i][j];
        }
    }
    printf("relative mean squared error %.4f\n", difference/sum);

    /* Dot products of a query with every row, none of them decoded. The query is rotated and rounded to 8 bits once. */
    static uint8_t query[1024];
    static float   scores[ROWS];
    const struct ggmlq_type_info * info       = ggmlq_type_info_get(TYPE);
    const struct ggmlq_type_info * query_info = info ? ggmlq_type_info_get(info->query_type) : NULL;
    if (query_info == NULL || ggmlq_row_bytes(query_info->id, WIDTH) > (int64_t) sizeof(query)) {
        return fail("query", GGMLQ_ERROR_LENGTH);
    }
    const int query_error = ggmlq_cpu_encode_query_row(TYPE, values[7], query, WIDTH);
    const int score_error = ggmlq_mul_mat_vec(TYPE, restored, ROW_BYTES, ROWS, query, 1, WIDTH, scores);
    if (query_error || score_error) {
        return fail("scores", query_error ? query_error : score_error);
    }
    int best = 0;
    for (int i = 1; i < ROWS; ++i) {
        if (scores[i] > scores[best]) {
            best = i;
        }
    }
    printf("the row nearest to row 7: %d\n", best);
    return best == 7 ? 0 : 1;
}
