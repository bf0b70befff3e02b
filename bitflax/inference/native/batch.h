// A batch: the real tokens of all texts side by side as rows, cut into units that go
// through a half of a layer by themselves, so that what is between stays in the nearest
// caches.
#pragma once

#include "bitflax_native.h"
#include "linear.h"
#include "target.h"

namespace bitflax {
namespace {

struct Row {
  int32_t id, type, position;
  int32_t real;
};

// A unit: rows first to last.
struct Unit {
  int first, last;
};

struct Text {
  int first, tokens;
  bool masked;  // its first token is: then none is left out
};

struct Batch {
  Buffer rows, texts, units, firsts;
  Row* row;
  Text* text;
  int row_count, text_count, unit_count, first_count, longest;

  void release() {
    for (Buffer* b : {&rows, &texts, &units, &firsts}) b->release();
  }

  // Lay the real tokens side by side, each checked as it is read.
  int place(const Inputs& in, const Shape& shape) {
    size_t most = size_t(in.rows) * in.tokens;
    if (!rows.reserve(most * sizeof(Row)) || !texts.reserve(in.rows * sizeof(Text))) {
      return BITFLAX_MEMORY;
    }
    row = reinterpret_cast<Row*>(rows.bytes);
    text = reinterpret_cast<Text*>(texts.bytes);
    row_count = 0, text_count = in.rows, longest = 1;
    for (int t = 0; t < in.rows; t++) {
      const size_t begin = size_t(t) * in.tokens;
      Text& now = text[t];
      now = {row_count, 0, in.mask[begin] == 0};
      for (int j = 0; j < in.tokens; j++) {
        int32_t id = in.ids[begin + j], type = in.types[begin + j];
        int32_t real = in.mask[begin + j];
        if (id < 0 || id >= shape.vocabulary || type < 0 || type >= shape.types ||
            (real != 0 && real != 1)) {
          return BITFLAX_INPUT;
        }
        if (!real && !now.masked) continue;
        row[row_count++] = {id, type, j, real};
      }
      now.tokens = row_count - now.first;
      longest = now.tokens > longest ? now.tokens : longest;
    }
    return BITFLAX_OK;
  }

  // Cut rows into units of so many, or into texts, where one of a text's rows depends on
  // the others.
  bool cut(int unit, bool by_text) {
    if (!units.reserve((row_count / unit + text_count + 1) * sizeof(Unit)) ||
        !firsts.reserve((text_count / unit + 1) * sizeof(Unit))) {
      return false;
    }
    unit_count = by_text ? 0 : cut_into(units, row_count, unit);
    for (int t = 0; by_text && t < text_count; t++) {
      int begin = text[t].first;
      reinterpret_cast<Unit*>(units.bytes)[unit_count++] = {begin,
                                                            begin + text[t].tokens};
    }
    first_count = cut_into(firsts, text_count, unit);
    return true;
  }

 private:
  static int cut_into(const Buffer& to, int rows, int unit) {
    int count = 0;
    for (int i = 0; i < rows; i += unit) {
      reinterpret_cast<Unit*>(to.bytes)[count++] = {i, i + unit < rows ? i + unit : rows};
    }
    return count;
  }
};

}  // namespace
}  // namespace bitflax
