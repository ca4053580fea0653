// Loss and gradients of a VDSR with 64 filters in bf16, on the matrix tiles (AMX) of recent Xeons or, compiled without
// -mamx-bf16, by the dot products (AVX512-BF16) of recent Ryzens and EPYCs.
//
// A patch goes forward and back by itself, so that its features stay in the core's caches. Features are pixels × 64
// channels in bf16, a picture's rows one after the other, `pitch` pixels apart: beyond a row's end lie zeros, above the
// first and below the last row too, so that a neighbour is always the same number of pixels away and borders need no
// code of their own. A 3×3 convolution is then nine products of shifted matrices, summed in float.
#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace {

using bf16 = uint16_t;
constexpr int C = 64;              // channels
constexpr int TAPS = 9;            // of a 3×3 filter, in rows
constexpr int TILE = 16;           // rows of a tile; a row has 16 floats or 32 bf16
constexpr int BLOCK = 2 * TILE;    // pixels, and channels, worked on together: 2×2 tiles of sums
constexpr int LEAF = TILE * BLOCK; // bf16 of a tile
constexpr int HALF = TAPS * 2 * 2 * LEAF;  // packed weights for 32 outputs: taps × halves of the inputs × 2 tiles
constexpr int SPAN = 8 * BLOCK;    // pixels whose features stay in the first-level cache for all nine taps
constexpr int OUTER = TAPS * C;    // weights of an outer layer, and of one output of a hidden one
constexpr int HIDDEN = C * OUTER;  // weights of a hidden layer

struct Shape {
  int height, width, pitch, pixels, margin, stride;
  int shifts[TAPS];  // from a pixel to what each tap sees
  Shape(int h, int w) : height(h), width(w) {
    pitch = (w + 2) & ~1;                                    // even, with at least one column of zeros
    pixels = (h * pitch + BLOCK - 1) / BLOCK * BLOCK;        // in whole blocks
    margin = (pitch + 1 + BLOCK - 1) / BLOCK * BLOCK;        // a row and a pixel on either side
    stride = pixels + 2 * margin;                            // from patch to patch
    for (int tap = 0; tap < TAPS; tap++) shifts[tap] = (tap / 3 - 1) * pitch + tap % 3 - 1;
  }
};

template <class T>
struct Array {  // zeroed, on a cache line
  T* data;
  explicit Array(size_t n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64))) {
    if (!data) throw std::bad_alloc();
    std::memset(data, 0, n * sizeof(T));
  }
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  operator T*() const { return data; }
};

// 32 or 16 rows of a left matrix against pairs of rows of a right one
struct Term {
  const bf16 *left, *right;
};

#ifdef __AMX_BF16__

struct Tiles {  // eight of 16 × 64 bytes: 0–3 hold sums, 4–5 the left matrix, 6–7 the right one
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } c;
    for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
    _tile_loadconfig(&c);
  }
  ~Tiles() { _tile_release(); }
};

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// 32 × 32 sums, rows `apart` apart: set to, or with ADD raised by, the terms' products. Of a left matrix rows are `left`
// apart, of a right one tiles `right`.
template <bool ADD, class At>
inline void multiply(float* sums, size_t apart, int terms, size_t left, size_t right, const At& at) {
  if (ADD) {
    _tile_loadd(0, sums, 4 * apart);
    _tile_loadd(1, sums + TILE, 4 * apart);
    _tile_loadd(2, sums + TILE * apart, 4 * apart);
    _tile_loadd(3, sums + TILE * apart + TILE, 4 * apart);
  } else {
    zero_sums();
  }
  for (int t = 0; t < terms; t++) {
    const Term term = at(t);
    _tile_loadd(6, term.right, 64);
    _tile_loadd(4, term.left, 2 * left);
    _tile_loadd(7, term.right + right, 64);
    _tile_loadd(5, term.left + TILE * left, 2 * left);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 4 * apart);
  _tile_stored(1, sums + TILE, 4 * apart);
  _tile_stored(2, sums + TILE * apart, 4 * apart);
  _tile_stored(3, sums + TILE * apart + TILE, 4 * apart);
}

// 16 × 16 sums
template <class At>
inline void multiply_16(float* sums, int terms, size_t left, const At& at) {
  _tile_zero(0);
  for (int t = 0; t < terms; t++) {
    const Term term = at(t);
    _tile_loadd(4, term.left, 2 * left);
    _tile_loadd(6, term.right, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, sums, 4 * TILE);
}

// 16 × 64 sums
template <class At>
inline void multiply_64(float* sums, int terms, size_t left, size_t right, const At& at) {
  zero_sums();
  for (int t = 0; t < terms; t++) {
    const Term term = at(t);
    _tile_loadd(4, term.left, 2 * left);
    _tile_loadd(6, term.right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, term.right + right, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, term.right + 2 * right, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, term.right + 3 * right, 64);
    _tile_dpbf16ps(3, 4, 7);
  }
  _tile_stored(0, sums, 4 * C);
  _tile_stored(1, sums + TILE, 4 * C);
  _tile_stored(2, sums + 2 * TILE, 4 * C);
  _tile_stored(3, sums + 3 * TILE, 4 * C);
}

#else

struct Tiles {  // nothing to set up
  Tiles() {}
};

// So many rows of the sums from `row` on, so many tiles wide, kept in registers for all terms
template <int ROWS, int TILES, bool ADD, class At>
inline void strip(float* sums, size_t apart, int row, int terms, size_t left, size_t right, const At& at) {
  __m512 sum[ROWS][TILES];
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < TILES; j++)
      sum[i][j] = ADD ? _mm512_loadu_ps(sums + (row + i) * apart + j * TILE) : _mm512_setzero_ps();
  for (int t = 0; t < terms; t++) {
    const Term term = at(t);
    const bf16* rows = term.left + row * left;
    for (int pair = 0; pair < TILE; pair++) {
      __m512bh columns[TILES];
      for (int j = 0; j < TILES; j++)
        columns[j] = (__m512bh)_mm512_loadu_si512(term.right + j * right + pair * BLOCK);
      for (int i = 0; i < ROWS; i++) {
        int both;
        std::memcpy(&both, rows + i * left + 2 * pair, 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
        for (int j = 0; j < TILES; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], x, columns[j]);
      }
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < TILES; j++) _mm512_storeu_ps(sums + (row + i) * apart + j * TILE, sum[i][j]);
}

template <bool ADD, class At>
inline void multiply(float* sums, size_t apart, int terms, size_t left, size_t right, const At& at) {
  for (int row = 0; row < BLOCK; row += 8) strip<8, 2, ADD>(sums, apart, row, terms, left, right, at);
}

template <class At>
inline void multiply_16(float* sums, int terms, size_t left, const At& at) {
  strip<16, 1, false>(sums, TILE, 0, terms, left, 0, at);
}

template <class At>
inline void multiply_64(float* sums, int terms, size_t left, size_t right, const At& at) {
  for (int row = 0; row < TILE; row += 4) strip<4, 4, false>(sums, C, row, terms, left, right, at);
}

#endif

inline bf16 round(float x) { return bf16(_mm_cvtsi128_si32((__m128i)_mm_cvtneps_pbh(_mm_set_ss(x)))); }

inline __m512i round_32(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// 16 × 16 dwords, rows `from` apart in dwords, transposed to rows `to` apart
inline void transpose(const bf16* in, size_t from, bf16* out, size_t to) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(in + 2 * from * i);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    _mm512_storeu_si512(out + 2 * to * i, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(out + 2 * to * (i + 8), _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
  }
}

// Two rows of 32 as 32 pairs: what a right matrix wants of two consecutive rows
inline void interleave(__m512i first, __m512i second, bf16* out, size_t apart) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_storeu_si512(out, _mm512_permutex2var_epi16(first, low, second));
  _mm512_storeu_si512(out + apart, _mm512_permutex2var_epi16(first, high, second));
}

// (out, tap, in) weights for the forward pass: per half of the outputs, tap and half of the inputs, two tiles
void pack_forward(const bf16* w, bf16* packed) {
  for (int half = 0; half < 2; half++)
    for (int tap = 0; tap < TAPS; tap++)
      for (int k = 0; k < 2; k++)
        for (int n = 0; n < 2; n++, packed += LEAF)
          transpose(w + ((half * 2 + n) * TILE * TAPS + tap) * C + k * BLOCK, TAPS * C / 2, packed, TILE);
}

// The same for the gradient: inputs and outputs change places, the filter is turned by 180°
void pack_backward(const bf16* w, bf16* packed) {
  for (int half = 0; half < 2; half++)
    for (int tap = 0; tap < TAPS; tap++)
      for (int k = 0; k < 2; k++, packed += 2 * LEAF)
        for (int r = 0; r < TILE; r++) {
          const bf16* row = w + ((k * BLOCK + 2 * r) * TAPS + TAPS - 1 - tap) * C + half * BLOCK;
          interleave(_mm512_loadu_si512(row), _mm512_loadu_si512(row + TAPS * C), packed + r * BLOCK, LEAF);
        }
}

// What becomes of 32 sums for a pixel: bias and ReLU, or the gradient through an earlier ReLU
struct Rectify {
  const float* bias;
  __m512i operator()(const float* sums, int, int half) const {
    const float* b = bias + half * BLOCK;
    const __m512 zero = _mm512_setzero_ps();  // first: of a NaN and another, max is the second
    return round_32(_mm512_max_ps(zero, _mm512_add_ps(_mm512_load_ps(sums), _mm512_loadu_ps(b))),
                    _mm512_max_ps(zero, _mm512_add_ps(_mm512_load_ps(sums + 16), _mm512_loadu_ps(b + 16))));
  }
};

struct Masked {
  const bf16* features;  // of the layer's input: those that ReLU left at zero pass nothing on
  __m512i operator()(const float* sums, int pixel, int half) const {
    const __m512i x = _mm512_loadu_si512(features + pixel * C + half * BLOCK);
    const __m512i gradient = round_32(_mm512_load_ps(sums), _mm512_load_ps(sums + 16));
    return _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(x, x), gradient);
  }
};

template <class Finish>
inline void finish(const float* sums, int pixel, int half, bf16* out, const Finish& f) {
  for (int i = 0; i < BLOCK; i++)
    _mm512_storeu_si512(out + (pixel + i) * C + half * BLOCK, f(sums + i * BLOCK, pixel + i, half));
}

// Zeros beyond the rows' ends and below the last row
void clear(bf16* features, const Shape& s) {
  for (int y = 0; y < s.height; y++)
    std::memset(features + (y * s.pitch + s.width) * C, 0, (s.pitch - s.width) * C * sizeof(bf16));
  std::memset(features + s.height * s.pitch * C, 0, (s.pixels - s.height * s.pitch) * C * sizeof(bf16));
}

// 64 → 64 channels, 3×3
template <class Finish>
void convolve(const bf16* in, const bf16* packed, bf16* out, const Shape& s, const Finish& f) {
  alignas(64) float sums[BLOCK * BLOCK];
  for (int half = 0; half < 2; half++)
    for (int p = 0; p < s.pixels; p += BLOCK) {
      multiply<false>(sums, BLOCK, 2 * TAPS, C, LEAF, [&](int t) {
        return Term{in + (p + s.shifts[t / 2]) * C + t % 2 * BLOCK, packed + half * HALF + t * 2 * LEAF};
      });
      finish(sums, p, half, out, f);
    }
  clear(out, s);
}

// 1 → 64 channels: a pixel's nine neighbours are one row of the left matrix
template <class Finish>
void spread(const bf16* plane, const bf16* packed, bf16* out, const Shape& s, const Finish& f) {
  alignas(64) float sums[BLOCK * BLOCK];
  alignas(64) bf16 rows[BLOCK * BLOCK] = {};
  for (int p = 0; p < s.pixels; p += BLOCK) {
    for (int i = 0; i < BLOCK; i++)
      for (int y = 0; y < 3; y++) std::memcpy(rows + i * BLOCK + 3 * y, plane + p + i + s.shifts[3 * y], 8);
    for (int half = 0; half < 2; half++) {
      multiply<false>(sums, BLOCK, 1, BLOCK, LEAF, [&](int) { return Term{rows, packed + half * 2 * LEAF}; });
      finish(sums, p, half, out, f);
    }
  }
  clear(out, s);
}

// Weights of an outer layer as `spread` wants them; `turned` by 180° for a gradient
void pack_spread(const float* w, size_t of_channel, size_t of_tap, bool turned, bf16* packed) {
  for (int c = 0; c < C; c++)
    for (int tap = 0; tap < TAPS; tap++)
      packed[c / TILE * LEAF + tap / 2 * BLOCK + c % TILE * 2 + tap % 2] =
          round(w[c * of_channel + (turned ? TAPS - 1 - tap : tap) * of_tap]);
}

// 64 → 1 channel: every pixel's product with each tap's weights, then gathered from the neighbours
void gather(const bf16* in, const bf16* packed, float bias, float* out, const Shape& s,
            float* by_tap) {
  for (int p = -s.margin; p < s.pixels + s.margin; p += TILE)
    multiply_16(by_tap + (p + s.margin) * TILE, 2, C, [&](int k) {
      return Term{in + p * C + k * BLOCK, packed + k * LEAF};
    });
  for (int y = 0; y < s.height; y++)
    for (int x = 0; x < s.width; x++) {
      const float* at = by_tap + (s.margin + y * s.pitch + x) * TILE;
      float sum = bias;
      for (int tap = 0; tap < TAPS; tap++) sum += at[s.shifts[tap] * TILE + tap];
      out[y * s.width + x] = sum;
    }
}

// The last layer's (tap, in) weights as `gather` wants them
void pack_gather(const float* w, bf16* packed) {
  for (int tap = 0; tap < TAPS; tap++)
    for (int c = 0; c < C; c++)
      packed[c / BLOCK * LEAF + c % BLOCK / 2 * BLOCK + tap * 2 + c % 2] = round(w[tap * C + c]);
}

// Pairs of consecutive pixels, as a right matrix: 4 tiles of channels, `apart` pixels from one to the next, each of
// (pairs, 16, 2)
void pair_pixels(const bf16* in, int pixels, bf16* out, int apart) {
  for (int tile = 0; tile < 4; tile += 2)
    for (int p = 0; p < pixels; p += 2) {
      const bf16* row = in + p * C + tile * TILE;
      bf16* pairs = out + (size_t(tile) * apart + p) * TILE;
      interleave(_mm512_loadu_si512(row), _mm512_loadu_si512(row + C), pairs, size_t(apart) * TILE);
    }
}

// Channels × pixels, from the pairs of pixels
void channels_first(const bf16* pairs, int pixels, bf16* out) {
  for (int tile = 0; tile < 4; tile++)
    for (int p = 0; p < pixels; p += BLOCK)
      transpose(pairs + (size_t(tile) * pixels + p) * TILE, TILE, out + size_t(tile) * TILE * pixels + p, pixels / 2);
}

// Add to (out, tap, in) the gradient of a layer's weights. rows: the gradient of its output, channels × pixels; even,
// odd: pairs of its input's pixels from −margin and from 1 − margin on
void correlate(const bf16* rows, const bf16* even, const bf16* odd, float* grad, const Shape& s) {
  for (int i = 0; i < 4; i += 2)
    for (int j = 0; j < 4; j += 2)
      for (int p0 = 0; p0 < s.pixels; p0 += SPAN)
        for (int tap = 0; tap < TAPS; tap++) {
          float* g = grad + (i * TILE * TAPS + tap) * C + j * TILE;
          const int first = s.margin + s.shifts[tap];
          const bf16* b = (first % 2 ? odd : even) + (size_t(j) * s.stride + (first & ~1)) * TILE;
          multiply<true>(g, OUTER, (std::min(p0 + SPAN, s.pixels) - p0) / BLOCK, s.pixels, size_t(s.stride) * TILE,
                         [&](int t) {
                           const size_t p = p0 + t * BLOCK;
                           return Term{rows + size_t(i) * TILE * s.pixels + p, b + p * TILE};
                         });
        }
}

// Add the gradient of an outer layer's weights: a copy of the plane for each tap, against pairs of the features' pixels
void correlate_plane(const bf16* plane, bool turned, const bf16* pairs, float* grad, size_t of_channel, size_t of_tap,
                     const Shape& s, bf16* copies) {
  for (int tap = 0; tap < TAPS; tap++)
    std::memcpy(copies + size_t(tap) * s.pixels, plane + s.shifts[turned ? TAPS - 1 - tap : tap], 2 * s.pixels);
  alignas(64) float sums[TILE * C];
  multiply_64(sums, s.pixels / BLOCK, s.pixels, size_t(s.pixels) * TILE, [&](int t) {
    return Term{copies + t * BLOCK, pairs + size_t(t) * BLOCK * TILE};
  });
  for (int tap = 0; tap < TAPS; tap++)
    for (int c = 0; c < C; c++) grad[c * of_channel + tap * of_tap] += sums[tap * C + c];
}

// Add each channel's sum over the pixels
void sum_pixels(const bf16* rows, int pixels, float* grad) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (int c = 0; c < C; c++, rows += pixels) {
    __m512 sum = _mm512_setzero_ps();
    for (int p = 0; p < pixels; p += BLOCK) sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(rows + p), ones);
    grad[c] += _mm512_reduce_add_ps(sum);
  }
}

// A plane of floats into bf16 rows `pitch` apart
void pad(const float* plane, bf16* out, const Shape& s) {
  for (int y = 0; y < s.height; y++)
    for (int x = 0; x < s.width; x++) out[y * s.pitch + x] = round(plane[y * s.width + x]);
}

struct Parameters {  // of all layers, one after the other: (out, tap, in) weights, then biases
  int layers;        // hidden ones
  template <class T> T* hidden(T* all, int layer) const { return all + OUTER + C + size_t(layer) * (HIDDEN + C); }
  template <class T> T* last(T* all) const { return hidden(all, layers); }
  size_t size() const { return OUTER + C + size_t(layers) * (HIDDEN + C) + OUTER + 1; }
};

struct Packed {  // the same as right matrices
  bf16* data;
  bf16* first() const { return data; }
  bf16* last_backward() const { return data + 4 * LEAF; }
  bf16* last() const { return data + 8 * LEAF; }
  bf16* forward(int layer) const { return data + 10 * LEAF + size_t(layer) * 4 * HALF; }
  bf16* backward(int layer) const { return forward(layer) + 2 * HALF; }
};

struct Scratch {  // of one thread
  int height, width, layers;
  size_t size;  // of one layer's features
  Array<bf16> features, one, other, plane, copies, even, odd, pairs, rows;
  Array<float> by_tap, error;
  Scratch(const Shape& s, int hidden)
      : height(s.height), width(s.width), layers(hidden), size(size_t(s.stride) * C), features((hidden + 1) * size),
        one(size), other(size), plane(s.stride), copies(size_t(TILE) * s.pixels), even(size), odd(size),
        pairs(size_t(s.pixels) * C), rows(size_t(s.pixels) * C), by_tap(size_t(s.stride) * TILE), error(s.pixels) {}
};

// Forward and back with one patch; adds to the gradients and returns the sum of squared errors
double step(const float* ilr, const float* hr, const Shape& s, const Parameters& net, bool residual, float weight,
            const Packed& packed, const float* parameters, float* grads, Scratch& m) {
  bf16 *plane = m.plane + s.margin, *x = m.features + size_t(s.margin) * C;
  pad(ilr, plane, s);
  spread(plane, packed.first(), x, s, Rectify{parameters + OUTER});
  for (int l = 0; l < net.layers; l++, x += m.size)
    convolve(x, packed.forward(l), x + m.size, s, Rectify{net.hidden(parameters, l) + HIDDEN});
  gather(x, packed.last(), net.last(parameters)[OUTER], m.error, s, m.by_tap);

  double squares = 0, sum = 0;
  for (int p = 0; p < s.height * s.width; p++) {
    const float error = m.error[p] + (residual ? ilr[p] : 0) - hr[p];
    squares += double(error) * error;
    sum += m.error[p] = error * weight;
  }
  net.last(grads)[OUTER] += float(sum);

  bf16 *g = m.one + s.margin * C, *next = m.other + s.margin * C;
  pad(m.error, plane, s);
  pair_pixels(x, s.pixels, m.pairs, s.pixels);
  correlate_plane(plane, true, m.pairs, net.last(grads), 1, C, s, m.copies);
  spread(plane, packed.last_backward(), g, s, Masked{x});
  for (int l = net.layers - 1; l >= 0; l--) {
    x -= m.size;
    pair_pixels(g, s.pixels, m.pairs, s.pixels);
    channels_first(m.pairs, s.pixels, m.rows);
    sum_pixels(m.rows, s.pixels, net.hidden(grads, l) + HIDDEN);
    pair_pixels(x - s.margin * C, s.stride, m.even, s.stride);
    pair_pixels(x - (s.margin - 1) * C, s.stride - 2, m.odd, s.stride);
    correlate(m.rows, m.even, m.odd, net.hidden(grads, l), s);
    convolve(g, packed.backward(l), next, s, Masked{x});
    std::swap(g, next);
  }
  pair_pixels(g, s.pixels, m.pairs, s.pixels);
  channels_first(m.pairs, s.pixels, m.rows);
  sum_pixels(m.rows, s.pixels, grads + OUTER);
  pad(ilr, plane, s);
  correlate_plane(plane, false, m.pairs, grads, TAPS, 1, s, m.copies);
  return squares;
}

}  // namespace

extern "C" {

// Ask the system for the tiles (Linux 5.16): 0 where they can be had
int vdsr_permit() {
#ifdef __AMX_BF16__
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return int(syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA));
#else
  return 0;
#endif
}

// bf16 elements that `vdsr_pack` writes for a network with so many hidden layers
int64_t vdsr_packed(int layers) { return 10 * LEAF + int64_t(layers) * 4 * HALF; }

// Floats of `Parameters` to right matrices in a zeroed array
void vdsr_pack(const float* parameters, int layers, bf16* array) {
  const Parameters net{layers};
  const Packed packed{array};
  pack_spread(parameters, TAPS, 1, false, packed.first());
  pack_spread(net.last(parameters), 1, C, true, packed.last_backward());
  pack_gather(net.last(parameters), packed.last());
  alignas(64) bf16 rounded[HIDDEN];
  for (int l = 0; l < layers; l++) {
    const float* w = net.hidden(parameters, l);
    for (int i = 0; i < HIDDEN; i += BLOCK)
      _mm512_store_si512(rounded + i, round_32(_mm512_loadu_ps(w + i), _mm512_loadu_ps(w + i + TILE)));
    pack_forward(rounded, packed.forward(l));
    pack_backward(rounded, packed.backward(l));
  }
}

// ilr, hr: n patches of floats, dealt out to so many threads. squares: for each thread the sum of its patches' squared
// errors, −1 without memory; grads: for each thread an array laid out as parameters is, of the gradients of half that sum
// times `weight`. Both come zeroed. The threads are OpenMP's, as PyTorch's are: others would find the cores taken by
// those, who wait for their next work without sleeping.
void vdsr_step(const float* ilr, const float* hr, int n, int height, int width, int layers, int residual, float weight,
               bf16* packed, const float* parameters, int threads, float* grads, double* squares) {
  const Shape s(height, width);
  const Parameters net{layers};
#pragma omp parallel num_threads(threads)
  {
    static thread_local std::unique_ptr<Scratch> scratch;
    const int thread = omp_get_thread_num(), of = omp_get_num_threads();
    try {
      if (!scratch || scratch->height != height || scratch->width != width || scratch->layers != layers) {
        scratch.reset();
        scratch.reset(new Scratch(s, layers));
      }
      const Tiles tiles;
      for (int i = n * thread / of; i < n * (thread + 1) / of; i++) {
        const size_t at = size_t(i) * height * width;
        squares[thread] += step(ilr + at, hr + at, s, net, residual, weight, {packed}, parameters,
                                grads + thread * net.size(), *scratch);
      }
    } catch (const std::bad_alloc&) {
      squares[thread] = -1;
    }
  }
}
}
