/* SPDX-License-Identifier: MIT
 *
 * Lean instances for 32 columns, whose parts a second kernel adds up.
 */
#include "ggmlq-cuda-deps.cuh"

#if !defined(GGMLQ_HIP) && !defined(GGMLQ_MUSA)

#include "ggmlq-cuda-attend-wide.cuh"

const ggmlq_decode_instance * ggmlq_decode_instances_wide(int i) {
    enum { T = GGMLQ_TYPE_TQ3_0, P = GGMLQ_TYPE_PLANAR3 };
    static const ggmlq_decode_instance instances[] = {
        ggmlq_wide_make_instance<T, T, false>(), ggmlq_wide_make_instance<T, P, false>(), ggmlq_wide_make_instance<P, P, false>(), ggmlq_wide_make_instance<P, T, false>(),
        ggmlq_wide_make_instance<T, T, true>(),  ggmlq_wide_make_instance<T, P, true>(),  ggmlq_wide_make_instance<P, P, true>(),  ggmlq_wide_make_instance<P, T, true>(),
    };
    return i < (int) (sizeof(instances)/sizeof(instances[0])) ? &instances[i] : NULL;
}

#endif
