// Sums in sixteen lanes in a fixed order. With -ffp-contract=off every machine computes the same bits.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

constexpr int LANES = 16;
constexpr float TINY = 1e-6f;

// Sixteen numbers as two registers of eight.
template <typename T>
struct Lanes {
  typedef T Half __attribute__((vector_size(32)));
  Half low, high;

  static INLINE Lanes all(T value) { return {Half{} + value, Half{} + value}; }

  static INLINE Lanes load(const T* from) {
    Lanes lanes;
    std::memcpy(&lanes.low, from, sizeof(Half));
    std::memcpy(&lanes.high, from + 8, sizeof(Half));
    return lanes;
  }

  INLINE void store(T* to) const {
    std::memcpy(to, &low, sizeof(Half));
    std::memcpy(to + 8, &high, sizeof(Half));
  }

  INLINE Lanes operator+(const Lanes& other) const { return {low + other.low, high + other.high}; }
  INLINE Lanes operator-(const Lanes& other) const { return {low - other.low, high - other.high}; }
  INLINE Lanes operator*(const Lanes& other) const { return {low * other.low, high * other.high}; }
  INLINE Lanes operator*(T value) const { return {low * value, high * value}; }
  INLINE Lanes& operator+=(const Lanes& other) { return *this = *this + other; }

  // The larger of each two; of NaN the other.
  INLINE Lanes or_more(const Lanes& other) const {
    return {low > other.low ? low : other.low, high > other.high ? high : other.high};
  }
  INLINE Lanes or_less(const Lanes& other) const {
    return {low < other.low ? low : other.low, high < other.high ? high : other.high};
  }
};

typedef Lanes<float> Floats;
typedef Lanes<std::int32_t> Ints;

INLINE Floats load(const float* from) { return Floats::load(from); }

INLINE float sum(const Floats& lanes) {
  const Floats::Half half = lanes.low + lanes.high;
  float quarter[4];
  for (int i = 0; i < 4; ++i) quarter[i] = half[i] + half[i + 4];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

INLINE int inside(int i, int size) { return std::min(std::max(i, 0), size - 1); }
