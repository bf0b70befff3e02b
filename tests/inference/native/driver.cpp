// Runs a flat file's model on batches of many forms, or mutated files by thousands: what
// a sanitizer watches, and what an emulator of another processor runs.
//
//   driver run FILE TARGET THREADS            prints logits
//   driver mutate FILE TARGET SEED COUNT      prints how many were refused and answered

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "bitflax_native.h"

static uint64_t state;

static uint32_t next_random() {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return uint32_t((z ^ z >> 31) >> 16);
}

static uint8_t* read_file(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  if (!file) exit(3);
  fseek(file, 0, SEEK_END);
  *size = size_t(ftell(file));
  rewind(file);
  auto bytes = static_cast<uint8_t*>(malloc(*size));
  if (!bytes || fread(bytes, 1, *size, file) != *size) exit(3);
  fclose(file);
  return bytes;
}

// Run a batch whose ids, types and positions are a file's own; return the status.
static int run_batch(bitflax_model* model, const uint8_t* bytes, int rows, int tokens,
                     bool print) {
  int32_t shape[9];
  memcpy(shape, bytes + 64, sizeof shape);
  int words = shape[0], types = shape[7];
  if (tokens > shape[6]) tokens = shape[6];
  size_t count = size_t(rows) * tokens;
  // Of the exact size, so that a step beyond is seen.
  auto in = static_cast<int32_t*>(malloc(12 * count + 1));
  auto logits = static_cast<float*>(malloc(4 * size_t(rows) * bitflax_labels(model) + 1));
  if (!in || !logits) exit(3);
  for (size_t i = 0; i < count; i++) {
    in[i] = int32_t(next_random() % uint32_t(words));
    in[count + i] = i % size_t(tokens) == 0 || next_random() % 8 != 0;
    in[2 * count + i] = int32_t(next_random() % uint32_t(types));
  }
  for (int t = 1; t < rows; t++) {  // padding; and one text without any token
    int length = t == 2 ? 0 : 1 + int(next_random() % uint32_t(tokens));
    for (int j = length; j < tokens; j++) in[count + size_t(t) * tokens + j] = 0;
  }
  int status = bitflax_run(model, in, in + count, in + 2 * count, rows, tokens, logits);
  for (int i = 0; print && i < rows * bitflax_labels(model); i++) {
    printf("%.9g\n", logits[i]);
  }
  free(in), free(logits);
  return status;
}

static int run(const char* path, const char* target, int threads) {
  bitflax_model* model;
  size_t size;
  uint8_t* bytes = read_file(path, &size);
  int status = bitflax_open(path, target, threads, &model);
  if (status != BITFLAX_OK) {
    printf("%s\n", bitflax_message(status));
    return 1;
  }
  for (int rows : {1, 2, 3, 9, 33}) {
    for (int tokens : {1, 7, 16, 40}) {
      if (run_batch(model, bytes, rows, tokens, true)) return 1;
    }
  }
  int32_t odd = -1;
  float logit;
  if (bitflax_run(model, &odd, &odd, &odd, 1, 1, &logit) != BITFLAX_INPUT) return 1;
  bitflax_free(model);
  free(bytes);
  return 0;
}

// Words of the description, or bytes of any place, become others.
static void mutate(uint8_t* bytes, size_t size, size_t words) {
  static const uint32_t odd[] = {0, 1, 2, 3, 7, 8, 16, 64, 255, 1u << 20, 1u << 30,
                                 0x7fffffff, 0x80000000, 0xffffffff, 0x7f800000,
                                 0x7fc00000, 0x00000001, 0x3f800000, 0xbf800000};
  for (int n = 1 + int(next_random() % 3); n > 0; n--) {
    switch (next_random() % 4) {
      case 0: {
        size_t at = next_random() % size;
        bytes[at] ^= uint8_t(1 << next_random() % 8);
        break;
      }
      case 1: {
        uint32_t value = next_random();
        memcpy(bytes + 64 + 4 * (next_random() % words), &value, 4);
        break;
      }
      default: {
        uint32_t value = odd[next_random() % (sizeof odd / sizeof *odd)];
        memcpy(bytes + 64 + 4 * (next_random() % words), &value, 4);
      }
    }
  }
}

static int mutated(const char* path, const char* target, uint64_t seed, int count) {
  size_t size;
  uint8_t* bytes = read_file(path, &size);
  uint32_t words;
  memcpy(&words, bytes + 12, 4);
  int refused = 0, answered = 0;
  for (int i = 0; i < count; i++) {
    state = seed * 1000003 + uint64_t(i);
    // One in ten is cut, and says so.
    size_t kept = next_random() % 10 ? size : 64 + next_random() % (size - 63);
    void* copy;
    if (posix_memalign(&copy, 64, kept)) return 3;
    memcpy(copy, bytes, kept);
    auto own = static_cast<uint8_t*>(copy);
    if (kept == size) mutate(own, kept, words);
    else memcpy(own + 16, &kept, 8);
    bitflax_model* model;
    int status = bitflax_create(own, kept, target, 1 + i % 2, &model);
    if (status != BITFLAX_OK) {
      refused++;
    } else {
      answered += run_batch(model, own, 3, 9, false) == BITFLAX_OK;
      bitflax_free(model);
    }
    free(copy);
  }
  free(bytes);
  printf("%d %d\n", refused, answered);
  return 0;
}

int main(int count, char** words) {
  if (count == 5 && !strcmp(words[1], "run")) {
    return run(words[2], words[3], atoi(words[4]));
  }
  if (count == 6 && !strcmp(words[1], "mutate")) {
    return mutated(words[2], words[3], strtoull(words[4], nullptr, 10), atoi(words[5]));
  }
  if (count == 2 && !strcmp(words[1], "targets")) return puts(bitflax_targets()) < 0;
  return 2;
}
