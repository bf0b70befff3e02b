// Weights as digits: a 1-bit weight is 0 or 1, for -1 and 1; a ternary one 0, 1 or 2, for
// -1, 0 and 1. Kernels add up digits times integers:
//
//   sum of weights times integers = 2 * that - sum of integers (base 2), or
//                                   that - sum of integers     (base 3)
#pragma once

#include <cstring>

#include "model.h"

namespace bitflax {
namespace {

// Write the digits of a row: [cols], and as many more as fill its last byte.
inline void digits_of(const Leaf& leaf, int row, uint8_t* out) {
  const uint8_t* codes = leaf.codes + size_t(row) * leaf.row_bytes();
  int fields = 8 / leaf.bits, mask = (1 << leaf.bits) - 1;
  for (int i = 0; i < leaf.row_bytes(); i++) {
    for (int j = 0; j < fields; j++) {
      out[fields * i + j] = codes[i] >> (leaf.bits * j) & mask;
    }
  }
}

// What one product makes: sums [rows, ld] of the blocks of channels first to last.
struct Product {
  const uint8_t* weights;
  int32_t* sums;
  int ld, first, last;
};

}  // namespace
}  // namespace bitflax
