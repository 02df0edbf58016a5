// Threads: one OpenMP region per operation, work handed out in small pieces.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace toka {

// Memory that grows to the largest request and is kept, so that steady states don't allocate.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  template <class T>
  T* get(size_t count) {
    const size_t bytes = (count * sizeof(T) + 255) / 256 * 256;
    if (bytes > capacity_) {
      std::free(data_);
      capacity_ = 0;
      data_ = std::aligned_alloc(256, bytes);
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = bytes;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t capacity_ = 0;
};

// One thread's view of a parallel region of up to four phases. Work of a phase is handed out in
// pieces of `grain`, each to whichever thread is free: a thread that the system takes away does not
// hold up the others.
class Team {
 public:
  struct Counters {
    std::atomic<int64_t> next[4] = {};
  };

  explicit Team(Counters& counters) : counters_(counters) {}

  // Runs body(first, last) over [0, count); every thread of the region must call it.
  template <class Body>
  void pieces(int64_t count, int64_t grain, Body&& body) {
    std::atomic<int64_t>& next = counters_.next[phase_++];
    for (;;) {
      const int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
      if (first >= count) break;
      body(first, first + grain < count ? first + grain : count);
    }
  }

  // Runs body(i, next) for each i below `count`, as `pieces` does one at a time. `next` is what the
  // thread will do afterwards; -1 if nothing, or if it is not to be decided before (`ahead`).
  template <class Body>
  void each(int64_t count, bool ahead, Body&& body) {
    std::atomic<int64_t>& next = counters_.next[phase_++];
    const auto take = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
    for (int64_t i = take(); i < count;) {
      const int64_t following = ahead ? take() : -1;
      body(i, following < count ? following : -1);
      i = ahead ? following : take();
    }
  }

  static void barrier() {
#pragma omp barrier
  }

 private:
  Counters& counters_;
  int phase_ = 0;
};

template <class Body>
void parallel_region(int threads, Body&& body) {
  Team::Counters counters;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Team team(counters);
    body(team);
  }
}

template <class Body>
void parallel_pieces(int64_t count, int64_t grain, int threads, Body&& body) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  if (count <= grain) threads = 1;
  parallel_region(threads, [&](Team& team) { team.pieces(count, grain, body); });
}

}  // namespace toka
