/* Print the logits of a text's token ids.
 *
 *   bitflax export runs/quickstart --format native --out student.bitflax
 *   c++ -O2 -std=c++17 -DBITFLAX_TARGET=portable -I NATIVE -x c++ NATIVE/[a-z]*.cpp \
 *     -x c example.c -lpthread -o example       # NATIVE: bitflax/inference/native
 *   ./example student.bitflax 101 11325 26293 102
 *
 * That is the portable target alone; or link the library that `bitflax native` names.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bitflax_native.h"

static int failed(const char* what, int status) {
  fprintf(stderr, "%s: %s\n", what, bitflax_message(status));
  return 1;
}

int main(int count, char** words) {
  if (count < 3) {
    fprintf(stderr, "usage: %s FILE ID...\n", words[0]);
    return 2;
  }
  bitflax_model* model;
  /* The fastest target here, one thread. */
  int status = bitflax_open(words[1], NULL, 1, &model);
  if (status != BITFLAX_OK) return failed(words[1], status);

  int tokens = count - 2;
  int32_t* ids = calloc(3 * (size_t)tokens, sizeof *ids);
  float* logits = calloc(bitflax_labels(model), sizeof *logits);
  if (!ids || !logits) return failed(words[0], BITFLAX_MEMORY);
  int32_t *mask = ids + tokens, *types = mask + tokens; /* of one text: all 0 */
  for (int i = 0; i < tokens; i++) {
    ids[i] = atoi(words[2 + i]);
    mask[i] = 1;
  }

  status = bitflax_run(model, ids, mask, types, 1, tokens, logits);
  if (status == BITFLAX_OK) {
    fprintf(stderr, "%s, %d thread\n", bitflax_target(model), bitflax_threads(model));
    for (int i = 0; i < bitflax_labels(model); i++) printf("%.6f\n", logits[i]);
  }
  bitflax_free(model);
  free(logits);
  free(ids);
  return status == BITFLAX_OK ? 0 : failed("bitflax_run", status);
}
