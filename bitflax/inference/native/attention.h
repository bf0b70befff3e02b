// Attention of one head in one text.
#pragma once

#include "linear.h"

namespace bitflax {
namespace {

constexpr int kQueries = 32;  // whose scores are held together
constexpr int kTogether = 16;  // keys that are turned together
constexpr float kMasked = -1e9f;

struct Head {
  const float *query, *key, *value;  // [queries or tokens, stride]
  float* out;                        // [queries, stride]
  int queries, tokens, stride, width;
  const uint8_t* mask;  // [tokens], or nullptr where all are real
};

// x = exp(x) / sum exp(x).
inline void softmax(float* x, int n) {
  Floats top = all<Floats>(x[0]);
  float rest_top = x[0];
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    V value = load<V>(x + k);
    if constexpr (kSize<V> == 1) rest_top = greater(value, rest_top);
    else top = greater(value, top);
  });
  float largest = greater(most(top), rest_top);
  Floats total{};
  float rest_total = 0;
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    V value = exponential(load<V>(x + k) - largest);
    store(x + k, value);
    if constexpr (kSize<V> == 1) rest_total += value;
    else total += value;
  });
  float inverse = 1 / (sum(total) + rest_total);
  each(n, [&](auto v, int k) {
    typedef decltype(v) V;
    store(x + k, load<V>(x + k) * inverse);
  });
}

inline size_t key_floats(int tokens, int width) { return size_t(padded(tokens)) * width; }
inline size_t score_floats(int tokens, int width) {
  return size_t(kQueries) * (padded(tokens) + padded(width));
}

// out = softmax(query key^T / sqrt(width) + mask) value, its probabilities rounded.
inline void attend(Worker& me, const Head& head, const Rounding& r) {
  int tokens = head.tokens, width = head.width, ld = padded(tokens);
  float* keys = me.keys.floats();
  for (int j = 0; j < tokens; j += kTogether) {  // lines that the nearest cache holds
    int some = tokens - j < kTogether ? tokens - j : kTogether;
    const float* from = head.key + size_t(j) * head.stride;
    for (int k = 0; k < width; k++) {
      float* to = keys + size_t(k) * ld + j;
      for (int i = 0; i < some; i++) to[i] = from[size_t(i) * head.stride + k];
    }
  }
  for (int k = 0; k < width; k++) {
    for (int j = tokens; j < ld; j++) keys[size_t(k) * ld + j] = 0;
  }
  float* scores = me.scores.floats();
  float* queries = scores + size_t(kQueries) * ld;
  float factor = 1 / __builtin_sqrtf(width);
  for (int first = 0; first < head.queries; first += kQueries) {
    int some = head.queries - first < kQueries ? head.queries - first : kQueries;
    for (int i = 0; i < some; i++) {
      const float* from = head.query + size_t(first + i) * head.stride;
      float* to = queries + size_t(i) * padded(width);
      each(width, [&](auto v, int k) {
        typedef decltype(v) V;
        store(to + k, load<V>(from + k) * factor);
      });
    }
    matmul(queries, padded(width), some, keys, ld, width, ld, scores, ld);
    for (int i = 0; i < some; i++) {
      float* row = scores + size_t(i) * ld;
      for (int j = 0; head.mask && j < tokens; j++) {
        if (!head.mask[j]) row[j] += kMasked;
      }
      softmax(row, tokens);
      if (r.on()) {
        to_values(r, r.range == kFixed ? Grid{r.step, 0} : grid(r, extent(r, row, tokens)),
                  row, tokens);
      }
    }
    matmul(scores, ld, some, head.value, head.stride, tokens, width,
           head.out + size_t(first) * head.stride, head.stride);
  }
}

}  // namespace
}  // namespace bitflax
