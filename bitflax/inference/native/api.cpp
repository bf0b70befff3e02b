// The C interface: models, and which target runs them.

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "bitflax_native.h"
#include "target.h"

using namespace bitflax;

struct bitflax_model {
  Flat flat;
  Pool pool;
  const Target* target;
  void* encoder;
  pthread_mutex_t lock;
  pid_t process;  // whose lock it is: a fork may have got it locked
  void* mapped;
  size_t size;
};

namespace {

constexpr int kMostThreads = 256;

#if defined(__x86_64__)
bool runs(const char* name) {
  unsigned a, b = 0, c = 0, d, b1, c1;
  if (!__get_cpuid(1, &a, &b1, &c1, &d) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    return !strcmp(name, "portable");
  }
  uint32_t state = 0;  // what the system saves of registers
  if (c1 & bit_OSXSAVE) asm("xgetbv" : "=a"(state), "=d"(d) : "c"(0));
  bool avx2 = (state & 6) == 6 && (c1 & bit_FMA) && (b & bit_AVX2);
  bool avx512 = avx2 && (state & 0xe6) == 0xe6 && (b & bit_AVX512F) &&
                (b & bit_AVX512BW) && (b & bit_AVX512VL) && (b & bit_AVX512DQ);
  if (!strcmp(name, "avx512_vnni")) return avx512 && (c & bit_AVX512VNNI);
  if (!strncmp(name, "avx512", 6)) return avx512;
  return avx2 || !strcmp(name, "portable");
}
#elif defined(__aarch64__)
bool runs(const char* name) {
  if (strcmp(name, "neon_dot")) return true;
#if defined(__linux__)
  return getauxval(AT_HWCAP) & (1 << 20);  // ASIMDDP
#else
  return true;
#endif
}
#else
bool runs(const char*) { return true; }
#endif

constexpr int kMostTargets = 8;

// Those of this build that run here, the likely fastest first; return how many.
int usable(const Target* (&found)[kMostTargets]) {
  int made = 0;
#define BITFLAX_LIST(name) \
  if (&name && runs(#name)) found[made++] = &name;
  BITFLAX_TARGETS(BITFLAX_LIST)
#undef BITFLAX_LIST
  return made;
}

// The fastest: all that are likely are measured for a few milliseconds, once.
const Target* fastest() {
  static const Target* best = nullptr;
  const Target* known = __atomic_load_n(&best, __ATOMIC_ACQUIRE);
  if (known) return known;
  const Target* targets[kMostTargets];
  int count = usable(targets);
  double most = -1;
  for (int i = 0; i < count; i++) {
    if (i && !strcmp(targets[i]->name, "portable")) break;
    double found = targets[i]->speed(2, 384, 384, 0.001);
    if (found > most) most = found, known = targets[i];
  }
  __atomic_store_n(&best, known, __ATOMIC_RELEASE);
  return known;
}

const Target* named(const char* name) {
  if (!name) return fastest();
  const Target* targets[kMostTargets];
  int count = usable(targets);
  for (int i = 0; i < count; i++) {
    if (!strcmp(targets[i]->name, name)) return targets[i];
  }
  return nullptr;
}

int start(bitflax_model* model, const void* bytes, size_t size, const char* target,
          int threads) {
  int status = read_flat(bytes, size, &model->flat);
  if (status != BITFLAX_OK) return status;
  model->target = named(target);
  if (!model->target) return BITFLAX_TARGET;
  if (!threads) threads = cores() < kMostThreads ? cores() : kMostThreads;
  if (threads < 0 || threads > kMostThreads) return BITFLAX_INPUT;
  if (!model->pool.start(threads)) return BITFLAX_MEMORY;
  model->encoder = model->target->make(model->flat, &model->pool);
  return model->encoder ? BITFLAX_OK : BITFLAX_MEMORY;
}

int made(const void* bytes, size_t size, const char* target, int threads, void* mapped,
         bitflax_model** out) {
  *out = nullptr;
  auto model = static_cast<bitflax_model*>(calloc(1, sizeof(bitflax_model)));
  if (!model || pthread_mutex_init(&model->lock, nullptr)) {
    free(model);
    return BITFLAX_MEMORY;
  }
  model->pool = Pool();
  model->process = getpid();
  model->mapped = mapped, model->size = size;
  int status = start(model, bytes, size, target, threads);
  if (status == BITFLAX_OK) {
    *out = model;
  } else {
    model->mapped = nullptr;  // who mapped it unmaps it
    bitflax_free(model);
  }
  return status;
}

void lock(bitflax_model* model) {
  if (model->process != getpid()) {
    pthread_mutex_init(&model->lock, nullptr);
    model->process = getpid();
  }
  pthread_mutex_lock(&model->lock);
}

char target_names[160];

void list_targets() {
  const Target* targets[kMostTargets];
  int count = usable(targets);
  char* end = target_names;
  for (int i = 0; i < count; i++) {
    size_t size = strlen(targets[i]->name);
    if (i) *end++ = ',';
    memcpy(end, targets[i]->name, size + 1);
    end += size;
  }
}

}  // namespace

extern "C" {

const char* bitflax_message(int status) {
  switch (status) {
    case BITFLAX_OK: return "done";
    case BITFLAX_DAMAGED: return "no model, or not as it was written";
    case BITFLAX_UNSUPPORTED: return "a model that this engine does not compute";
    case BITFLAX_INPUT: return "an id, type, mask, length or count beyond the model's";
    case BITFLAX_TARGET: return "no such target, or not on this processor";
    case BITFLAX_MEMORY: return "no memory, or no thread";
    case BITFLAX_FILE: return "the file cannot be read";
  }
  return "no status";
}

const char* bitflax_targets(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, list_targets);
  return target_names;
}

int bitflax_create(const void* bytes, size_t size, const char* target, int threads,
                   bitflax_model** model) {
  return made(bytes, size, target, threads, nullptr, model);
}

int bitflax_open(const char* path, const char* target, int threads,
                 bitflax_model** model) {
  *model = nullptr;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat about;
  if (file < 0) return BITFLAX_FILE;
  void* bytes = MAP_FAILED;
  size_t size = 0;
  if (!fstat(file, &about) && S_ISREG(about.st_mode) && about.st_size > 0) {
    size = size_t(about.st_size);
    bytes = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  }
  close(file);
  if (bytes == MAP_FAILED) return BITFLAX_FILE;
  int status = digest_fits(bytes, size) ? made(bytes, size, target, threads, bytes, model)
                                        : BITFLAX_DAMAGED;
  if (status != BITFLAX_OK) munmap(bytes, size);
  return status;
}

int bitflax_run(bitflax_model* model, const int32_t* ids, const int32_t* mask,
                const int32_t* types, int32_t rows, int32_t tokens, float* logits) {
  const Shape& shape = model->flat.shape;
  if (rows < 0 || tokens < 1 || tokens > shape.positions ||
      int64_t(rows) * tokens > INT32_MAX / 4 ||
      int64_t(rows) * shape.heads > INT32_MAX / 4) {
    return BITFLAX_INPUT;
  }
  if (!rows) return BITFLAX_OK;
  Inputs inputs = {ids, mask, types, rows, tokens};
  lock(model);
  int status = model->target->run(model->encoder, inputs, logits);
  pthread_mutex_unlock(&model->lock);
  return status;
}

int32_t bitflax_labels(const bitflax_model* model) { return model->flat.shape.labels; }
const char* bitflax_target(const bitflax_model* model) { return model->target->name; }
int32_t bitflax_threads(const bitflax_model* model) { return model->pool.threads(); }

size_t bitflax_bytes(bitflax_model* model) {
  lock(model);
  size_t found = sizeof *model + model->target->bytes(model->encoder);
  pthread_mutex_unlock(&model->lock);
  return found;
}

double bitflax_speed(const char* target, int32_t base, int32_t in, int32_t out,
                     double seconds) {
  const Target* found = named(target);
  bool fits = found && (base == 2 || base == 3) && in > 0 && out > 0 && in <= 1 << 16 &&
              out <= 1 << 16;
  return fits ? found->speed(base, in, out, seconds) : 0;
}

void bitflax_free(bitflax_model* model) {
  if (!model) return;
  if (model->encoder) model->target->free(model->encoder);
  model->pool.stop();
  free_flat(&model->flat);
  if (model->mapped) munmap(model->mapped, model->size);
  pthread_mutex_destroy(&model->lock);
  free(model);
}

}  // extern "C"
