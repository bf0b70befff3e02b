// Activations to integers, as they were rounded when the student was trained.
//
//   integers = clip(round((x - zero) / scale), low, top),  x ~ integers * scale + zero
#pragma once

#include "model.h"
#include "vectors.h"

namespace bitflax {
namespace {

struct Extent {
  float least, most;
};

// Scale and zero of one row, or of all rows of a text.
struct Grid {
  float scale, zero;
};

template <class V> BITFLAX_INLINE V clipped(const Rounding& r, V x) {
  if (!r.clipped) return x;
  return less(greater(x, all<V>(r.clip_low)), all<V>(r.clip_high));
}

// Of x where it is finite; NaN where any is not, so that a fault is not rounded away.
inline Extent extent(const Rounding& r, const float* x, int n) {
  Floats low{}, top{}, wrong{};
  low += x[0], top += x[0];
  float rest_low = x[0], rest_top = x[0], rest_wrong = 0;
  int k = 0;
  for (; k + kFloats <= n; k += kFloats) {
    Floats v = load<Floats>(x + k);
    wrong += v * 0, low = less(v, low), top = greater(v, top);
  }
  for (; k < n; k++) {
    rest_wrong += x[k] * 0;
    rest_low = less(x[k], rest_low), rest_top = greater(x[k], rest_top);
  }
  float nothing = sum(wrong) + rest_wrong;
  Extent found = {less(least(low), rest_low), greater(most(top), rest_top)};
  found.least = clipped(r, found.least) + nothing;
  found.most = clipped(r, found.most) + nothing;
  return found;
}

inline Grid grid(const Rounding& r, Extent e) {
  if (!r.steps) return {r.step, r.centred ? 0 : e.least};
  if (r.centred) return {greater(e.most, -e.least) / r.steps, 0};
  float scale = (e.most - e.least + r.spare) / r.steps;
  if (!r.whole) return {scale, e.least};
  return {scale, scale == 0 ? e.least : rounded(e.least / scale) * scale};
}

inline bool is_sign(const Rounding& r) { return r.low == -1 && r.top == 1 && !r.steps; }

template <class V> BITFLAX_INLINE V multiple(const Rounding& r, V x, V ratio) {
  V y = less(greater(rounded(ratio), all<V>(r.low)), all<V>(r.top));
  return is_sign(r) ? (x >= 0 ? all<V>(1) : all<V>(-1)) : y;
}

// Round a row to bytes, those of levels above 127 less 128; return the bytes' sum.
//
// x / scale is what training divides; a product with 1 / scale is four times as fast and
// rounds the same way unless it lies near half a level: then the row is divided.
inline int32_t to_codes(const Rounding& r, Grid g, const float* x, int n, int8_t* out) {
  constexpr float kNear = 0.5f - 3e-5f;  // 2^-23 of 255, rounded up
  float scale = g.scale == 0 ? 1 : g.scale;
  int32_t shift = r.top > 127 ? 128 : 0;
  auto pass = [&](auto ratio, bool* near) {
    Ints total{};
    int32_t rest = 0;
    Floats far{};
    float rest_far = 0;
    each(n, [&](auto v, int k) {
      typedef decltype(v) V;
      V value = clipped(r, load<V>(x + k)) - g.zero;
      V exact = ratio(value);
      V y = multiple(r, value, exact);
      auto code = to_ints(y) - shift;
      auto bytes = to_bytes(code);
      memcpy(out + k, &bytes, sizeof bytes);
      V distance = size_of(exact - rounded(exact));
      if constexpr (kSize<V> == 1) {
        rest += code, rest_far = greater(distance, rest_far);
      } else {
        total += code, far = greater(distance, far);
      }
    });
    *near = greater(most(far), rest_far) > kNear;
    for (int i = 0; i < kFloats; i++) rest += total[i];
    return rest;
  };
  bool near;
  float inverse = 1 / scale;
  int32_t found = pass([&](auto v) { return v * inverse; }, &near);
  if (near) found = pass([&](auto v) { return v / scale; }, &near);
  return found;
}

// Replace a row by its rounded values.
inline void to_values(const Rounding& r, Grid g, float* x, int n) {
  float scale = g.scale == 0 ? 1 : g.scale;
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    V value = clipped(r, load<V>(x + k)) - g.zero;
    store(x + k, multiple(r, value, value / scale) * g.scale + g.zero);
  });
}

}  // namespace
}  // namespace bitflax
