/* Names of what is compiled once per instruction-set level. */
#ifndef NIB_CPU_AT_LEVEL_H
#define NIB_CPU_AT_LEVEL_H

#define NIB_PASTE_(a, b) a##b
#define NIB_PASTE(a, b)  NIB_PASTE_(a, b)
#ifndef NIB_LEVEL
#define NIB_LEVEL portable
#endif
/* A symbol of this level: NIB_AT_LEVEL(nib_formats_q4_k_) -> nib_formats_q4_k_avx2 */
#define NIB_AT_LEVEL(prefix) NIB_PASTE(prefix, NIB_LEVEL)

#endif
