#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

namespace {

constexpr size_t STACK = 64 * 1024;

bool descending = false;

enum class State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
  ucontext_t start;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started = false;
  State state = State::READY;
  emulator::Word given[emulator::GIVEN];  // to the other threads of the warp
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
void leave_fiber(State state) {
  Fiber& fiber = launch->fibers[launch->running];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) _longjmp(launch->scheduler, 1);
}

void fiber_main() {
  for (;;) {  // once a block
    (*launch->thread)();
    leave_fiber(State::DONE);
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

// Make ready those of fibers[first, end) that wait at a barrier, if all do that have not ended; whether it did.
bool release(unsigned first, unsigned end, State barrier) {
  const auto from = launch->fibers.begin() + first, to = launch->fibers.begin() + end;
  const auto count = [&](State state) { return std::count_if(from, to, [&](Fiber& f) { return f.state == state; }); };
  // At the barrier of a block all threads must arrive; the ended ones of a warp are not waited for.
  const auto missing = end - first - count(barrier) - (barrier == State::AT_WARP ? count(State::DONE) : 0);
  if (missing != 0 || count(barrier) == 0) return false;
  for (auto fiber = from; fiber != to; ++fiber) {
    if (fiber->state == barrier) fiber->state = State::READY;
  }
  return true;
}

int run_block(unsigned threads) {
  for (Fiber& fiber : launch->fibers) fiber.state = State::READY;
  for (;;) {
    bool moved = false;
    for (unsigned n = 0; n < threads; ++n) {
      const unsigned number = descending ? threads - 1 - n : n;
      if (launch->fibers[number].state != State::READY) continue;
      resume(number);
      if (launch->trapped) return emulator::TRAPPED;
      moved = true;
    }
    for (unsigned first = 0; first < threads; first += emulator::WARP) {
      moved |= release(first, std::min(first + emulator::WARP, threads), State::AT_WARP);
    }
    moved |= release(0, threads, State::AT_BLOCK);
    if (moved) continue;
    const auto ended = [](const Fiber& fiber) { return fiber.state == State::DONE; };
    return std::all_of(launch->fibers.begin(), launch->fibers.end(), ended) ? 0 : emulator::DIVERGED;
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

void __syncthreads() { leave_fiber(State::AT_BLOCK); }

void __syncwarp() { leave_fiber(State::AT_WARP); }

// All of the warp give before any looks, and all have looked before any gives again.
void emulator::give(const Word* words, int count) {
  std::copy_n(words, count, launch->fibers[launch->running].given);
  __syncwarp();
}

const emulator::Word* emulator::given(int lane) {
  return launch->fibers[launch->running / WARP * WARP + static_cast<unsigned>(lane)].given;
}

void __trap() {
  launch->trapped = true;
  leave_fiber(State::DONE);
  std::abort();  // a trapped launch is never resumed
}

// 1: the threads of a block run from the last to the first.
extern "C" void ov_emulator_descending(int value) { descending = value != 0; }
