// What a target offers: the encoder, compiled by its own flags.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model.h"
#include "threads.h"

namespace bitflax {

struct Inputs {
  const int32_t *ids, *mask, *types;  // [rows, tokens]
  int32_t rows, tokens;
};

struct Target {
  const char* name;
  void* (*make)(const Flat&, Pool*);  // nullptr: no memory
  int (*run)(void*, const Inputs&, float* logits);
  size_t (*bytes)(const void*);
  void (*free)(void*);
  double (*speed)(int base, int in, int out, double seconds);
};

// One of each file that is compiled; what this processor cannot run is not called.
#define BITFLAX_TARGETS(X) \
  X(avx512_table6) X(avx512_table5) X(avx512_vnni) X(avx2_table) X(avx2) X(neon_table) \
  X(neon_dot) X(portable)

#define BITFLAX_DECLARE(name) extern const Target name __attribute__((weak));
BITFLAX_TARGETS(BITFLAX_DECLARE)
#undef BITFLAX_DECLARE

}  // namespace bitflax
