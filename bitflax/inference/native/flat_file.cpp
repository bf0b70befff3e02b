// The flat file: a header, a description of 32-bit words in a fixed order, and the data
// that its offsets point at. FORMAT.md has the table. Little-endian, as all targets are.

#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "bitflax_native.h"
#include "model.h"

namespace bitflax {
namespace {

constexpr char kMagic[8] = {'b', 'i', 't', 'f', 'l', 'a', 'x', 0};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 64, kDigestAt = 32, kAlign = 64;
constexpr int32_t kMost = 1 << 20;  // of any width: sums of products stay in 32 bits

struct Header {
  char magic[8];
  uint32_t version, words;
  uint64_t size, zero;
  uint8_t digest[32];
};
static_assert(sizeof(Header) == kHeader, "the header has no gaps");
static_assert(sizeof(size_t) == 8, "sizes are computed in 64 bits");

// Reads the description. After a fault all that it gives is zero, and `ok` is false.
class Reader {
 public:
  Reader(const uint8_t* bytes, size_t size, size_t words)
      : bytes_(bytes), size_(size), word_(kHeader), end_(kHeader + 4 * words),
        data_(end_) {}

  bool ok = true;

  // Whether all of the description and of the data was read.
  bool ended() const { return word_ == end_ && data_ == size_; }

  int32_t integer(int32_t low, int32_t top) {
    int32_t value = 0;
    next(&value, 4);
    ok = ok && value >= low && value <= top;
    return ok ? value : low;
  }

  float real() {
    float value = 0;
    next(&value, 4);
    ok = ok && finite(value);
    return ok ? value : 0;
  }

  const uint8_t* data(uint64_t count) {
    uint64_t offset = 0, before = data_;
    next(&offset, 8);
    data_ = (data_ + kAlign - 1) / kAlign * kAlign;
    ok = ok && offset == data_ && offset <= size_ && count <= size_ - offset;
    for (; ok && before < offset; before++) ok = bytes_[before] == 0;
    data_ += ok ? count : 0;
    return ok ? bytes_ + offset : nullptr;
  }

  const float* reals(uint64_t count) {
    auto found = reinterpret_cast<const float*>(data(4 * count));
    for (uint64_t i = 0; ok && i < count; i++) ok = finite(found[i]);
    return found;
  }

  Matrix matrix(int32_t rows, int32_t cols) {
    Matrix matrix = {};
    matrix.parts = integer(1, 2);
    for (int i = 0; ok && i < matrix.parts; i++) matrix.part[i] = leaf(rows, cols);
    return matrix;
  }

  Linear linear(int32_t in, int32_t out) {
    Linear linear = {};
    linear.kernel = matrix(in, out);
    linear.bias = reals(out);
    return linear;
  }

  Rounding rounding(Range widest) {
    Rounding r = {};
    r.range = integer(kNone, kFixed);
    ok = ok && (r.range != kText || widest == kText);
    r.low = integer(-32768, 0);
    r.top = integer(0, 65535);
    r.steps = integer(0, 65536);
    r.centred = integer(0, 1);
    r.whole = integer(0, 1);
    r.clipped = integer(0, 1);
    r.spare = real();
    r.clip_low = real();
    r.clip_high = real();
    r.step = real();
    if (!r.on()) return r;
    ok = ok && r.top > r.low && r.spare >= 0;
    bool learned = r.steps == 0;  // a step, of values or of what is above their least
    ok = ok && (learned ? r.step > 0 : r.range != kFixed);
    ok = ok && (r.range != kFixed || r.centred);
    return r;
  }

 private:
  static bool finite(float value) { return value - value == 0; }

  void next(void* value, size_t size) {
    ok = ok && size <= end_ - word_;
    if (!ok) return;
    memcpy(value, bytes_ + word_, size);
    word_ += size;
  }

  Leaf leaf(int32_t rows, int32_t cols) {
    Leaf leaf = {};
    leaf.bits = integer(1, 32);
    leaf.rows = integer(rows, rows);
    leaf.cols = integer(cols, cols);
    leaf.scale_rows = integer(0, rows);
    leaf.groups = integer(0, cols);
    ok = ok && (leaf.bits == 1 || leaf.bits == 2 || leaf.bits == 8 || leaf.bits == 32);
    uint64_t size = uint64_t(rows) * leaf.row_bytes();
    if (leaf.bits == 32) {
      ok = ok && leaf.scale_rows == 0 && leaf.groups == 0;
      leaf.codes = reinterpret_cast<const uint8_t*>(reals(uint64_t(rows) * cols));
      leaf.scales = reals(0);
      return leaf;
    }
    ok = ok && (leaf.scale_rows == 1 || leaf.scale_rows == rows) && leaf.groups > 0 &&
         cols % leaf.groups == 0;
    leaf.codes = data(size);
    leaf.scales = reals(uint64_t(leaf.scale_rows) * leaf.groups);
    for (uint64_t i = 0; ok && leaf.bits == 2 && i < size; i++) {
      ok = !(leaf.codes[i] & leaf.codes[i] >> 1 & 0x55);  // a field of 3
    }
    return leaf;
  }

  const uint8_t* bytes_;
  size_t size_, word_, end_;
  uint64_t data_;  // where the last data end: none overlap, and nothing is between them
};

Shape read_shape(Reader& reader) {
  Shape shape = {};
  for (int32_t* field : {&shape.vocabulary, &shape.width, &shape.layers, &shape.heads,
                         &shape.head, &shape.inner, &shape.positions, &shape.types,
                         &shape.labels}) {
    *field = reader.integer(1, kMost);
  }
  shape.relu = reader.integer(0, 1);
  shape.epsilon = reader.real();
  reader.ok = reader.ok && shape.layers <= 1024 && shape.epsilon > 0 &&
              int64_t(shape.heads) * shape.head <= kMost;
  return shape;
}

void read_layer(Reader& reader, const Shape& shape, Layer& layer) {
  int32_t width = shape.width, all = shape.heads * shape.head;
  for (int i = 0; i < kSites; i++) {
    layer.sites[i] = reader.rounding(i == kProbs ? kRow : kText);
  }
  for (Linear* linear : {&layer.query, &layer.key, &layer.value}) {
    *linear = reader.linear(width, all);
  }
  layer.out = reader.linear(all, width);
  layer.norm1_scale = reader.reals(width);
  layer.norm1_bias = reader.reals(width);
  layer.up = reader.linear(width, shape.inner);
  layer.down = reader.linear(shape.inner, width);
  layer.norm2_scale = reader.reals(width);
  layer.norm2_bias = reader.reals(width);
}

}  // namespace

int read_flat(const void* bytes, size_t size, Flat* flat) {
  *flat = {};
  auto begin = static_cast<const uint8_t*>(bytes);
  Header header;
  if (!bytes || size < kHeader || reinterpret_cast<uintptr_t>(bytes) % 8) {
    return BITFLAX_DAMAGED;
  }
  memcpy(&header, begin, kHeader);
  if (memcmp(header.magic, kMagic, 8) || header.size != size || header.zero ||
      header.words > (size - kHeader) / 4) {
    return BITFLAX_DAMAGED;
  }
  if (header.version != kVersion) return BITFLAX_UNSUPPORTED;
  Reader reader(begin, size, header.words);
  Shape& shape = flat->shape = read_shape(reader);
  if (!reader.ok) return BITFLAX_DAMAGED;
  reader.data(reader.integer(0, INT32_MAX));  // metadata, for those who tokenize
  flat->word = reader.matrix(shape.vocabulary, shape.width);
  flat->position = reader.matrix(shape.positions, shape.width);
  flat->type = reader.matrix(shape.types, shape.width);
  flat->norm_scale = reader.reals(shape.width);
  flat->norm_bias = reader.reals(shape.width);
  flat->layer = static_cast<Layer*>(calloc(shape.layers, sizeof(Layer)));
  if (!flat->layer) return BITFLAX_MEMORY;
  for (int i = 0; reader.ok && i < shape.layers; i++) {
    read_layer(reader, shape, flat->layer[i]);
  }
  flat->pooler_in = reader.rounding(kRow);
  flat->pooler = reader.linear(shape.width, shape.width);
  flat->classifier = reader.linear(shape.width, shape.labels);
  if (reader.ok && reader.ended()) return BITFLAX_OK;
  free_flat(flat);
  return BITFLAX_DAMAGED;
}

void free_flat(Flat* flat) {
  free(flat->layer);
  flat->layer = nullptr;
}

// SHA-256, FIPS 180-4.
namespace {

struct Digest {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint64_t length = 0;

  static constexpr uint32_t kRound[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
      0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
      0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
      0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
      0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
      0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
      0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
      0xc67178f2};

  static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

  void block(const uint8_t* in) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++) {
      uint32_t word;
      memcpy(&word, in + 4 * i, 4);
      w[i] = __builtin_bswap32(word);
    }
    for (int i = 16; i < 64; i++) {
      uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) +
             (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
      uint32_t e = s[4], a = s[0];
      uint32_t t = s[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) +
                   ((e & s[5]) ^ (~e & s[6])) + kRound[i] + w[i];
      uint32_t u = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) +
                   ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
      memmove(s + 1, s, 28);
      s[4] += t, s[0] = t + u;
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
    length += 64;
  }
};

constexpr uint32_t Digest::kRound[64];

}  // namespace

bool digest_fits(const void* bytes, size_t size) {
  if (!bytes || size < kHeader) return false;
  auto begin = static_cast<const uint8_t*>(bytes);
  Digest digest;
  // The digest stands for itself as zeros.
  uint8_t block[64] = {};
  memcpy(block, begin, kDigestAt);
  digest.block(block);
  size_t at = kHeader;
  for (; size - at >= 64; at += 64) digest.block(begin + at);
  size_t left = size - at;
  memset(block, 0, 64);
  memcpy(block, begin + at, left);
  block[left] = 0x80;
  if (left >= 56) {
    digest.block(block);
    memset(block, 0, 64);
  }
  uint64_t bits = __builtin_bswap64(8 * uint64_t(size));
  memcpy(block + 56, &bits, 8);
  digest.block(block);
  for (int i = 0; i < 8; i++) digest.state[i] = __builtin_bswap32(digest.state[i]);
  return memcmp(digest.state, begin + kDigestAt, 32) == 0;
}

}  // namespace bitflax
