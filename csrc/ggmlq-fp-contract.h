/* SPDX-License-Identifier: MIT
 *
 * Included first by files that promise the bits of docs/FORMAT.md: no product and sum is contracted into a fused one unless
 * the code says fma, whatever the surrounding build asks for. Known limit: clang with an explicit -ffp-contract=fast
 * ignores every pragma.
 */
#if defined(__clang__)
#    pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#    pragma GCC optimize ("fp-contract=off")
#elif defined(_MSC_VER)
#    pragma fp_contract (off)
#endif
