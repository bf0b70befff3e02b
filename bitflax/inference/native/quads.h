// Products by tables of 16 sums, for AVX2 and NEON.
//
// Four digits of a channel are an index into a table of sums of four activations; one
// instruction looks up as many channels as a register has bytes. A sum takes ten bits, so
// it lies in two tables, sum = 64 high + low: four low parts and twelve high ones add up
// in 8 bits, and 60 lookups in 16. A ternary digit is a sum of two binary ones.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#include "digits.h"
#include "vectors.h"

namespace bitflax {
namespace {

#if defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

typedef uint8_t Index __attribute__((vector_size(kBytes)));
typedef uint16_t Pairs __attribute__((vector_size(kBytes)));
typedef int16_t SignedPairs __attribute__((vector_size(kBytes)));
typedef int32_t Wide __attribute__((vector_size(2 * kBytes)));
typedef int16_t Entries __attribute__((vector_size(32)));
typedef int8_t Entry __attribute__((vector_size(16)));

BITFLAX_INLINE Index found(const uint8_t* table, Index index) {
#if defined(__AVX2__)
  __m128i held = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return (Index)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(held), (__m256i)index);
#else
  return (Index)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index);
#endif
}

template <int Base>
struct Quads {
  static constexpr int kVectors = 2, kChannels = kBytes * kVectors;
  static constexpr int kMostRows = 8;
  static constexpr int kQuad = Base == 2 ? 16 : 8;  // digits of four lookups
  static constexpr int kTables = kQuad / 4;         // that they look in
  static constexpr int kHigh = 3, kChunk = 5 * kHigh;  // quads whose sums fit
  static constexpr int kTable = 32;                 // bytes, low part first
  static constexpr size_t kScratch =
      size_t(kTable) * kTables * kChunk * kMostRows;

  static int quads(int in) { return (in + kQuad - 1) / kQuad; }
  static int blocks(int out) { return (out + kChannels - 1) / kChannels; }
  static int code_bytes(int in) { return quads(in) * kQuad; }
  static size_t bytes(int in, int out) {
    return size_t(blocks(out)) * quads(in) * 2 * kChannels;
  }

  // Write indices [block, quad, two, vector, byte] of a leaf [in, out] into zeros. A
  // register's even bytes are its first channels, the odd ones its last: so they leave it.
  static void layout(const Leaf& leaf, uint8_t* row, uint8_t* to) {
    for (int k = 0; k < leaf.rows; k++) {
      digits_of(leaf, k, row);
      int place = k % kQuad;
      for (int n = 0; n < leaf.cols; n++) {
        int lane = n % kBytes, half = kBytes / 2;
        int byte = lane < half ? 2 * lane : 2 * (lane - half) + 1;
        uint8_t* at = to + (size_t(n / kChannels) * quads(leaf.rows) + k / kQuad) * 2 *
                               kChannels +
                      n % kChannels / kBytes * kBytes + byte;
        if (Base == 2) {
          at[place / 8 * kChannels] |= uint8_t(row[n] << place % 8);
        } else {
          at[0] |= uint8_t((row[n] > 0) << place);
          at[kChannels] |= uint8_t((row[n] > 1) << place);
        }
      }
    }
  }

  // Build the tables of one row: one every `stride` bytes.
  static void build(const int8_t* q, int count, uint8_t* table, size_t stride) {
    Entries mask[4];
    for (int e = 0; e < 16; e++) {
      for (int i = 0; i < 4; i++) mask[i][e] = e >> i & 1 ? -1 : 0;
    }
    for (int i = 0; i < count; i++, q += 4, table += stride) {
      Entries sum = (mask[0] & int16_t(q[0])) + (mask[1] & int16_t(q[1])) +
                    (mask[2] & int16_t(q[2])) + (mask[3] & int16_t(q[3]));
      Entry low = __builtin_convertvector(sum & int16_t(63), Entry);
      Entry high = __builtin_convertvector(sum >> 6, Entry);
      memcpy(table, &low, 16);
      memcpy(table + 16, &high, 16);
    }
  }

  template <int Rows>
  static BITFLAX_INLINE void sweep(const uint8_t* w, int count, const uint8_t* table,
                                   size_t stride, int32_t* sums, int ld, bool fresh) {
    SignedPairs even[Rows][kVectors] = {}, odd[Rows][kVectors] = {};
    for (int k = 0; k < count;) {
      Index high[Rows][kVectors] = {};
      int last = k + kHigh < count ? k + kHigh : count;
      for (; k < last; k++, w += 2 * kChannels, table += kTables * stride) {
        Index low[Rows][kVectors] = {};
        BITFLAX_UNROLL for (int i = 0; i < 2; i++) {
          Index index[kVectors];
          BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
            memcpy(&index[v], w + i * kChannels + v * kBytes, kBytes);
          }
          BITFLAX_UNROLL for (int s = 0; s < 2; s++) {
            const uint8_t* at = table + ((Base == 2 ? 2 * i : 0) + s) * stride;
            BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
              Index four = s ? (Index)((Pairs)index[v] >> 4) & 15 : index[v] & 15;
              BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
                low[r][v] += found(at + kTable * r, four);
                high[r][v] += found(at + kTable * r + 16, four);
              }
            }
          }
        }
        BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
          BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
            even[r][v] += (SignedPairs)((Pairs)low[r][v] & 255);
            odd[r][v] += (SignedPairs)((Pairs)low[r][v] >> 8);
          }
        }
      }
      BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
        BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
          SignedPairs both = (SignedPairs)high[r][v];
          even[r][v] += ((SignedPairs)((Pairs)both << 8) >> 8) * 64;
          odd[r][v] += (both >> 8) * 64;
        }
      }
    }
    BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
      BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
        int32_t* out = sums + size_t(r) * ld + kBytes * v;
        BITFLAX_UNROLL for (int half = 0; half < 2; half++, out += kBytes / 2) {
          Wide wide = __builtin_convertvector(half ? odd[r][v] : even[r][v], Wide);
          Wide before = {};
          if (!fresh) memcpy(&before, out, sizeof before);
          wide += before;
          memcpy(out, &wide, sizeof wide);
        }
      }
    }
  }

  static void multiply(const int8_t* q, int stride, int rows, int in,
                       const Product* products, int count, uint8_t* scratch) {
    int all = quads(in);
    size_t step = size_t(kTable) * rows;
    for (int k = 0; k < all; k += kChunk) {
      int some = all - k < kChunk ? all - k : kChunk;
      for (int r = 0; r < rows; r++) {
        build(q + size_t(r) * stride + k * kQuad, some * kTables, scratch + kTable * r,
              step);
      }
      for (int p = 0; p < count; p++) {
        const Product& product = products[p];
        for (int b = product.first; b < product.last; b++) {
          const uint8_t* w = product.weights + (size_t(b) * all + k) * 2 * kChannels;
          int32_t* sums = product.sums + size_t(b) * kChannels;
          int r = 0;
          for (; r + 2 <= rows; r += 2) {
            sweep<2>(w, some, scratch + kTable * r, step,
                     sums + size_t(r) * product.ld, product.ld, k == 0);
          }
          if (r < rows) {
            sweep<1>(w, some, scratch + kTable * r, step,
                     sums + size_t(r) * product.ld, product.ld, k == 0);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace bitflax
