// A flat file's model: where everything lies. `flat_file.cpp` reads and checks it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitflax {

// A matrix [rows, cols] of codes and scales, or of floats, as `bitflax.Packed` has it.
struct Leaf {
  int32_t bits;        // 1: -1 and 1; 2: -1, 0 and 1; 8: signed; 32: floats, no scales
  int32_t rows, cols;
  int32_t scale_rows;  // 1 or rows
  int32_t groups;      // equal runs of columns that share a scale
  const uint8_t* codes;
  const float* scales;  // [scale_rows, groups]

  int row_bytes() const { return (cols * bits + 7) / 8; }
};

// The sum of one or two leaves.
struct Matrix {
  int32_t parts;  // 0: there is none
  Leaf part[2];
};

enum Range : int32_t { kNone, kRow, kText, kFixed };

// How an activation is rounded: `bitflax.quantization.Grid`, and what it learned.
struct Rounding {
  int32_t range;  // who shares a range: nobody rounds, a token, a text; or it is fixed
  int32_t low, top, steps;
  int32_t centred, whole, clipped;
  float spare, clip_low, clip_high, step;

  bool on() const { return range != kNone; }
  bool coded() const {  // whether bytes hold the integers, or the integers less 128
    return on() && ((low >= -128 && top <= 127) || (low == 0 && top <= 255));
  }
};

struct Linear {
  Matrix kernel;
  const float* bias;
};

enum Site { kQueryIn, kKeyIn, kValueIn, kQueryOut, kKeyOut, kValueOut, kProbs, kOutIn,
            kUpIn, kDownIn, kSites };

struct Layer {
  Rounding sites[kSites];
  Linear query, key, value, out, up, down;
  const float *norm1_scale, *norm1_bias, *norm2_scale, *norm2_bias;
};

struct Shape {
  int32_t vocabulary, width, layers, heads, head, inner, positions, types, labels;
  int32_t relu;
  float epsilon;
};

struct Flat {
  Shape shape;
  Matrix word, position, type;
  const float *norm_scale, *norm_bias;
  Layer* layer;  // [shape.layers], owned
  Rounding pooler_in;
  Linear pooler, classifier;
};

// Read a flat file's bytes, every count, offset and number checked: a BITFLAX_ status.
int read_flat(const void* bytes, size_t size, Flat* flat);
void free_flat(Flat* flat);

// Whether the digest in the header is that of the bytes.
bool digest_fits(const void* bytes, size_t size);

}  // namespace bitflax
