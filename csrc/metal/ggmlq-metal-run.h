/* SPDX-License-Identifier: MIT
 *
 * Who runs a plan: ggmlq-metal-device.mm on a Mac, an emulator in the tests.
 */
#ifndef GGMLQ_METAL_RUN_H
#define GGMLQ_METAL_RUN_H

#include "ggmlq-metal-plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 0 or GGMLQ_ERROR_DEVICE. Operands are addresses that ggmlq_cuda_allocate gave, or inside of what it gave; NULL: absent. */
int ggmlq_metal_run(const struct ggmlq_metal_launch * launch, const void * const * operands, void * stream);

/* Why the last GGMLQ_ERROR_DEVICE of this thread; never NULL. */
const char * ggmlq_metal_device_error(void);

#ifdef __cplusplus
}
#endif

#endif
