// Products by instructions that add four products of bytes, and by plain C++.
//
// Weights stay bits in memory; a register of digits is made of them for every four rows
// of the matrix, and multiplied by up to kRows rows of activations.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "digits.h"
#include "vectors.h"

namespace bitflax {
namespace {

// Ops: kLanes channels a vector, kVectors of them a block; Sums, Digits; and
//   digits(bits, base): the digits of kLanes channels times four rows,
//   add(sums, digits, four activations).
template <int Base, class Ops>
struct Dot {
  static constexpr int kLanes = Ops::kLanes, kVectors = Ops::kVectors;
  static constexpr int kChannels = kLanes * kVectors;
  static constexpr int kMostRows = 8;
  static constexpr int kPlane = kLanes / 2;  // bytes of four bits a lane
  static constexpr int kPlanes = Base - 1;   // a ternary digit is a sum of two bits
  static constexpr size_t kScratch = 0;

  static int steps(int in) { return (in + 3) / 4; }
  static int blocks(int out) { return (out + kChannels - 1) / kChannels; }
  static int code_bytes(int in) { return 4 * steps(in); }
  static size_t bytes(int in, int out) {
    return size_t(blocks(out)) * steps(in) * kVectors * kPlanes * kPlane;
  }

  // Write bits [block, step, vector, plane, 4 * lanes] of a leaf [in, out] into zeros.
  static void layout(const Leaf& leaf, uint8_t* row, uint8_t* to) {
    for (int k = 0; k < leaf.rows; k++) {
      digits_of(leaf, k, row);
      for (int n = 0; n < leaf.cols; n++) {
        int lane = n % kLanes, bit = 4 * lane + k % 4;
        size_t vector =
            (size_t(n / kChannels) * steps(leaf.rows) + k / 4) * kVectors +
            n % kChannels / kLanes;
        uint8_t* at = to + vector * kPlanes * kPlane + bit / 8;
        for (int plane = 0; plane < kPlanes; plane++) {
          at[plane * kPlane] |= uint8_t((row[n] > plane) << bit % 8);
        }
      }
    }
  }

  template <int Rows>
  static BITFLAX_INLINE void sweep(const int8_t* q, int stride, const uint8_t* w,
                                   int count, int32_t* sums, int ld) {
    typename Ops::Sums total[Rows][kVectors];
    BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
      BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) total[r][v] = Ops::zero();
    }
    for (int k = 0; k < count; k++) {
      typename Ops::Digits digits[kVectors];
      BITFLAX_UNROLL for (int v = 0; v < kVectors; v++, w += kPlanes * kPlane) {
        digits[v] = Ops::digits(w);
        if constexpr (Base == 3) {
          digits[v] = Ops::plus(digits[v], Ops::digits(w + kPlane));
        }
      }
      BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
        int32_t four;
        memcpy(&four, q + size_t(r) * stride + 4 * k, 4);
        BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
          total[r][v] = Ops::add(total[r][v], digits[v], four);
        }
      }
    }
    BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
      BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
        Ops::store(sums + size_t(r) * ld + kLanes * v, total[r][v]);
      }
    }
  }

  static void multiply(const int8_t* q, int stride, int rows, int in,
                       const Product* products, int count, uint8_t*) {
    for (int p = 0; p < count; p++) {
      const Product& product = products[p];
      for (int b = product.first; b < product.last; b++) {
        auto go = [&](auto some, int r) {
          sweep<decltype(some)::value>(
              q + size_t(r) * stride, stride,
              product.weights + size_t(b) * steps(in) * kVectors * kPlanes * kPlane,
              steps(in), product.sums + size_t(r) * product.ld + b * kChannels,
              product.ld);
        };
        constexpr int kRows = Ops::kRows;
        int r = 0;
        for (; r + kRows <= rows; r += kRows) go(Count<kRows>{}, r);
        for (; r < rows; r++) go(Count<1>{}, r);
      }
    }
  }

  template <int N> struct Count { static constexpr int value = N; };
};

#if defined(BITFLAX_VNNI)
struct Instructions {
  static constexpr int kLanes = 16, kVectors = 3, kRows = 8;
  typedef __m512i Sums;
  typedef __m512i Digits;
  static BITFLAX_INLINE Sums zero() { return _mm512_setzero_si512(); }
  static BITFLAX_INLINE Digits digits(const uint8_t* bits) {
    uint64_t mask;
    memcpy(&mask, bits, 8);
    return _mm512_maskz_set1_epi8(mask, 1);
  }
  static BITFLAX_INLINE Digits plus(Digits a, Digits b) { return _mm512_add_epi8(a, b); }
  static BITFLAX_INLINE Sums add(Sums sums, Digits digits, int32_t four) {
    return _mm512_dpbusd_epi32(sums, digits, _mm512_set1_epi32(four));
  }
  static BITFLAX_INLINE void store(int32_t* to, Sums sums) {
    _mm512_storeu_si512(to, sums);
  }
};

#elif defined(__AVX2__)
struct Instructions {
  static constexpr int kLanes = 8, kVectors = 2, kRows = 4;
  typedef __m256i Sums;
  typedef __m256i Digits;
  static BITFLAX_INLINE Sums zero() { return _mm256_setzero_si256(); }
  static BITFLAX_INLINE Digits digits(const uint8_t* bits) {
    int32_t mask;
    memcpy(&mask, bits, 4);
    // Byte i of the 32 bits to bytes 8 i to 8 i + 7, and there one bit each.
    __m256i spread = _mm256_shuffle_epi8(
        _mm256_set1_epi32(mask),
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                           0x0303030303030303));
    __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8(1));
  }
  static BITFLAX_INLINE Digits plus(Digits a, Digits b) { return _mm256_add_epi8(a, b); }
  static BITFLAX_INLINE Sums add(Sums sums, Digits digits, int32_t four) {
    __m256i pairs = _mm256_maddubs_epi16(digits, _mm256_set1_epi32(four));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static BITFLAX_INLINE void store(int32_t* to, Sums sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums);
  }
};

#elif defined(__ARM_FEATURE_DOTPROD)
struct Instructions {
  static constexpr int kLanes = 4, kVectors = 4, kRows = 4;
  typedef int32x4_t Sums;
  typedef int8x16_t Digits;
  static BITFLAX_INLINE Sums zero() { return vdupq_n_s32(0); }
  static BITFLAX_INLINE Digits digits(const uint8_t* bits) {
    uint8x16_t spread = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
    uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    return vreinterpretq_s8_u8(vandq_u8(vtstq_u8(spread, bit), vdupq_n_u8(1)));
  }
  static BITFLAX_INLINE Digits plus(Digits a, Digits b) { return vaddq_s8(a, b); }
  static BITFLAX_INLINE Sums add(Sums sums, Digits digits, int32_t four) {
    return vdotq_s32(sums, digits, vreinterpretq_s8_s32(vdupq_n_s32(four)));
  }
  static BITFLAX_INLINE void store(int32_t* to, Sums sums) { vst1q_s32(to, sums); }
};

#else

struct Instructions {
  static constexpr int kLanes = 4, kVectors = 4, kRows = 1;
  struct Sums { int32_t of[kLanes]; };
  struct Digits { int8_t of[kLanes][4]; };
  static BITFLAX_INLINE Sums zero() { return {}; }
  static BITFLAX_INLINE Digits digits(const uint8_t* bits) {
    Digits out;
    for (int i = 0; i < 4 * kLanes; i++) out.of[i / 4][i % 4] = bits[i / 8] >> i % 8 & 1;
    return out;
  }
  static BITFLAX_INLINE Digits plus(Digits a, Digits b) {
    for (int i = 0; i < 4 * kLanes; i++) a.of[i / 4][i % 4] += b.of[i / 4][i % 4];
    return a;
  }
  static BITFLAX_INLINE Sums add(Sums sums, Digits digits, int32_t four) {
    int8_t x[4];
    memcpy(x, &four, 4);
    for (int i = 0; i < kLanes; i++) {
      for (int j = 0; j < 4; j++) sums.of[i] += digits.of[i][j] * x[j];
    }
    return sums;
  }
  static BITFLAX_INLINE void store(int32_t* to, Sums sums) {
    memcpy(to, &sums, sizeof sums);
  }
};

#endif

}  // namespace
}  // namespace bitflax
