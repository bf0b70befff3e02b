// The kernels of this target: one for binary matrices, one for ternary ones.
#pragma once

#if defined(BITFLAX_TABLE)
#include "table.h"
#elif defined(BITFLAX_QUADS)
#include "quads.h"
#else
#include "dot.h"
#endif

namespace bitflax {
namespace {

#if defined(BITFLAX_TABLE)
typedef Table<2, BITFLAX_TABLE> Binary;
typedef Table<3, 3> Ternary;
#elif defined(BITFLAX_QUADS)
typedef Quads<2> Binary;
typedef Quads<3> Ternary;
#else
typedef Dot<2, Instructions> Binary;
typedef Dot<3, Instructions> Ternary;
#endif

}  // namespace
}  // namespace bitflax
