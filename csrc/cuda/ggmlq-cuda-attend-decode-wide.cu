/* SPDX-License-Identifier: MIT
 *
 * Instances of the wide kernel: columns/8, fragments of 16 tokens a warp, blocks on a multiprocessor, K as halves. Measured,
 * docs/CUDA-ATTENTION.md.
 */
#include "ggmlq-cuda-deps.cuh"

#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA)

#include "ggmlq-cuda-attend-wide.cuh"

const ggmlq_decode_instance * ggmlq_decode_instances_wide(int i) {
    enum { T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3 };
    static const ggmlq_decode_instance instances[] = {
        ggmlq_wide_make_instance<T, T, 4, 2, 2, true>(),  ggmlq_wide_make_instance<T, P, 4, 2, 2, true>(),
        ggmlq_wide_make_instance<P, P, 4, 2, 2, false>(), ggmlq_wide_make_instance<P, T, 4, 2, 2, false>(),
        ggmlq_lean_make_instance<T, T>(), ggmlq_lean_make_instance<T, P>(), ggmlq_lean_make_instance<P, P>(), ggmlq_lean_make_instance<P, T>(),
    };
    return i < (int) (sizeof(instances)/sizeof(instances[0])) ? &instances[i] : NULL;
}

#endif
