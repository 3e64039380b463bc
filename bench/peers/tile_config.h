// GCC before 12.4 and 13.3 (its bug 114098) tells the optimizer that _tile_loadconfig reads 8 bytes of its 64. The
// stores of the others vanish, and the first AMX product of llama.cpp ends the process. This says it right.
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 14
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
