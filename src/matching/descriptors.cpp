// What descriptors are made of and compared by. What it computes and why is told in
// dino_perception/perception/descriptors.py and matching.py, whose arrays are its reference in the tests.

#include "lanes.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// NaN gives 0, too.
INLINE double clipped_to(double x, double most) { return std::min(std::max(0.0, x), most); }

INLINE Floats mix(const float* const* corner, const float* share, int d) {
  return (load(corner[0] + d) * share[0] + load(corner[1] + d) * share[1]) +
         (load(corner[2] + d) * share[2] + load(corner[3] + d) * share[3]);
}

// The last lanes of what is no multiple of them.
INLINE Floats mix_rest(const float* const* corner, const float* share, int d, int size) {
  float lanes[LANES] = {};
  for (int i = 0; d + i < size; ++i)
    lanes[i] = (corner[0][d + i] * share[0] + corner[1][d + i] * share[1]) +
               (corner[2][d + i] * share[2] + corner[3][d + i] * share[3]);
  return load(lanes);
}

// The lowest byte of each lane.
INLINE void lowest_bytes(const Floats& lanes, std::int8_t* to) {
  typedef std::int8_t Bytes __attribute__((vector_size(8)));
  const Bytes low = __builtin_convertvector((Ints::Half)lanes.low, Bytes);
  const Bytes high = __builtin_convertvector((Ints::Half)lanes.high, Bytes);
  std::memcpy(to, &low, sizeof low);
  std::memcpy(to + 8, &high, sizeof high);
}

// To the nearest whole number, halves to even, of what is far below 2^22: adding it drops the fraction.
INLINE float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

}  // namespace

extern "C" {

// Cosines (n,), 0 to 1, of the descriptors (rows * columns, size) of two views at cells (n, 2) of one and (n, 2) of the other,
// interpolated between the centres of cells and constant beyond the outer ones.
void dino_perception_similarity(
    const float* first, const double* at, const float* second, const double* to, int rows, int columns, int size, int n,
    float* cosine) {
  for (int p = 0; p < n; ++p) {
    const float* corner[2][4];
    float share[2][4];
    for (int v = 0; v < 2; ++v) {
      const double* xy = (v ? to : at) + 2 * p;
      const double x = clipped_to(xy[0], columns - 1), y = clipped_to(xy[1], rows - 1);
      const int x0 = int(x), y0 = int(y), x1 = std::min(x0 + 1, columns - 1), y1 = std::min(y0 + 1, rows - 1);
      const float fx = float(x - x0), fy = float(y - y0);
      const int cells[4] = {y0 * columns + x0, y0 * columns + x1, y1 * columns + x0, y1 * columns + x1};
      for (int i = 0; i < 4; ++i) corner[v][i] = (v ? second : first) + std::int64_t(cells[i]) * size;
      share[v][0] = (1 - fx) * (1 - fy), share[v][1] = fx * (1 - fy), share[v][2] = (1 - fx) * fy, share[v][3] = fx * fy;
    }
    Floats aa = {}, ab = {}, bb = {};
    for (int d = 0; d < size; d += LANES) {
      const bool whole = d + LANES <= size;
      const Floats a = whole ? mix(corner[0], share[0], d) : mix_rest(corner[0], share[0], d, size);
      const Floats b = whole ? mix(corner[1], share[1], d) : mix_rest(corner[1], share[1], d, size);
      aa += a * a;
      ab += a * b;
      bb += b * b;
    }
    const float c = sum(ab) / std::sqrt(std::max(sum(aa) * sum(bb), 1e-12f));
    cosine[p] = std::min(std::max(c, 0.0f), 1.0f);
  }
}

// Takes out of vectors (n, size) what all share, and writes them at the length `length` in 8-bit steps of `step` to `out`, whose
// rows are `stride` bytes apart. See descriptors.codes.
void dino_perception_codes(
    const float* vectors, int n, int size, float length, float step, float* mean, std::int8_t* out, int stride) {
  const int even = size - size % LANES;
  const Floats least = Floats::all(-127), most = Floats::all(127), magic = Floats::all(12582912);
  for (int d = 0; d < size; ++d) mean[d] = 0;
  for (int p = 0; p < n; ++p)  // row by row, as they lie in memory
    for (int d = 0; d < size; ++d) mean[d] += vectors[std::int64_t(p) * size + d];
  for (int d = 0; d < size; ++d) mean[d] *= 1 / float(n);
  for (int p = 0; p < n; ++p) {
    const float* v = vectors + std::int64_t(p) * size;
    Floats lanes = {};
    for (int d = 0; d < even; d += LANES) {
      const Floats off = load(v + d) - load(mean + d);
      lanes += off * off;
    }
    float energy = sum(lanes);
    for (int d = even; d < size; ++d) energy += (v[d] - mean[d]) * (v[d] - mean[d]);
    const float scale = length / (std::sqrt(std::max(energy, 1e-12f)) * step);
    std::int8_t* to = out + std::int64_t(p) * stride;
    for (int d = 0; d < even; d += LANES) {
      // Of the sum with `magic` the lowest bits are the whole number.
      lowest_bytes(((load(v + d) - load(mean + d)) * scale).or_more(least).or_less(most) + magic, to + d);
    }
    for (int d = even; d < size; ++d) to[d] = std::int8_t(rounded(std::min(std::max(-127.0f, (v[d] - mean[d]) * scale), 127.0f)));
  }
}

// Histograms (rows * columns, 64) from half cells (height, width, 4): the roots of the shares of four by four of them around
// each patch, whose columns and rows are `offsets` (4) from its first half. See descriptors.gradients.
void dino_perception_histograms(
    const float* cells, int height, int width, const std::int32_t* offsets, int rows, int columns, float* out) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c, out += 64) {
      for (int y = 0; y < 4; ++y)
        for (int x = 0; x < 4; ++x)
          std::memcpy(
              out + 16 * y + 4 * x,
              cells + 4 * (std::int64_t(inside(2 * r + offsets[y], height)) * width + inside(2 * c + offsets[x], width)),
              4 * sizeof(float));
      const float whole = std::max(sum((load(out) + load(out + 16)) + (load(out + 32) + load(out + 48))), TINY);
      for (int i = 0; i < 64; ++i) out[i] = std::sqrt(out[i] / whole);
    }
}
}
