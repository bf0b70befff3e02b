// What a target's kernels reach: rounded rows times a matrix, again and again.
#pragma once

#include <time.h>

#include "encoder.h"

namespace bitflax {
namespace {

// Multiply-adds of 8 rows by a random matrix, in 10^9 a second; the best of all runs.
inline double speed(int base, int in, int out, double seconds) {
  size_t row_bytes = (size_t(out) * (base - 1) + 7) / 8;
  auto codes = made<uint8_t>(row_bytes * in);
  auto bias = made<float>(out);
  auto x = made<float>(size_t(kStep) * in);
  auto y = made<float>(size_t(kStep) * padded(out));
  float scale = 1;
  uint32_t state = 1;
  auto next = [&] { return state = state * 1664525 + 1013904223; };
  for (size_t i = 0; codes && i < row_bytes * in; i++) {
    codes[i] = uint8_t(next() >> 24) & (base == 3 ? 0xaa : 0xff);
  }
  for (size_t i = 0; x && i < size_t(kStep) * in; i++) x[i] = int32_t(next()) * 0x1p-31f;
  Linear linear = {{1, {{base - 1, in, out, 1, 1, codes, &scale}}}, bias};
  Rounding rounding = {kRow, -128, 127, 127, 1, 0, 0, 0, 0, 0, 0};
  Weights w = {};
  Worker me;
  double best = 0;
  bool ok = codes && bias && x && y && make_weights(linear, true, w) &&
            me.codes.reserve(size_t(kStep) * w.code_bytes()) &&
            me.sums.reserve(size_t(4) * kStep * w.blocks() * w.channels()) &&
            me.tables.reserve(Binary::kScratch + Ternary::kScratch + 64);
  auto now = [] {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
  };
  Output output = {&w, y, padded(out)};
  for (double begin = now(), last = begin; ok && last - begin < seconds;) {
    multiply(me, &output, 1, x, in, kStep, rounding);
    double then = now(), found = 1e-9 * kStep * in * out / (then - last);
    if (found > best) best = found;
    last = then;
  }
  free_weights(w);
  for (Buffer* b : {&me.codes, &me.sums, &me.tables}) b->release();
  free(codes), free(bias), free(x), free(y);
  return best;
}

}  // namespace
}  // namespace bitflax
