/* SPDX-License-Identifier: MIT
 *
 * Blocks, bit planes and half precision as far as they need no pointer: what the C back ends share with Metal, where a pointer
 * names its address space. Before it come ggmlq_float_bits, ggmlq_float_from_bits and GGMLQ_DEVICE_TOO.
 */
#ifndef GGMLQ_VALUES_H
#define GGMLQ_VALUES_H

#define GGMLQ_TQ3_0_UNIT   (1.0f/64.0f)  /* value of one level at scale 1 */
#define GGMLQ_PLANAR3_UNIT (1.0f/512.0f)

/* Exact. Branch-free, so that loops over it vectorize; a subnormal half never passes through a subnormal float, so that
 * a processor set to flush those keeps it. */
static inline GGMLQ_DEVICE_TOO float ggmlq_half_to_float(uint16_t h) {
    const uint32_t sign     = (uint32_t) (h & 0x8000) << 16;
    const uint32_t rest     = (uint32_t) (h & 0x7fff) << 13;
    const uint32_t normal   = rest + 0x38000000 + (0x38000000 & (0 - (uint32_t) (rest >= 0x0f800000))); /* the latter: infinity, NaN */
    const uint32_t subnorm  = ggmlq_float_bits(ggmlq_float_from_bits(rest + 0x38800000) - ggmlq_float_from_bits(0x38800000));
    const uint32_t is_small = 0 - (uint32_t) (rest < 0x00800000); /* of ?: GCC makes a branch, as the subtraction might trap */
    return ggmlq_float_from_bits(sign | (subnorm & is_small) | (normal & ~is_small));
}

/* Nearest, ties to even; beyond 65504 saturates (also infinity); NaN stays NaN. */
static inline GGMLQ_DEVICE_TOO uint16_t ggmlq_half_from_float(float f) {
    const uint32_t bits = ggmlq_float_bits(f);
    const uint16_t sign = (uint16_t) (bits >> 16 & 0x8000);
    const uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) {
        return (uint16_t) (sign | 0x7e00);
    }
    if (rest >= 0x477fe000) { /* 65504 */
        return (uint16_t) (sign | 0x7bff);
    }
    if (rest < 0x38800000) {  /* 2^-14: the result is subnormal, an ulp of 0.5 is an ulp of the result */
        return (uint16_t) (sign | (ggmlq_float_bits(ggmlq_float_from_bits(rest) + 0.5f) - 0x3f000000));
    }
    return (uint16_t) (sign | (((rest + 0xfff + (rest >> 13 & 1)) >> 13) - (112 << 10)));
}

/* Where the 1-bit field of value j = 8k + b lies in the word s. */
static inline GGMLQ_DEVICE_TOO int ggmlq_sign_bit(int b, int k) {
    const int c = 4*(b % 4) + k;
    return 4*(c >> 1) + 2*(b / 4) + (c & 1);
}

/* Feedback of a head (ggmlq_encode_row_for_queries) of 32*planes values: halves, in blocks of 32 x 32 on and above the diagonal, block by block from left to
 * right, rows of blocks from top to bottom; in a block row by row. What lies in the blocks on the diagonal at or below it counts for nothing.
 * How many halves come before row of blocks `plane`; `plane` == `planes`: how many there are. */
static inline GGMLQ_DEVICE_TOO int ggmlq_feedback_before(int plane, int planes) { return 32*32*(plane*planes - plane*(plane - 1)/2); }

#endif
