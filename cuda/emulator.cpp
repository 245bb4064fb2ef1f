#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdlib>
#include <memory>
#include <vector>

namespace {

constexpr size_t STACK = 64 * 1024;

bool descending = false;

struct Fiber {
  ucontext_t start;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started = false;
  bool done = false;
};

// The launch that runs on this thread.
struct Launch {
  const std::function<void()>* thread;
  std::vector<Fiber> fibers;
  unsigned running = 0;
  bool trapped = false;
  ucontext_t caller;
  jmp_buf scheduler;
};

thread_local Launch* launch = nullptr;

// setjmp and longjmp, because swapcontext costs two system calls; it only starts a fiber on its stack.
void leave_fiber() {
  if (_setjmp(launch->fibers[launch->running].place) == 0) _longjmp(launch->scheduler, 1);
}

void fiber_main() {
  for (;;) {  // once a block
    (*launch->thread)();
    launch->fibers[launch->running].done = true;
    leave_fiber();
  }
}

void resume(unsigned number) {
  Fiber& fiber = launch->fibers[number];
  launch->running = number;
  threadIdx.x = number;
  if (_setjmp(launch->scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.stack = std::make_unique_for_overwrite<char[]>(STACK);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

int run_block(unsigned threads) {
  for (Fiber& fiber : launch->fibers) fiber.done = false;
  for (;;) {
    unsigned done = 0;
    for (unsigned n = 0; n < threads; ++n) {
      const unsigned number = descending ? threads - 1 - n : n;
      resume(number);
      if (launch->trapped) return emulator::TRAPPED;
      done += launch->fibers[number].done;
    }
    if (done == threads) return 0;
    if (done != 0) return emulator::DIVERGED;
  }
}

}  // namespace

int emulator::run(unsigned blocks, unsigned threads, const std::function<void()>& thread) {
  Launch own;
  own.thread = &thread;
  own.fibers.resize(threads);
  launch = &own;
  blockDim.x = threads;
  gridDim.x = blocks;
  int ended = 0;
  for (unsigned block = 0; block < blocks && !ended; ++block) {
    blockIdx.x = block;
    ended = run_block(threads);
  }
  launch = nullptr;
  return ended;
}

void __syncthreads() { leave_fiber(); }

void __trap() {
  launch->trapped = true;
  leave_fiber();
  std::abort();  // a trapped launch is never resumed
}

// 1: the threads of a block run from the last to the first.
extern "C" void ov_emulator_descending(int value) { descending = value != 0; }
