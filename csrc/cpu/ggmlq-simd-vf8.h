/* SPDX-License-Identifier: MIT
 *
 * For levels whose widest vector has 8 lanes: vf and vi are v8 and v8i.
 */
#ifndef GGMLQ_SIMD_VF8_H
#define GGMLQ_SIMD_VF8_H

enum { VL = 8 };
typedef v8  vf;
typedef v8i vi;
#define vf_load        v8_load
#define vf_store       v8_store
#define vf_set1        v8_set1
#define vf_add         v8_add
#define vf_sub         v8_sub
#define vf_mul         v8_mul
#define vf_div         v8_div
#define vf_fma         v8_fma
#define vf_max         v8_max
#define vf_min         v8_min
#define vf_round       v8_round
#define vf_abs         v8_abs
#define vf_where_equal v8_where_equal
#define vf_from_int    v8_from_int
#define vf_load_i8     v8_load_i8
#define vf_load_half   v8_load_half
#define vf_store_i16   v8_store_i16
#define vf_pow2        v8_pow2
#define vf_hsum        v8_hsum
#define vf_hmax        v8_hmax
#define vf_reverse     v8_reverse

#endif
