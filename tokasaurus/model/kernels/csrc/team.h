// The threads of a parallel region: how they divide work, wait for one another, and read ahead
// while they wait.
#pragma once

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace toka {

// Memory that a thread is going to read: runs of `bytes` each, `distance` bytes apart.
struct Ahead {
  const char* start = nullptr;
  int64_t distance = 0;
  int64_t runs = 0;
  int64_t bytes = 0;
};

constexpr int64_t LINE = 64;

// Brings a line into the cache by a load that nothing waits for. Of many prefetches in a row a
// machine drops those that find its queue of misses full (Zen 3: nearly all); loads stay in it.
inline void read_line(const char* line) {
  static_cast<void>(*static_cast<const volatile char*>(line));
}

// One thread's view of a parallel region. All its threads make the same calls in the same order,
// and between two barriers at most one that divides work.
class Team {
 public:
  static constexpr int MAX_THREADS = 256;

  // What a thread's share has come to. That of one interval between barriers is made ready for the
  // next but one by its owner, when all have left it.
  struct alignas(64) Seat {
    std::atomic<int64_t> next[2] = {};
  };
  struct Shared {
    alignas(64) std::atomic<int> num_arrived{0};
    alignas(64) std::atomic<uint32_t> generation{0};
    Seat* seats = nullptr;
  };

  Team(Shared& shared, int rank, int size) : shared_(shared), rank_(rank), size_(size) {}

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Runs body(first, last) over [0, count) in pieces of `grain`, each by whichever thread is free:
  // one that the system takes away does not hold up the others.
  template <class Body>
  void pieces(int64_t count, int64_t grain, Body&& body) {
    divide();
    std::atomic<int64_t>& next = progress_of(0);
    for (;;) {
      const int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
      if (first >= count) break;
      body(first, first + grain < count ? first + grain : count);
    }
  }

  // Runs body(owner, step) for each step below steps_of(owner) of every thread's share. A thread
  // takes its own in order, then what others have not come to.
  template <class StepsOf, class Body>
  void shares(StepsOf&& steps_of, Body&& body) {
    divide();
    for (int i = 0; i < size_; i++) {
      const int owner = rank_ + i < size_ ? rank_ + i : rank_ + i - size_;
      const int64_t count = steps_of(owner);
      std::atomic<int64_t>& next = progress_of(owner);
      while (next.load(std::memory_order_relaxed) < count) {
        const int64_t step = next.fetch_add(1, std::memory_order_relaxed);
        if (step < count) body(owner, step);
      }
    }
  }

  // From now on this thread brings `ahead` into its cache while it waits.
  void read_ahead(const Ahead& ahead) {
    ahead_ = ahead;
    num_read_ = 0;
  }

  // Everything that any thread did before is seen by all after.
  void barrier() {
    if (size_ > 1) {
      const uint32_t generation = shared_.generation.load(std::memory_order_relaxed);
      if (shared_.num_arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        shared_.num_arrived.store(0, std::memory_order_relaxed);
        shared_.generation.store(generation + 1, std::memory_order_release);
      } else {
        wait(generation);
      }
    }
    progress_of(rank_).store(0, std::memory_order_relaxed);
    parity_ ^= 1;
    has_divided_ = false;
  }

 private:
  // A thread that waits first keeps its core: SPINS pauses take a few to some fifty microseconds,
  // depending on the machine. Then others may have the core between its looks. After YIELDS it
  // sleeps between them: under a limit on CPU time looking uses up what the awaited thread needs.
  static constexpr int SPINS = 1000, YIELDS = 2000;
  static constexpr std::chrono::microseconds NAP{50};
  static constexpr int64_t BYTES_AT_ONCE = 256;

  std::atomic<int64_t>& progress_of(int owner) const { return shared_.seats[owner].next[parity_]; }

  void divide() {
    assert(!has_divided_ && "two divisions of work without a barrier between them");
    has_divided_ = true;
  }

  bool passed(uint32_t generation) const {
    return shared_.generation.load(std::memory_order_acquire) != generation;
  }

  __attribute__((noinline)) void wait(uint32_t generation) {
    for (; num_read_ < ahead_.bytes; num_read_ += BYTES_AT_ONCE) {
      if (passed(generation)) return;
      const int64_t end = std::min(num_read_ + BYTES_AT_ONCE, ahead_.bytes);
      for (int64_t run = 0; run < ahead_.runs; run++)
        for (int64_t line = num_read_; line < end; line += LINE)
          read_line(ahead_.start + run * ahead_.distance + line);
    }
    for (int64_t i = 0; !passed(generation); i++) {
      if (i < SPINS)
        pause();
      else if (i < SPINS + YIELDS)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(NAP);
    }
  }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
  }

  Shared& shared_;
  const int rank_, size_;
  int parity_ = 0;
  bool has_divided_ = false;  // since the last barrier
  Ahead ahead_;
  int64_t num_read_ = 0;  // of each of its runs
};

}  // namespace toka
