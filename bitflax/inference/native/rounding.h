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
  return r.clipped ? within(x, r.clip_low, r.clip_high) : x;
}

// NaN where what would be rounded is, of a row: rounding itself knows no NaN. Infinity is
// one where it would make the scale.
inline float fault(const Rounding& r, const float* x, int n) {
  constexpr float kLarge = 1e30f;
  Floats wrong{};
  float rest = 0;
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    V value = clipped(r, load<V>(x + k));
    value = r.range == kFixed ? within(value, -kLarge, kLarge) : value;
    if constexpr (kSize<V> == 1) rest += value * 0;
    else wrong += value * 0;
  });
  return sum(wrong) + rest;
}

// Of what is rounded; NaN where any of it is not finite.
inline Extent extent(const Rounding& r, const float* x, int n) {
  Floats low = all<Floats>(x[0]), top = low, wrong{};
  float rest_low = x[0], rest_top = x[0], nothing = 0;
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    V value = load<V>(x + k);
    V fault = clipped(r, value) * 0;
    if constexpr (kSize<V> == 1) {
      rest_low = less(value, rest_low), rest_top = greater(value, rest_top);
      nothing += fault;
    } else {
      low = less(value, low), top = greater(value, top), wrong += fault;
    }
  });
  nothing += sum(wrong);
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
  y = is_sign(r) ? (x >= 0 ? all<V>(1) : all<V>(-1)) : y;
  return x == x ? y : x;
}

inline bool is_finite(float x) { return x - x == 0; }

// Whether a row's largest value is its top level, so that no level is cut off.
inline bool is_plain(const Rounding& r) {
  return r.range != kFixed && r.centred && !r.clipped && r.steps == r.top &&
         r.low <= -r.steps;
}

// Integers of a row, at once their values and, by the lowest bits, themselves; how far
// the values lie from them.
template <bool Plain, class V> struct Near {
  V sum, far;
  BITFLAX_INLINE Near(const Rounding& r, Grid g, float inverse, V x) {
    constexpr float kLarge = 12582912;  // as in `rounded`
    if constexpr (!Plain) x = clipped(r, x) - g.zero;
    sum = x * inverse + kLarge;
    far = size_of(x * inverse - (sum - kLarge));
    if constexpr (!Plain) {
      sum = less(greater(sum, all<V>(kLarge + r.low)), all<V>(kLarge + r.top));
      if (is_sign(r)) sum = x >= 0 ? all<V>(kLarge + 1) : all<V>(kLarge - 1);
    }
  }
};

template <bool Plain>
inline int32_t to_near_codes(const Rounding& r, Grid g, float inverse, const float* x,
                             int n, int8_t* out, bool* divide) {
  constexpr float kNear = 0.5f - 4e-5f;  // 2^-23 of 255 is 3.04e-5
  constexpr int32_t kLargeBits = 0x4b400000;
  const int32_t less_all = kLargeBits + (r.top > 127 ? 128 : 0);
  Ints total{};
  int32_t rest = 0;
  Floats far{};
  float rest_far = 0;
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    Near<Plain, V> near(r, g, inverse, load<V>(x + k));
    typename Of<V>::Int code;
    memcpy(&code, &near.sum, sizeof code);
    code = code - less_all;
    auto bytes = to_bytes(code);
    memcpy(out + k, &bytes, sizeof bytes);
    if constexpr (kSize<V> == 1) {
      rest += code, rest_far = greater(near.far, rest_far);
    } else {
      total += code, far = greater(near.far, far);
    }
  });
  for (int i = 0; i < kFloats; i++) rest += total[i];
  *divide = greater(most(far), rest_far) > kNear && !is_sign(r);
  return rest;
}

// Round a row to bytes, those of levels above 127 less 128; return the bytes' sum.
//
// x / scale is what training divides; a product with 1 / scale is four times as fast and
// rounds the same way unless it lies near half a level: then the row is divided.
inline int32_t to_codes(const Rounding& r, Grid g, const float* x, int n, int8_t* out) {
  if (!is_finite(g.scale)) {  // it makes NaN of whatever the codes are
    memset(out, 0, n);
    return 0;
  }
  float scale = g.scale == 0 ? 1 : g.scale, inverse = 1 / scale;
  int32_t shift = r.top > 127 ? 128 : 0, found = 0;
  bool divide = !is_finite(inverse);
  if (!divide) {
    found = (is_plain(r) ? to_near_codes<true> : to_near_codes<false>)(
        r, g, inverse, x, n, out, &divide);
  }
  if (!divide) return found;
  found = 0;
  for (int k = 0; k < n; k++) {
    float value = clipped(r, x[k]) - g.zero;
    int32_t code = to_ints(multiple(r, value, value / scale)) - shift;
    out[k] = int8_t(code), found += code;
  }
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
