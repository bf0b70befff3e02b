// A pool of threads that run one function together, and wait for each other inside it.
#pragma once

#include <cstdint>

namespace bitflax {

// Where `count` threads wait until all have come. Spins, since the waits are short.
class Barrier {
 public:
  void reset(int count) { count_ = count, waiting_ = 0, round_ = 0; }
  void wait();

 private:
  int count_ = 1;
  int waiting_ = 0;
  uint32_t round_ = 0;
};

// Wait until a count has come to `all`.
void wait_for(const int* count, int all);

int cores();  // that this process may use

class Pool {
 public:
  // Start threads besides the caller's; false: the system has none to give.
  bool start(int threads);
  void stop();
  int threads() const { return threads_; }

  // Call fn(context, member) on the caller's thread, as member 0, and on all others that
  // come before it has returned: who is late to wake is not waited for.
  bool run(void (*fn)(void*, int), void* context);

 private:
  struct State;
  State* state_ = nullptr;
  int threads_ = 1;
};

}  // namespace bitflax
