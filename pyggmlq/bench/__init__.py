# SPDX-License-Identifier: MIT
"""Benchmarks: `pyggmlq bench cpu` and `pyggmlq compare`. How to run and read them: docs/BENCH.md.

    cases       what is measured; the only list
    data        the numbers that are attended to
    reference   builds and drives ggml/ggml_bench.cpp, which times llama.cpp's own CPU code
    cpu         measures: ours and llama.cpp's in turns
    record      what is kept: every sample
    stats       medians, ratios with an error, the Mann-Whitney test
    warnings    all of them
    report      tables
"""
