// Parallel regions: one per operation, or per pass over the weights of few rows.
#pragma once

#include <omp.h>

#include <algorithm>
#include <new>

#include "scratch.h"
#include "team.h"

namespace toka {

// Runs body(team) on up to `threads` threads.
template <class Body>
void parallel_region(int threads, Body&& body) {
  if (threads > Team::MAX_THREADS) threads = Team::MAX_THREADS;
  alignas(64) unsigned char memory[Team::MAX_THREADS * sizeof(Team::Seat)];
  Team::Shared shared;
  shared.seats = reinterpret_cast<Team::Seat*>(memory);
  for (int i = 0; i < threads; i++) new (shared.seats + i) Team::Seat();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Team team(shared, omp_get_thread_num(), omp_get_num_threads());
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
