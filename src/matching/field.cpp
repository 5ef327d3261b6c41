// Which patches are each other's nearest, and the smooth motion they vote for. What it computes and why is told in
// dino_perception/perception/matching.py, whose arrays are its reference in the tests.

#include "lanes.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int MOMENTS = 12;

// exp of numbers of at most 0, to 2e-7 of its value, alike on every machine.
INLINE float decay(float x) {
  const float power = std::max(x, -80.0f) * 1.44269504f, whole = (power + 12582912.0f) - 12582912.0f;
  const float f = (power - whole) * 0.69314718f;
  const float fraction =
      1 + f * (1 + f * (0.5f + f * (1.6666667e-1f + f * (4.1666667e-2f + f * (8.3333333e-3f + f * 1.3888889e-3f)))));
  const std::int32_t bits = (std::int32_t(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return fraction * scale;
}

// How much a vote counts at a squared distance in patches.
INLINE float kernel(float apart) {
  return decay(apart * (-0.5f / (2.2f * 2.2f))) + 0.02f * decay(apart * (-0.5f / (7.0f * 7.0f))) + 1e-4f;
}

// Votes' weighted moments in lanes: 1, x, y, u, v, xx, xy, yy, xu, yu, xv, yv.
INLINE void moments(const float* at, const float* moved, const float* weight, int m, float* out) {
  for (int i = 0; i < m; ++i) {
    const float x = at[2 * i], y = at[2 * i + 1], u = moved[2 * i], v = moved[2 * i + 1];
    const float all[MOMENTS] = {1, x, y, u, v, x * x, x * y, y * y, x * u, y * u, x * v, y * v};
    for (int k = 0; k < LANES; ++k) out[LANES * i + k] = k < MOMENTS ? all[k] * weight[i] : 0;
  }
}

// Moving least squares at one place: displacement (2) and gradient (2, 2) of the votes, weighted by `near` (m).
INLINE void fit(const float* near, const float* moment, int m, double px, double py, double* displacement, double* gradient) {
  Floats lanes = {};
  for (int i = 0; i < m; ++i) lanes += load(moment + LANES * i) * near[i];
  float total[LANES];
  lanes.store(total);
  double t[MOMENTS];
  const double whole = std::max(double(total[0]), 1e-12);
  for (int k = 0; k < MOMENTS; ++k) t[k] = total[k] / whole;
  const double x = t[1], y = t[2], u = t[3], v = t[4], ridge = 0.5;  // square patches: no gradient without spread of votes
  const double xx = t[5] - x * x + ridge, xy = t[6] - x * y, yy = t[7] - y * y + ridge;
  const double xu = t[8] - x * u, yu = t[9] - y * u, xv = t[10] - x * v, yv = t[11] - y * v, det = xx * yy - xy * xy;
  gradient[0] = (yy * xu - xy * yu) / det, gradient[1] = (xx * yu - xy * xu) / det;
  gradient[2] = (yy * xv - xy * yv) / det, gradient[3] = (xx * yv - xy * xv) / det;
  displacement[0] = u + gradient[0] * (px - x) + gradient[1] * (py - y);
  displacement[1] = v + gradient[2] * (px - x) + gradient[3] * (py - y);
}

template <typename T>
INLINE int mutual(const T* similar, const std::int32_t* asked, int n, int rows, int columns, T* most, std::int32_t* nearest,
                  std::int32_t* chosen, double* to) {
  const int patches = rows * columns;
  for (int j = 0; j < patches; ++j) most[j] = similar[j];
  for (int a = 0; a < n; ++a) {
    const T* row = similar + std::int64_t(a) * patches;
    auto lanes = Lanes<T>::all(row[0]);
    int j = 0;
    for (; j + LANES <= patches; j += LANES) {
      const auto here = Lanes<T>::load(row + j);
      lanes = lanes.or_more(here);
      here.or_more(Lanes<T>::load(most + j)).store(most + j);
    }
    T largest[LANES];
    lanes.store(largest);
    T best = *std::max_element(largest, largest + LANES);
    for (; j < patches; ++j) {
      best = std::max(best, row[j]);
      most[j] = std::max(most[j], row[j]);
    }
    int at = 0;
    while (at < patches - 1 && !(row[at] == best)) ++at;
    nearest[a] = at;
  }
  // The most similar mutual match of each block of 3x3 patches, in the order of `asked`.
  const int across = (columns + 2) / 3, blocks = ((rows + 2) / 3) * across;
  std::int32_t* of_block = nearest + n;
  for (int b = 0; b < blocks; ++b) of_block[b] = -1;
  for (int a = 0; a < n; ++a) {
    const T value = similar[std::int64_t(a) * patches + nearest[a]];
    if (!(value >= most[nearest[a]])) continue;
    std::int32_t& held = of_block[asked[a] / columns / 3 * across + asked[a] % columns / 3];
    if (held < 0 || value > similar[std::int64_t(held) * patches + nearest[held]]) held = a;
  }
  int count = 0;
  for (int a = 0; a < n; ++a) {
    if (of_block[asked[a] / columns / 3 * across + asked[a] % columns / 3] != a) continue;
    const T* row = similar + std::int64_t(a) * patches;
    const int j = nearest[a], place[2] = {j % columns, j / columns}, size[2] = {columns, rows}, step[2] = {1, columns};
    for (int k = 0; k < 2; ++k) {
      double off = 0;
      if (place[k] > 0 && place[k] < size[k] - 1) {
        const double before = double(row[j - step[k]]), after = double(row[j + step[k]]);
        const double bend = before - 2 * double(row[j]) + after;
        if (bend < 0) off = std::min(std::max(0.5 * (before - after) / bend, -0.5), 0.5);
      }
      to[2 * count + k] = place[k] + off;
    }
    chosen[count++] = asked[a];
  }
  return count;
}

}  // namespace

extern "C" {

// Of similarities (n, rows * columns) of patches `asked` (n) to all: those that are each other's nearest, the most similar of each
// 3x3 block, as patches `chosen` and where they are in the other grid, (count, 2) in patches, between them where the similarity
// peaks. `most` (rows * columns) and `nearest` (n + rows * columns) are room to work in. Returns the count. See matching._mutual.
int dino_perception_mutual_int(
    const std::int32_t* similar, const std::int32_t* asked, int n, int rows, int columns, std::int32_t* most,
    std::int32_t* nearest, std::int32_t* chosen, double* to) {
  return mutual(similar, asked, n, rows, columns, most, nearest, chosen, to);
}

int dino_perception_mutual_float(
    const float* similar, const std::int32_t* asked, int n, int rows, int columns, float* most, std::int32_t* nearest,
    std::int32_t* chosen, double* to) {
  return mutual(similar, asked, n, rows, columns, most, nearest, chosen, to);
}

// The field that m votes `at` (m, 2), which have moved by `moved` (m, 2), all in patches, agree on at rows x columns nodes, `spacing`
// patches apart: displacements (nodes, 2) and gradients (nodes, 2, 2). `room` holds m * (m + 20) floats. Returns whether they
// agree on any. See matching.field.
int dino_perception_field(
    const float* at, const float* moved, int m, int rows, int columns, int spacing, float* room, double* displacement,
    double* gradient) {
  float *near = room, *weight = near + std::int64_t(m) * m, *trust = weight + m, *row = trust + m, *moment = row + m;
  float whole = 0;
  for (int i = 0; i < m; ++i) {
    float* mine = near + std::int64_t(i) * m;
    for (int j = 0; j < m; ++j) {
      const float x = at[2 * i] - at[2 * j], y = at[2 * i + 1] - at[2 * j + 1], apart = x * x + y * y;
      const float u = moved[2 * i] - moved[2 * j], v = moved[2 * i + 1] - moved[2 * j + 1];
      const float far = 1.0f + 0.25f * std::sqrt(apart), k = kernel(apart);
      mine[j] = k;
      row[j] = u * u + v * v < far * far ? k : 0.0f;
    }
    row[i] = mine[i] = 0;
    float support = 0, all = 0;
    for (int j = 0; j < m; ++j) support += row[j], all += mine[j];
    const float share = support / std::max(all, 1e-6f);
    weight[i] = trust[i] = share * share * std::min(support / 1.5f, 1.0f);
    whole += weight[i];
  }
  if (!(whole >= 4)) return 0;
  double d[2], g[4];
  for (int turn = 0; turn < 2; ++turn) {  // each vote against what its neighbours predict
    moments(at, moved, trust, m, moment);
    for (int i = 0; i < m; ++i) {
      fit(near + std::int64_t(i) * m, moment, m, at[2 * i], at[2 * i + 1], d, g);
      const double u = d[0] - moved[2 * i], v = d[1] - moved[2 * i + 1], off = 1 + (u * u + v * v) / 0.5;
      trust[i] = float(weight[i] / (off * off));
    }
  }
  moments(at, moved, trust, m, moment);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) {
      const float px = (c + 0.5f) * spacing, py = (r + 0.5f) * spacing;
      for (int i = 0; i < m; ++i) {
        const float x = px - at[2 * i], y = py - at[2 * i + 1];
        row[i] = kernel(x * x + y * y);
      }
      const int node = r * columns + c;
      fit(row, moment, m, px, py, displacement + 2 * node, gradient + 4 * node);
    }
  return 1;
}
}
