// Matrices of a layer: integers times digits where both sides have them, else floats.
#pragma once

#include <stdlib.h>

#include "floats.h"
#include "products.h"
#include "rounding.h"
#include "threads.h"

namespace bitflax {
namespace {

// Bytes that grow and never shrink, aligned to 64.
struct Buffer {
  uint8_t* bytes = nullptr;
  size_t size = 0;

  bool reserve(size_t need) {
    if (need <= size) return true;
    void* fresh = nullptr;
    need = (need + 4095) / 4096 * 4096;
    if (posix_memalign(&fresh, 64, need)) return false;
    free(bytes);
    bytes = static_cast<uint8_t*>(fresh), size = need;
    memset(bytes, 0, size);
    return true;
  }
  bool reserve_floats(size_t count) { return reserve(4 * count + 64); }
  void release() { free(bytes), bytes = nullptr, size = 0; }
  float* floats() const { return reinterpret_cast<float*>(bytes); }
};

// A thread among those that share rows, and where it works.
struct Worker {
  int index = 0, count = 1;
  Barrier* barrier = nullptr;
  Buffer codes, sums, tables, values, panel, scores, keys;

  void sync() const {
    if (count > 1) barrier->wait();
  }
};

constexpr int kStep = 8;  // rows that are multiplied together
static_assert(kStep <= Binary::kMostRows && kStep <= Ternary::kMostRows, "too many");

enum Activation { kLinear, kGelu, kRelu };

struct Weights {
  int in, out, base;
  int parts;           // 0 where floats are multiplied
  uint8_t* laid[2];    // owned, as are the next two
  float* scale[2];     // [out]
  int32_t* column[2];  // [out]: the sum of its weights, without the scale
  const Linear* from;

  size_t laid_bytes() const {
    return base == 2 ? Binary::bytes(in, out) : Ternary::bytes(in, out);
  }
  size_t bytes() const { return parts * (laid_bytes() + 8 * size_t(out)); }
  int blocks() const { return base == 2 ? Binary::blocks(out) : Ternary::blocks(out); }
  int channels() const { return base == 2 ? Binary::kChannels : Ternary::kChannels; }
  int code_bytes() const {
    return padded(base == 2 ? Binary::code_bytes(in) : Ternary::code_bytes(in)) + 64;
  }
};

inline void free_weights(Weights& w) {
  for (int i = 0; i < 2; i++) free(w.laid[i]), free(w.scale[i]), free(w.column[i]);
}

inline bool has_digits(const Matrix& kernel) {
  bool found = true;
  for (int i = 0; i < kernel.parts; i++) {
    const Leaf& leaf = kernel.part[i];
    found = found && leaf.bits <= 2 && leaf.scale_rows == 1 &&
            leaf.bits == kernel.part[0].bits;
  }
  return found;
}

inline bool lay_out(const Leaf& leaf, uint8_t* row, int part, Weights& w) {
  void* laid = nullptr;
  if (posix_memalign(&laid, 64, w.laid_bytes() + 64)) return false;
  w.laid[part] = static_cast<uint8_t*>(laid);
  w.scale[part] = static_cast<float*>(malloc(4 * size_t(w.out)));
  w.column[part] = static_cast<int32_t*>(malloc(4 * size_t(w.out)));
  if (!w.scale[part] || !w.column[part]) return false;
  memset(laid, 0, w.laid_bytes() + 64);
  w.base == 2 ? Binary::layout(leaf, row, w.laid[part])
              : Ternary::layout(leaf, row, w.laid[part]);
  int32_t* column = w.column[part];
  for (int n = 0; n < w.out; n++) {
    w.scale[part][n] = leaf.scales[n / (leaf.cols / leaf.groups)];
    column[n] = -w.in;
  }
  for (int k = 0; k < w.in; k++) {
    digits_of(leaf, k, row);
    for (int n = 0; n < w.out; n++) column[n] += row[n] * (w.base == 2 ? 2 : 1);
  }
  return true;
}

// Lay a matrix out for its kernel, if integers go into it; false: no memory.
inline bool make_weights(const Linear& from, bool coded, Weights& w) {
  const Leaf& first = from.kernel.part[0];
  w = {first.rows, first.cols, first.bits + 1, 0, {}, {}, {}, &from};
  if (!coded || !has_digits(from.kernel)) return true;
  w.parts = from.kernel.parts;
  auto row = static_cast<uint8_t*>(malloc(first.cols + 8));
  bool ok = row;
  for (int i = 0; ok && i < w.parts; i++) ok = lay_out(from.kernel.part[i], row, i, w);
  free(row);
  return ok;
}

// A product's matrix, and where it goes: out [rows, stride].
struct Output {
  const Weights* weights;
  float* to;
  int stride;
};

// Rounded rows that are multiplied together.
struct Rows {
  int count;
  int32_t sum[kStep];
  Grid grid[kStep];
};

// out = integers' sum * scale_x scale_w + zero sum of weights + bias; Plain where there
// is one part, binary, of activations without zero.
template <bool Plain, class V>
BITFLAX_INLINE V combined(const Weights& w, const Rows& rows, int r, bool shifted,
                          int32_t* const* sums, int n) {
  Grid g = rows.grid[r];
  V y = all<V>(0);
  for (int i = 0; i < (Plain ? 1 : w.parts); i++) {
    typename Of<V>::Int sum, column;
    memcpy(&sum, sums[i] + n, sizeof sum);
    V scale = load<V>(w.scale[i] + n);
    if constexpr (Plain) return to_floats(sum * 2 - rows.sum[r]) * g.scale * scale;
    memcpy(&column, w.column[i] + n, sizeof column);
    sum = (w.base == 2 ? sum * 2 : sum) - rows.sum[r];
    if (shifted) sum = sum + column * 128;
    y = y + to_floats(sum) * g.scale * scale;
    if (g.zero != 0) y = y + to_floats(column) * scale * g.zero;
  }
  return y;
}

template <Activation Kind, bool Plain>
inline void finish(const Weights& w, const Rows& rows, int r, bool shifted,
                   int32_t* const* sums, int first, int last, float* out) {
  each(last - first, [&](auto v, int k) {
    typedef decltype(v) V;
    int n = first + k;
    V y = combined<Plain, V>(w, rows, r, shifted, sums, n) + load<V>(w.from->bias + n);
    if constexpr (Kind == kGelu) y = gelu(y);
    if constexpr (Kind == kRelu) y = relu(y);
    store(out + n, y);
  });
}

typedef void Finish(const Weights&, const Rows&, int, bool, int32_t* const*, int, int,
                    float*);

template <bool Plain> Finish* finish_of(Activation kind) {
  if (kind == kGelu) return finish<kGelu, Plain>;
  return kind == kRelu ? finish<kRelu, Plain> : finish<kLinear, Plain>;
}

// What a worker's share of `all` equal things is.
struct Share {
  int first, last;
  Share(const Worker& me, int all)
      : first(int(int64_t(all) * me.index / me.count)),
        last(int(int64_t(all) * (me.index + 1) / me.count)) {}
};

inline void multiply_codes(Worker& me, const Output* outputs, int count, const float* x,
                           int stride, int rows, const Rounding& r, const Grid* shared,
                           Activation kind) {
  const Weights& first = *outputs[0].weights;
  const int in = first.in, code_stride = first.code_bytes();
  const bool shifted = r.top > 127;
  auto codes = reinterpret_cast<int8_t*>(me.codes.bytes);
  Product products[6];
  int32_t* sums[3][2];
  for (int begin = 0; begin < rows; begin += kStep) {
    Rows some = {rows - begin < kStep ? rows - begin : kStep, {}, {}};
    for (int i = 0; i < some.count; i++) {
      const float* row = x + size_t(begin + i) * stride;
      int8_t* to = codes + size_t(i) * code_stride;
      some.grid[i] = shared ? *shared : grid(r, extent(r, row, in));
      if (r.range == kFixed) some.grid[i].scale += fault(r, row, in);
      some.sum[i] = to_codes(r, some.grid[i], row, in, to);
      memset(to + in, 0, code_stride - in);
    }
    int made = 0;
    auto space = reinterpret_cast<int32_t*>(me.sums.bytes);
    for (int o = 0; o < count; o++) {
      const Weights& w = *outputs[o].weights;
      Share blocks(me, w.blocks());
      int ld = w.blocks() * w.channels();
      for (int i = 0; i < w.parts; i++, space += size_t(kStep) * ld) {
        products[made++] = {w.laid[i], space, ld, blocks.first, blocks.last};
        sums[o][i] = space;
      }
    }
    (first.base == 2 ? Binary::multiply : Ternary::multiply)(
        codes, code_stride, some.count, in, products, made, me.tables.bytes);
    for (int o = 0; o < count; o++) {
      const Weights& w = *outputs[o].weights;
      Share blocks(me, w.blocks());
      int from = blocks.first * w.channels(), to = blocks.last * w.channels();
      int ld = w.blocks() * w.channels();
      if (to > w.out) to = w.out;
      bool plain = r.centred && !shifted && w.parts == 1 && w.base == 2;
      Finish* end = plain ? finish_of<true>(kind) : finish_of<false>(kind);
      for (int i = 0; i < some.count; i++) {
        int32_t* row[2] = {sums[o][0] + size_t(i) * ld,
                           w.parts > 1 ? sums[o][1] + size_t(i) * ld : nullptr};
        float* out = outputs[o].to + size_t(begin + i) * outputs[o].stride;
        end(w, some, i, shifted, row, from, to, out);
      }
    }
  }
}

constexpr int kPanel = 64;  // columns that are unpacked together

// Write unit(n) * scale, or add it: columns first to last of a row.
template <class Unit>
BITFLAX_INLINE void scaled(Unit unit, const float* __restrict scales, int run,
                           int first, int last, bool add, float* __restrict out) {
  if (run == 1) {  // a scale each: no division, and whole vectors
    for (int n = first; n < last; n++, out++) {
      float value = unit(n) * scales[n];
      *out = add ? *out + value : value;
    }
    return;
  }
  for (int n = first; n < last;) {
    int end = (n / run + 1) * run;
    float scale = scales[n / run];
    for (end = end < last ? end : last; n < end; n++, out++) {
      float value = unit(n) * scale;
      *out = add ? *out + value : value;
    }
  }
}

// Write a leaf's values of a row, columns first to last, or add them.
inline void values_of(const Leaf& leaf, int row, int first, int last, bool add,
                      float* out) {
  const uint8_t* __restrict codes = leaf.codes + size_t(row) * leaf.row_bytes();
  if (leaf.bits == 32) {
    const float* from = reinterpret_cast<const float*>(codes) + first;
    for (int n = 0; n < last - first; n++) out[n] = add ? out[n] + from[n] : from[n];
    return;
  }
  const float* scales = leaf.scales;
  if (leaf.scale_rows > 1) scales += size_t(row) * leaf.groups;
  int run = leaf.cols / leaf.groups;
  auto write = [&](auto unit) { scaled(unit, scales, run, first, last, add, out); };
  if (leaf.bits == 8) {
    write([&](int n) { return float(int8_t(codes[n])); });
  } else if (leaf.bits == 1) {
    write([&](int n) { return float((codes[n / 8] >> n % 8 & 1) * 2 - 1); });
  } else {
    write([&](int n) { return float((codes[n / 4] >> n % 4 * 2 & 3) - 1); });
  }
}

inline void multiply_values(Worker& me, const Output& output, const float* x, int stride,
                            int rows, const Rounding& r, const Grid* shared,
                            Activation kind) {
  const Weights& w = *output.weights;
  const Matrix& kernel = w.from->kernel;
  if (r.on()) {
    float* values = me.values.floats();
    int ld = padded(w.in);
    for (int i = 0; i < rows; i++) {
      memcpy(values + size_t(i) * ld, x + size_t(i) * stride, 4 * size_t(w.in));
      Grid g = shared ? *shared : grid(r, extent(r, values + size_t(i) * ld, w.in));
      to_values(r, g, values + size_t(i) * ld, w.in);
    }
    x = values, stride = ld;
  }
  Share panels(me, (w.out + kPanel - 1) / kPanel);
  for (int p = panels.first; p < panels.last; p++) {
    int first = p * kPanel, last = first + kPanel < w.out ? first + kPanel : w.out;
    float* panel = me.panel.floats();
    for (int k = 0; k < w.in; k++) {
      for (int i = 0; i < kernel.parts; i++) {
        values_of(kernel.part[i], k, first, last, i > 0, panel + size_t(k) * kPanel);
      }
    }
    matmul(x, stride, rows, panel, kPanel, w.in, last - first, output.to + first,
           output.stride);
    for (int i = 0; i < rows; i++) {
      float* out = output.to + size_t(i) * output.stride + first;
      each(last - first, [&](auto v, int n) {
        typedef decltype(v) V;
        V y = load<V>(out + n) + load<V>(w.from->bias + first + n);
        if (kind == kGelu) y = gelu(y);
        if (kind == kRelu) y = relu(y);
        store(out + n, y);
      });
    }
  }
}

// The grid that all rows of a text share.
inline Grid text_grid(const Rounding& r, const float* x, int stride, int rows, int n) {
  Extent found = extent(r, x, n);
  for (int i = 1; i < rows; i++) {
    Extent e = extent(r, x + size_t(i) * stride, n);
    found = {less(e.least, found.least), greater(e.most, found.most)};
    if (e.least != e.least) return grid(r, e);
  }
  return grid(r, found);
}

// Compute up to three products of the same rows [rows, stride], which are rounded first;
// a worker computes its share of the channels. Then all workers of the rows meet.
inline void multiply(Worker& me, const Output* outputs, int count, const float* x,
                     int stride, int rows, const Rounding& r,
                     Activation kind = kLinear) {
  Grid text;
  const Grid* shared = nullptr;
  if (r.range == kText) {
    text = text_grid(r, x, stride, rows, outputs[0].weights->in);
    shared = &text;
  } else if (r.range == kFixed) {
    text = {r.step, 0}, shared = &text;
  }
  if (outputs[0].weights->parts) {
    multiply_codes(me, outputs, count, x, stride, rows, r, shared, kind);
  } else {
    for (int o = 0; o < count; o++) {
      multiply_values(me, outputs[o], x, stride, rows, r, shared, kind);
    }
  }
  me.sync();
}

}  // namespace
}  // namespace bitflax
