// AMX's tiles in plain memory, so that what is written for them can be tested where there are none.
#pragma once
#ifndef __AMX_BF16__
#error "compiled without the tiles"
#endif
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace pretended {

inline thread_local uint8_t tiles[8][16][64];

inline void load(int tile, const void* from, size_t apart) {
  for (int row = 0; row < 16; row++) std::memcpy(tiles[tile][row], static_cast<const uint8_t*>(from) + row * apart, 64);
}

inline void store(int tile, void* to, size_t apart) {
  for (int row = 0; row < 16; row++) std::memcpy(static_cast<uint8_t*>(to) + row * apart, tiles[tile][row], 64);
}

inline void multiply(int sums, int left, int right) {
  for (int row = 0; row < 16; row++) {
    __m512 sum = _mm512_loadu_ps(tiles[sums][row]);
    for (int pair = 0; pair < 16; pair++) {
      int both;
      std::memcpy(&both, tiles[left][row] + 4 * pair, 4);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)_mm512_loadu_si512(tiles[right][pair]));
    }
    _mm512_storeu_ps(tiles[sums][row], sum);
  }
}

}  // namespace pretended

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd pretended::load
#define _tile_stored pretended::store
#define _tile_zero(tile) std::memset(pretended::tiles[tile], 0, sizeof *pretended::tiles)
#define _tile_dpbf16ps pretended::multiply
#define _tile_loadconfig(settings) ((void)(settings))
#define _tile_release()
#define syscall(...) 0
