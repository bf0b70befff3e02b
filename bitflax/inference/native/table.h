// Products by tables of 32 or 64 sums, for AVX-512.
//
// The digits of one channel for kDigits activations are an index into a table of all
// their sums: one `vpermw` (`vpermi2w`) finds for 32 channels what as many times kDigits
// multiply-adds would. A table is built once and serves all channels. Sums of 16 bits
// take a chunk of lookups before they are added to those of 32.
#pragma once

#include <immintrin.h>

#include "digits.h"
#include "vectors.h"

namespace bitflax {
namespace {

// How large an entry's digits are, the first five: pairs for `vpmaddubsw`.
struct alignas(64) Pairs {
  uint8_t digits[3][64] = {}, sixth[64] = {};
  constexpr Pairs(int base, int count) {
    for (int entry = 0; entry < 32; entry++) {
      for (int i = 0, left = entry; i < 5 && i < count; i++, left /= base) {
        digits[i / 2][2 * entry + i % 2] = uint8_t(left % base);
      }
      sixth[2 * entry + 1] = 1;
    }
  }
};

// Digits: of base 2, five (tables of 32) or six (of 64); of base 3, three (of 27).
template <int Base, int Digits>
struct Table {
  static constexpr int kRegisters = Digits == 6 ? 2 : 1;  // a table fills
  static constexpr int kIndexBits = Digits == 6 ? 6 : 5;
  static constexpr int kLookups = Digits == 6 ? 2 : 3;    // whose indices share 16 bits
  static constexpr int kWord = kLookups * Digits;         // digits in 16 bits
  static constexpr int kVectors = 4, kChannels = 32 * kVectors;
  // Words a chunk: 48 lookups of at most 5 * 128 fit in 15 bits, 40 of 6 * 128, and 42
  // of 3 * 2 * 128.
  static constexpr int kChunk = Digits == 5 ? 16 : Digits == 6 ? 20 : 14;
  static constexpr int kMostRows = 8;
  static constexpr size_t kScratch =
      64 * size_t(kRegisters) * kLookups * kChunk * kMostRows;

  static int words(int in) { return (in + kWord - 1) / kWord; }
  static int blocks(int out) { return (out + kChannels - 1) / kChannels; }
  static int code_bytes(int in) { return words(in) * kWord + 8; }
  static size_t bytes(int in, int out) {
    return size_t(2) * blocks(out) * words(in) * kChannels;
  }

  // The words of a chunk that begins at `k`, and where those of a block of channels lie
  // among all: [chunk, block, word, channel], so that a chunk is read in one stream.
  static int some(int all, int k) { return all - k < kChunk ? all - k : kChunk; }
  static size_t place(int all, int blocks, int k, int block) {
    return (size_t(k) * blocks + size_t(block) * some(all, k)) * kChannels;
  }

  // Write the indices of a leaf [in, out] into zeros.
  static void layout(const Leaf& leaf, uint8_t* row, uint8_t* to) {
    int all = words(leaf.rows);
    for (int k = 0; k < leaf.rows; k++) {
      digits_of(leaf, k, row);
      int at = k / kWord, digit = k % kWord, unit = 1;
      for (int i = 0; i < digit % Digits; i++) unit *= Base;
      unit <<= kIndexBits * (digit / Digits);
      for (int first = 0; first < leaf.cols; first += kChannels) {
        uint16_t* word = reinterpret_cast<uint16_t*>(to) + kChannels * (at % kChunk) +
                         place(all, blocks(leaf.cols), at - at % kChunk,
                               first / kChannels);
        int last = leaf.cols - first < kChannels ? leaf.cols - first : kChannels;
        for (int n = 0; n < last; n++) {
          word[lane(n)] += uint16_t(row[first + n] * unit);
        }
      }
    }
  }

  // Where a channel's index stands: sums of even lanes, then of odd ones, make channels.
  static int lane(int n) { return n / 32 * 32 + n % 16 * 2 + n % 32 / 16; }

  static BITFLAX_INLINE __m512i two(const int8_t* from) {
    int16_t pair;
    memcpy(&pair, from, 2);
    return _mm512_set1_epi16(pair);
  }

  // Build the tables of one row: one every `stride` registers.
  static void build(const int8_t* q, int count, __m512i* table, int stride) {
    static constexpr Pairs kPairs(Base, Digits);
    auto part = [](const uint8_t* digits, const int8_t* from) {
      return _mm512_maddubs_epi16(_mm512_load_si512(digits), two(from));
    };
    for (int i = 0; i < count; i++, q += Digits, table += stride) {
      __m512i t = _mm512_add_epi16(part(kPairs.digits[0], q),
                                   part(kPairs.digits[1], q + 2));
      if constexpr (Digits > 4) t = _mm512_add_epi16(t, part(kPairs.digits[2], q + 4));
      _mm512_store_si512(table, t);
      if constexpr (kRegisters == 2) {
        _mm512_store_si512(table + 1, _mm512_add_epi16(t, part(kPairs.sixth, q + 4)));
      }
    }
  }

  static BITFLAX_INLINE __m512i found(__m512i index, const __m512i* table) {
    if constexpr (kRegisters == 1) {
      return _mm512_permutexvar_epi16(index, table[0]);
    } else {
      return _mm512_permutex2var_epi16(table[0], index, table[1]);
    }
  }

  // Add a chunk's sums of Rows rows and one block of channels.
  template <int Rows>
  static BITFLAX_INLINE void sweep(const uint16_t* w, int count, const __m512i* table,
                                   int stride, int32_t* sums, int ld, bool fresh) {
    __m512i total[Rows][kVectors];
    BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
      BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) total[r][v] = __m512i{};
    }
    for (int k = 0; k < count; k++, w += kChannels) {
      __m512i index[kVectors];
      BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
        index[v] = _mm512_loadu_si512(w + 32 * v);
      }
      BITFLAX_UNROLL for (int j = 0; j < kLookups; j++, table += stride) {
        BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
          __m512i held[kRegisters];
          BITFLAX_UNROLL for (int i = 0; i < kRegisters; i++) {
            held[i] = _mm512_load_si512(table + kRegisters * r + i);
          }
          BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
            total[r][v] = _mm512_add_epi16(total[r][v], found(index[v], held));
          }
        }
        BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
          index[v] = _mm512_srli_epi16(index[v], kIndexBits);
        }
      }
    }
    BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
      BITFLAX_UNROLL for (int v = 0; v < kVectors; v++) {
        int32_t* out = sums + size_t(r) * ld + 32 * v;
        __m512i low = _mm512_madd_epi16(total[r][v], _mm512_set1_epi32(1));
        __m512i high = _mm512_srai_epi32(total[r][v], 16);
        if (!fresh) {
          low = _mm512_add_epi32(low, _mm512_loadu_si512(out));
          high = _mm512_add_epi32(high, _mm512_loadu_si512(out + 16));
        }
        _mm512_storeu_si512(out, low);
        _mm512_storeu_si512(out + 16, high);
      }
    }
  }

  // Multiply up to kMostRows rows of codes by several matrices of `in` rows.
  static void multiply(const int8_t* q, int stride, int rows, int in,
                       const Product* products, int count, uint8_t* scratch) {
    auto table = reinterpret_cast<__m512i*>(scratch);
    int all = words(in), step = kRegisters * rows;
    for (int k = 0; k < all; k += kChunk) {
      int now = some(all, k);
      for (int r = 0; r < rows; r++) {
        build(q + size_t(r) * stride + k * kWord, now * kLookups,
              table + kRegisters * r, step);
      }
      for (int p = 0; p < count; p++) {
        const Product& product = products[p];
        for (int b = product.first; b < product.last; b++) {
          auto w = reinterpret_cast<const uint16_t*>(product.weights) +
                   place(all, product.ld / kChannels, k, b);
          int32_t* sums = product.sums + size_t(b) * kChannels;
          auto go = [&](auto rows_now, int r) {
            sweep<decltype(rows_now)::value>(w, now, table + kRegisters * r, step,
                                             sums + size_t(r) * product.ld,
                                             product.ld, k == 0);
          };
          int r = 0;
          for (; r + 4 <= rows; r += 4) go(Count<4>{}, r);
          if (rows - r >= 2) go(Count<2>{}, r), r += 2;
          if (rows - r) go(Count<1>{}, r);
        }
      }
    }
  }

  template <int N> struct Count { static constexpr int value = N; };
};

}  // namespace
}  // namespace bitflax
