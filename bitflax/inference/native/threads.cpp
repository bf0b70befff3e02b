#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

namespace bitflax {
namespace {

constexpr int kSpins = 4000;  // some 50 microseconds, then the core is given away

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Barrier::wait() {
  if (count_ == 1) return;
  uint32_t round = __atomic_load_n(&round_, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&waiting_, 1, __ATOMIC_ACQ_REL) == count_) {
    __atomic_store_n(&waiting_, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&round_, round + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int i = 0; __atomic_load_n(&round_, __ATOMIC_ACQUIRE) == round; i++) {
    if (i < kSpins) relax();
    else sched_yield();
  }
}

void wait_for(const int* count, int all) {
  for (int i = 0; __atomic_load_n(count, __ATOMIC_ACQUIRE) != all; i++) {
    if (i < kSpins) relax();
    else sched_yield();
  }
}

int cores() {
  long count = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  // A container's share: microseconds of every so many.
  if (FILE* file = fopen("/sys/fs/cgroup/cpu.max", "r")) {
    long quota, period;
    if (fscanf(file, "%ld %ld", &quota, &period) == 2 && period > 0 && quota > 0 &&
        (quota + period - 1) / period < count) {
      count = (quota + period - 1) / period;
    }
    fclose(file);
  }
#endif
  return count < 1 ? 1 : static_cast<int>(count);
}

struct Pool::State {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_t* threads;
  int started;        // besides the caller's
  pid_t process;      // a fork has none of them
  uint32_t job;       // counts calls of run
  int next_member;
  int running;        // besides the caller's
  bool open, stopping;
  void (*fn)(void*, int);
  void* context;

  static void* work(void* self);
};

void* Pool::State::work(void* self) {
  State& state = *static_cast<State*>(self);
  pthread_mutex_lock(&state.lock);
  int member = ++state.next_member;
  pthread_mutex_unlock(&state.lock);
  for (uint32_t done = 0;;) {
    for (int i = 0; i < kSpins && __atomic_load_n(&state.job, __ATOMIC_ACQUIRE) == done;
         i++) {
      relax();
    }
    pthread_mutex_lock(&state.lock);
    while (state.job == done && !state.stopping) {
      pthread_cond_wait(&state.wake, &state.lock);
    }
    bool stopping = state.stopping, joins = state.open;
    done = state.job;
    if (joins) __atomic_add_fetch(&state.running, 1, __ATOMIC_ACQ_REL);
    pthread_mutex_unlock(&state.lock);
    if (stopping) return nullptr;
    if (!joins) continue;
    state.fn(state.context, member);
    __atomic_sub_fetch(&state.running, 1, __ATOMIC_ACQ_REL);
  }
}

bool Pool::start(int threads) {
  threads_ = threads;
  if (threads <= 1) return true;
  state_ = static_cast<State*>(calloc(1, sizeof(State)));
  if (!state_) return false;
  pthread_mutex_init(&state_->lock, nullptr);
  pthread_cond_init(&state_->wake, nullptr);
  state_->process = getpid();
  state_->threads = static_cast<pthread_t*>(calloc(threads, sizeof(pthread_t)));
  while (state_->threads && state_->started < threads - 1 &&
         pthread_create(&state_->threads[state_->started], nullptr, State::work,
                        state_) == 0) {
    state_->started++;
  }
  if (state_->started == threads - 1) return true;
  stop();
  return false;
}

void Pool::stop() {
  if (!state_) return;
  if (state_->process == getpid()) {
    pthread_mutex_lock(&state_->lock);
    state_->stopping = true;
    pthread_cond_broadcast(&state_->wake);
    pthread_mutex_unlock(&state_->lock);
    for (int i = 0; i < state_->started; i++) pthread_join(state_->threads[i], nullptr);
    pthread_cond_destroy(&state_->wake);
    pthread_mutex_destroy(&state_->lock);
  }
  free(state_->threads);
  free(state_);
  state_ = nullptr;
}

bool Pool::run(void (*fn)(void*, int), void* context) {
  if (threads_ > 1 && (!state_ || state_->process != getpid())) {
    stop();  // after a fork there are none of the threads
    if (!start(threads_)) return false;
  }
  if (!state_) {
    fn(context, 0);
    return true;
  }
  pthread_mutex_lock(&state_->lock);
  state_->fn = fn, state_->context = context, state_->open = true;
  __atomic_store_n(&state_->job, state_->job + 1, __ATOMIC_RELEASE);
  pthread_cond_broadcast(&state_->wake);
  pthread_mutex_unlock(&state_->lock);
  fn(context, 0);
  pthread_mutex_lock(&state_->lock);
  state_->open = false;
  pthread_mutex_unlock(&state_->lock);
  wait_for(&state_->running, 0);
  return true;
}

}  // namespace bitflax
