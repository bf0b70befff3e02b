/* A 1-bit BERT on a processor: the C interface.
 *
 *   bitflax_model* model;
 *   int status = bitflax_open("model.bitflax", NULL, 0, &model);
 *   if (status != BITFLAX_OK) puts(bitflax_message(status));
 *   status = bitflax_run(model, ids, mask, types, rows, tokens, logits);
 *   bitflax_free(model);
 *
 * A model may be used by several threads; their calls wait for each other. Nothing is
 * printed or thrown, and nothing of a model is kept outside it.
 */
#ifndef BITFLAX_NATIVE_H
#define BITFLAX_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define BITFLAX_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bitflax_model bitflax_model;

enum {
  BITFLAX_OK = 0,
  BITFLAX_DAMAGED = 1,     /* the bytes are no model, or not as they were written */
  BITFLAX_UNSUPPORTED = 2, /* a model that this engine does not compute */
  BITFLAX_INPUT = 3,       /* an id, a type, a mask or a length beyond the model's */
  BITFLAX_TARGET = 4,      /* no such target, or not on this processor */
  BITFLAX_MEMORY = 5,      /* no memory, or no thread */
  BITFLAX_FILE = 6         /* the file cannot be read */
};

/* Say what a status means, in English. */
BITFLAX_API const char* bitflax_message(int status);

/* Name the targets that this processor runs, those of this build, by commas. */
BITFLAX_API const char* bitflax_targets(void);

/* Map a flat file (`bitflax export --format native`), and verify its SHA-256.
 *
 * target: one of bitflax_targets(); NULL: the fastest here, found by measuring for a few
 * milliseconds. threads: at most 256; 0: all cores that this process may use. */
BITFLAX_API int bitflax_open(const char* path, const char* target, int threads,
                 bitflax_model** model);

/* The same of bytes in memory, which begin at a multiple of 8 and have to stay as long
 * as the model; their digest is not looked at. */
BITFLAX_API int bitflax_create(const void* bytes, size_t size, const char* target, int threads,
                   bitflax_model** model);

/* Compute logits [rows, labels] of ids, mask and types [rows, tokens].
 *
 * mask: 1 where a token is real, 0 where it is padding, which is not computed
 * unless a text begins with it. */
BITFLAX_API int bitflax_run(bitflax_model* model, const int32_t* ids, const int32_t* mask,
                const int32_t* types, int32_t rows, int32_t tokens, float* logits);

BITFLAX_API int32_t bitflax_labels(const bitflax_model* model);
BITFLAX_API const char* bitflax_target(const bitflax_model* model);
BITFLAX_API int32_t bitflax_threads(const bitflax_model* model);

/* Bytes that a model holds besides those that it was made of. */
BITFLAX_API size_t bitflax_bytes(bitflax_model* model);

/* Measure a target's products on one core, in 10^9 multiply-adds a second: 8 rows by a
 * matrix [in, out] of base 2 (binary) or 3 (ternary); 0 where it cannot run. */
BITFLAX_API double bitflax_speed(const char* target, int32_t base, int32_t in, int32_t out,
                     double seconds);

/* Free a model; NULL is none. */
BITFLAX_API void bitflax_free(bitflax_model* model);

#ifdef __cplusplus
}
#endif
#endif
