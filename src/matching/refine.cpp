// Windows aligned point by point: too many small steps for array operations. What it computes and why is told in
// dino_perception/perception/refine.py, whose arrays are its reference in the tests.

#include "lanes.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int MOST_HALF = 6;
constexpr int ROWS = 2 * MOST_HALF + 3;  // of a template's window with one more pixel on each side; a row fits the lanes

struct Image {
  const float* pixels;
  int rows, columns;
};

// Rows of a window in sixteen lanes; lanes beyond its side hold zeros.
struct alignas(64) Window {
  float at[ROWS][LANES];
};

INLINE float dot(const Window& a, const Window& b, int first, int last) {
  Floats lanes = {};
  for (int r = first; r < last; ++r) lanes += load(a.at[r]) * load(b.at[r]);
  return sum(lanes);
}

INLINE float total(const Window& a, int first, int last) {
  Floats lanes = {};
  for (int r = first; r < last; ++r) lanes += load(a.at[r]);
  return sum(lanes);
}

// Takes a mean out of columns [from, to) of rows [from, to) and leaves zeros in all other columns.
INLINE void centre(Window& w, int from, int to) {
  alignas(64) float mask[LANES];
  for (int i = 0; i < LANES; ++i) mask[i] = i >= from && i < to ? 1.0f : 0.0f;
  for (int r = from; r < to; ++r)
    for (int i = 0; i < LANES; ++i) w.at[r][i] *= mask[i];
  const float mean = total(w, from, to) / float((to - from) * (to - from));
  for (int r = from; r < to; ++r)
    for (int i = 0; i < LANES; ++i) w.at[r][i] = (w.at[r][i] - mean) * mask[i];
}

// An upright window of `side` pixels whose middle is at (x, y), between pixels linearly, the border repeated outside.
INLINE void sample(const Image& image, double x, double y, int side, Window& out) {
  const double left = x - side / 2, top = y - side / 2;
  const int x0 = int(std::floor(left)), y0 = int(std::floor(top));
  const float fx = float(left - x0), fy = float(top - y0);
  float border[ROWS + 1][LANES + 1];
  const float* rows[ROWS + 1];
  if (x0 >= 0 && y0 >= 0 && x0 + LANES < image.columns && y0 + side < image.rows) {
    for (int r = 0; r <= side; ++r) rows[r] = image.pixels + std::int64_t(y0 + r) * image.columns + x0;
  } else {
    for (int r = 0; r <= side; ++r) {
      const float* row = image.pixels + std::int64_t(inside(y0 + r, image.rows)) * image.columns;
      for (int i = 0; i <= LANES; ++i) border[r][i] = row[inside(x0 + i, image.columns)];
      rows[r] = border[r];
    }
  }
  alignas(64) float above[LANES], below[LANES];
  for (int i = 0; i < LANES; ++i) above[i] = rows[0][i] + (rows[0][i + 1] - rows[0][i]) * fx;
  for (int r = 0; r < side; ++r) {
    const float* next = rows[r + 1];
    for (int i = 0; i < LANES; ++i) below[i] = next[i] + (next[i + 1] - next[i]) * fx;
    for (int i = 0; i < LANES; ++i) {
      out.at[r][i] = above[i] + (below[i] - above[i]) * fy;
      above[i] = below[i];
    }
  }
}

// The same, deformed by `a` (2, 2): what is (dx, dy) from the middle of the window lies a (dx, dy) from (x, y).
INLINE void sample(const Image& image, double x, double y, const float* a, int side, Window& out) {
  const int half = side / 2;
  const int reach = 2 + int(half * std::max(std::fabs(a[0]) + std::fabs(a[1]), std::fabs(a[2]) + std::fabs(a[3])));
  const int x0 = int(std::floor(x)) - reach, y0 = int(std::floor(y)) - reach;  // left and above of all: what is cut is floored
  const float fx = float(x - x0), fy = float(y - y0);
  const bool whole = x0 >= 0 && y0 >= 0 && x0 + 2 * reach + 2 < image.columns && y0 + 2 * reach + 2 < image.rows;
  const float* corner = image.pixels + std::int64_t(y0) * image.columns + x0;
  // Row by row where to read, then all reading, then all mixing: what was just written in small pieces is slow to read whole.
  alignas(64) float u[ROWS][LANES], v[ROWS][LANES], upper[ROWS][2 * LANES], lower[ROWS][2 * LANES];
  alignas(64) std::int32_t at[ROWS][LANES];
  for (int r = 0; r < side; ++r) {
    const float dy = float(r - half), px = fx + a[1] * dy, py = fy + a[3] * dy;
    for (int i = 0; i < LANES; ++i) {
      const float dx = float(std::min(i, side - 1) - half);
      const float across = px + a[0] * dx, down = py + a[2] * dx;
      const std::int32_t column = std::int32_t(across), row = std::int32_t(down);
      u[r][i] = across - float(column);
      v[r][i] = down - float(row);
      at[r][i] = whole ? row * image.columns + column : row << 16 | column;
    }
  }
  for (int r = 0; r < side; ++r) {
    for (int i = 0; i < side; ++i) {
      if (whole) {
        std::memcpy(upper[r] + 2 * i, corner + at[r][i], 2 * sizeof(float));
        std::memcpy(lower[r] + 2 * i, corner + at[r][i] + image.columns, 2 * sizeof(float));
      } else {
        for (int k = 0; k < 2; ++k) {
          const int c = inside(x0 + (at[r][i] & 0xffff) + k, image.columns), down = y0 + (at[r][i] >> 16);
          upper[r][2 * i + k] = image.pixels[std::int64_t(inside(down, image.rows)) * image.columns + c];
          lower[r][2 * i + k] = image.pixels[std::int64_t(inside(down + 1, image.rows)) * image.columns + c];
        }
      }
    }
    for (int i = 2 * side; i < 2 * LANES; ++i) upper[r][i] = lower[r][i] = 0;
  }
  for (int r = 0; r < side; ++r)
    for (int i = 0; i < LANES; ++i) {
      const float above = upper[r][2 * i] + (upper[r][2 * i + 1] - upper[r][2 * i]) * u[r][i];
      const float below = lower[r][2 * i] + (lower[r][2 * i + 1] - lower[r][2 * i]) * u[r][i];
      out.at[r][i] = above + (below - above) * v[r][i];
    }
}

struct Inverse {  // of the normal matrix [[xx, xy], [xy, yy]], damped: a window without texture stays where it is
  float xx, xy, yy;
  INLINE Inverse(float gxx, float gxy, float gyy) {
    const float damp = 1e-3f * (gxx + gyy) + 1e-3f;
    gxx += damp;
    gyy += damp;
    const float det = gxx * gyy - gxy * gxy;
    xx = gyy / det, xy = -gxy / det, yy = gxx / det;
  }
};

// A zero-mean window, its gradients and energy.
struct Template {
  Window t, gx, gy;
  float energy;

  // `a` (2, 2) is how the window is deformed, null where it is not.
  INLINE Inverse cut(const Image& image, double x, double y, const float* a, int side) {
    Window wide;
    if (a) sample(image, x, y, a, side + 2, wide);
    else sample(image, x, y, side + 2, wide);
    for (int r = 0; r < side; ++r) {
      for (int i = 0; i < LANES; ++i) t.at[r][i] = gx.at[r][i] = gy.at[r][i] = 0;
      for (int i = 0; i < side; ++i) {
        t.at[r][i] = wide.at[r + 1][i + 1];
        gx.at[r][i] = 0.5f * (wide.at[r + 1][i + 2] - wide.at[r + 1][i]);
        gy.at[r][i] = 0.5f * (wide.at[r + 2][i + 1] - wide.at[r][i + 1]);
      }
    }
    centre(t, 0, side);
    energy = dot(t, t, 0, side) + TINY;
    return Inverse(dot(gx, gx, 0, side), dot(gx, gy, 0, side), dot(gy, gy, 0, side));
  }
};

// Scales a zero-mean window to the energy of the template and takes the template away; what is left, along its gradients.
INLINE void along(const Template& t, Window& w, float scale, int first, int last, float& bx, float& by) {
  for (int r = first; r < last; ++r)
    for (int i = 0; i < LANES; ++i) w.at[r][i] = w.at[r][i] * scale - t.t.at[r][i];
  bx = dot(t.gx, w, first, last);
  by = dot(t.gy, w, first, last);
}

// How far the middle of a window alone would still move.
INLINE float doubt(const Template& whole, const Window& left, int half) {
  const int first = half / 2, last = first + 2 * (half - half / 2) + 1;
  Template t = whole;
  Window w;  // the window again, of which `left` is what is left without the template
  for (int r = first; r < last; ++r)
    for (int i = 0; i < LANES; ++i) w.at[r][i] = left.at[r][i] + whole.t.at[r][i];
  centre(t.t, first, last);
  centre(w, first, last);
  for (int r = first; r < last; ++r)
    for (int i = 0; i < LANES; ++i)
      if (i < first || i >= last) t.gx.at[r][i] = t.gy.at[r][i] = 0;
  float bx, by;
  const float energy = dot(t.t, t.t, first, last) + TINY, own = dot(w, w, first, last) + TINY;
  along(t, w, std::sqrt(energy / own), first, last, bx, by);
  const Inverse n(dot(t.gx, t.gx, first, last), dot(t.gx, t.gy, first, last), dot(t.gy, t.gy, first, last));
  const float x = n.xx * bx + n.xy * by, y = n.xy * bx + n.yy * by;
  return std::sqrt(x * x + y * y);
}

INLINE double clipped(double step, double most) { return std::min(std::max(step, -most), most); }

}  // namespace

extern "C" {

int dino_perception_matching_version() { return 5; }

// Moves n positions (n, 2) to where the windows around xy (n, 2) of the reference levels reappear in the image's. `plan` (steps,
// 3) is level, half window and iterations, coarse to fine, the last at level 0. See Refiner.refine.
void dino_perception_refine(
    const Image* reference, const Image* image, const std::int32_t* plan, int steps, int n, const double* xy,
    const float* shape, double* position, float* score, float* doubts) {
  for (int p = 0; p < n; ++p) {
    const float* a = shape + 4 * p;
    double x = position[2 * p], y = position[2 * p + 1];
    score[p] = -1;
    doubts[p] = 0;
    // Sums, because they are NaN where any part is.
    if (!(std::fabs(x) + std::fabs(y) + std::fabs(xy[2 * p]) + std::fabs(xy[2 * p + 1]) < 1e6)) continue;
    if (!(std::fabs(a[0]) + std::fabs(a[1]) + std::fabs(a[2]) + std::fabs(a[3]) < 100)) continue;
    // The template is deformed once, so that the windows of all iterations are upright.
    float det = a[0] * a[3] - a[1] * a[2];
    if (std::fabs(det) < 1e-2f) det = 1e-2f;
    const float back[4] = {a[3] / det, -a[1] / det, -a[2] / det, a[0] / det};
    if (!(std::fabs(back[0]) + std::fabs(back[1]) + std::fabs(back[2]) + std::fabs(back[3]) < 100)) continue;
    const float off = std::max(
        std::max(std::fabs(back[0] - 1), std::fabs(back[1])), std::max(std::fabs(back[2]), std::fabs(back[3] - 1)));
    float last = 0;
    for (int s = 0; s < steps; ++s) {
      const int level = plan[3 * s], half = plan[3 * s + 1], iterations = plan[3 * s + 2], side = 2 * half + 1;
      const double scale = 1.0 / (1 << level), startx = x, starty = y;
      const bool upright = off * half < 0.03f;  // pixels; at 0.1 the median error of small motions rises by a hundredth
      Template t;
      const Inverse inverse = t.cut(reference[level], xy[2 * p] * scale, xy[2 * p + 1] * scale, upright ? nullptr : back, side);
      for (int k = 0; k < iterations; ++k) {
        Window w;
        sample(image[level], x * scale, y * scale, side, w);
        centre(w, 0, side);
        const float own = dot(w, w, 0, side) + TINY;
        float bx, by;
        const float alike = dot(w, t.t, 0, side);
        along(t, w, std::sqrt(t.energy / own), 0, side, bx, by);
        const float ux = inverse.xx * bx + inverse.xy * by, uy = inverse.xy * bx + inverse.yy * by;
        x -= clipped(ux, half) / scale;
        y -= clipped(uy, half) / scale;
        last = std::max(std::fabs(ux), std::fabs(uy));
        if (s == steps - 1 && k == iterations - 1) {  // judged before the last step, which is tiny
          score[p] = alike / std::sqrt(own * t.energy);
          doubts[p] = doubt(t, w, half);
        }
      }
      if (std::max(std::fabs(x - startx), std::fabs(y - starty)) > 1.5 * half / scale) x = startx, y = starty;
    }
    const int margin = plan[3 * steps - 2];  // a window that is partly outside is aligned with the border's repetition, too
    if (!(x >= margin && y >= margin && x <= image[0].columns - 1 - margin && y <= image[0].rows - 1 - margin)) score[p] = -1;
    position[2 * p] = x;
    position[2 * p + 1] = y;
    doubts[p] = std::max(doubts[p], 2 * last);
  }
}
}
