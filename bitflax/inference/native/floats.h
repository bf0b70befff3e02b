// Products of matrices of floats.
#pragma once

#include "vectors.h"

namespace bitflax {
namespace {

template <int Rows, int Vectors, class V>
BITFLAX_INLINE void tile(const float* a, int lda, const float* b, int ldb, int inner,
                         float* c, int ldc) {
  V total[Rows][Vectors];
  BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
    BITFLAX_UNROLL for (int v = 0; v < Vectors; v++) total[r][v] = V{};
  }
  for (int k = 0; k < inner; k++, b += ldb) {
    V right[Vectors];
    BITFLAX_UNROLL for (int v = 0; v < Vectors; v++) right[v] = load<V>(b + v * kSize<V>);
    BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
      float left = a[size_t(r) * lda + k];
      BITFLAX_UNROLL for (int v = 0; v < Vectors; v++) total[r][v] += left * right[v];
    }
  }
  BITFLAX_UNROLL for (int r = 0; r < Rows; r++) {
    BITFLAX_UNROLL for (int v = 0; v < Vectors; v++) {
      store(c + size_t(r) * ldc + v * kSize<V>, total[r][v]);
    }
  }
}

template <int Vectors, class V>
inline void strip(const float* a, int lda, int rows, const float* b, int ldb, int inner,
                  float* c, int ldc) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    tile<4, Vectors, V>(a + size_t(r) * lda, lda, b, ldb, inner, c + size_t(r) * ldc,
                        ldc);
  }
  for (; r < rows; r++) {
    tile<1, Vectors, V>(a + size_t(r) * lda, lda, b, ldb, inner, c + size_t(r) * ldc,
                        ldc);
  }
}

// c [rows, cols] = a [rows, inner] b [inner, cols].
inline void matmul(const float* a, int lda, int rows, const float* b, int ldb, int inner,
                   int cols, float* c, int ldc) {
  int n = 0;
  constexpr int kWide = kFloats == 16 ? 4 : 2;
  for (; n + kWide * kFloats <= cols; n += kWide * kFloats) {
    strip<kWide, Floats>(a, lda, rows, b + n, ldb, inner, c + n, ldc);
  }
  for (; n + kFloats <= cols; n += kFloats) {
    strip<1, Floats>(a, lda, rows, b + n, ldb, inner, c + n, ldc);
  }
  for (; n < cols; n++) strip<1, float>(a, lda, rows, b + n, ldb, inner, c + n, ldc);
}

}  // namespace
}  // namespace bitflax
