// Floats in vectors as wide as the target's, by the compilers' vector types, and the
// functions of BERT in them. All that holds of `Floats` holds of a plain float too, so
// that what a vector does, a row's last few numbers do one by one.
#pragma once

#include <cstdint>
#include <cstring>

#define BITFLAX_INLINE inline __attribute__((always_inline))
#define BITFLAX_UNROLL _Pragma("GCC unroll 16")

namespace bitflax {
namespace {

#if defined(__AVX512F__)
constexpr int kFloats = 16;
#elif defined(__AVX2__)
constexpr int kFloats = 8;
#else
constexpr int kFloats = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kFloats)));
typedef int32_t Ints __attribute__((vector_size(4 * kFloats)));
typedef int8_t Bytes __attribute__((vector_size(kFloats)));

template <class V> struct Of;
template <> struct Of<float> { typedef int32_t Int; typedef int8_t Byte; };
template <> struct Of<Floats> { typedef Ints Int; typedef Bytes Byte; };
template <class V> constexpr int kSize = sizeof(V) / 4;

template <class V> BITFLAX_INLINE V load(const float* from) {
  V value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <class V> BITFLAX_INLINE void store(float* to, V value) {
  memcpy(to, &value, sizeof value);
}
template <class V> BITFLAX_INLINE V all(float value) { return V{} + value; }

// The second where the first is NaN.
template <class V> BITFLAX_INLINE V greater(V a, V b) { return a > b ? a : b; }
template <class V> BITFLAX_INLINE V less(V a, V b) { return a < b ? a : b; }
template <class V> BITFLAX_INLINE V size_of(V a) { return a < 0 ? -a : a; }

// x within two ends; NaN stays NaN, in all functions below.
template <class V> BITFLAX_INLINE V within(V x, float low, float high) {
  x = x < low ? all<V>(low) : x;
  return x > high ? all<V>(high) : x;
}

BITFLAX_INLINE Ints to_ints(Floats x) { return __builtin_convertvector(x, Ints); }
BITFLAX_INLINE int32_t to_ints(float x) { return static_cast<int32_t>(x); }
BITFLAX_INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
BITFLAX_INLINE float to_floats(int32_t x) { return static_cast<float>(x); }
BITFLAX_INLINE Bytes to_bytes(Ints x) { return __builtin_convertvector(x, Bytes); }
BITFLAX_INLINE int8_t to_bytes(int32_t x) { return static_cast<int8_t>(x); }

// Half to even, of |x| < 2^22: no bits for a fraction are left beside 1.5 * 2^23.
template <class V> BITFLAX_INLINE V rounded(V x) {
  constexpr float kLarge = 12582912;
  return (x + kLarge) - kLarge;
}

// All numbers of a vector as one: halves first, which are vectors too.
template <class V, class F> BITFLAX_INLINE float folded(V x, F f) {
  float all[kSize<V>];
  memcpy(all, &x, sizeof x);
  BITFLAX_UNROLL for (int n = kSize<V> / 2; n; n /= 2) {
    BITFLAX_UNROLL for (int i = 0; i < n; i++) all[i] = f(all[i], all[i + n]);
  }
  return all[0];
}
template <class V> BITFLAX_INLINE float sum(V x) {
  return folded(x, [](float a, float b) { return a + b; });
}
template <class V> BITFLAX_INLINE float most(V x) {
  return folded(x, [](float a, float b) { return a > b ? a : b; });
}
template <class V> BITFLAX_INLINE float least(V x) {
  return folded(x, [](float a, float b) { return a < b ? a : b; });
}

// Call f(V, k) for all k below n, in steps of V's size.
template <class F> BITFLAX_INLINE void each(int n, F f) {
  int k = 0;
  for (; k + kFloats <= n; k += kFloats) f(Floats{}, k);
  for (; k < n; k++) f(float{}, k);
}

inline int padded(int n) { return (n + 15) / 16 * 16; }

template <class V, int N> BITFLAX_INLINE V polynomial(const float (&c)[N], V x) {
  V y = all<V>(c[N - 1]);
  BITFLAX_UNROLL for (int i = N - 2; i >= 0; i--) y = y * x + c[i];
  return y;
}

// e^x, its error below 2e-7 of it; of x below -87, the smallest normal number.
template <class V> BITFLAX_INLINE V exponential(V x) {
  x = within(x, -87, 88);
  V n = rounded(greater(x, all<V>(-87)) * 1.44269504f);
  V r = x - n * 0.693359375f;  // ln 2 in two parts: n times the first is exact
  r = r - n * -2.12194440e-4f;
  // Taylor's series, its ends bent to the interval of half a ln 2.
  constexpr float c[] = {1, 1, 0.49999994f, 0.16666667f, 0.041665795f, 0.0083334519f,
                         0.0013981999f};
  V y = polynomial(c, r);
  typename Of<V>::Int power = (to_ints(n) + 127) << 23;
  V scale;
  memcpy(&scale, &power, sizeof scale);
  return x == x ? y * scale : x;
}

// The error function, to 2e-7: erf(x) = x p(x^2), and 1 beyond 3.9. The coefficients
// are a minimax fit in 2 (x / 3.9)^2 - 1.
template <class V> BITFLAX_INLINE V error_function(V x) {
  constexpr float kEnd = 3.9f;
  constexpr float p[] = {
      3.625839651e-01f, -1.810110807e-01f, 1.346908212e-01f, -1.095322222e-01f,
      9.067484736e-02f, -7.380585372e-02f, 5.787193403e-02f, -4.276264459e-02f,
      2.924636751e-02f, -1.960338466e-02f, 1.339552365e-02f, -7.024920080e-03f,
      2.056815894e-03f, -1.539567136e-03f, 1.874341746e-03f, -7.047037943e-04f};
  V z = within(x, -kEnd, kEnd);
  return z * polynomial(p, z * z * (2 / (kEnd * kEnd)) - 1);
}

template <class V> BITFLAX_INLINE V gelu(V x) {
  return x * (0.5f + 0.5f * error_function(x * 0.70710678f));
}
template <class V> BITFLAX_INLINE V relu(V x) { return x < 0 ? all<V>(0) : x; }
template <class V> BITFLAX_INLINE V tangent(V x) {  // hyperbolic
  V e = exponential(-2 * size_of(x));
  V y = (1 - e) / (1 + e);
  return x < 0 ? -y : y;
}

// out = (x - mean) / sqrt(variance + epsilon) * scale + bias.
inline void normalize(const float* x, int n, float epsilon, const float* scale,
                      const float* bias, float* out) {
  Floats total{};
  float rest = 0;
  int whole = n / kFloats * kFloats;
  for (int k = 0; k < whole; k += kFloats) total += load<Floats>(x + k);
  for (int k = whole; k < n; k++) rest += x[k];
  float mean = (sum(total) + rest) / n;
  total = Floats{}, rest = 0;
  for (int k = 0; k < whole; k += kFloats) {
    Floats d = load<Floats>(x + k) - mean;
    total += d * d;
  }
  for (int k = whole; k < n; k++) rest += (x[k] - mean) * (x[k] - mean);
  float factor = 1 / __builtin_sqrtf((sum(total) + rest) / n + epsilon);
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    V d = (load<V>(x + k) - mean) * factor;
    store(out + k, d * load<V>(scale + k) + load<V>(bias + k));
  });
}

}  // namespace
}  // namespace bitflax
