// Parallel regions: one per operation, or per pass over the weights.
#pragma once

#include <omp.h>

#include <new>

#include "scratch.h"
#include "team.h"

namespace toka {

// Runs body(team) on up to `threads` threads, at most Team::MAX_THREADS.
template <class Body>
void parallel_region(int threads, Body&& body) {
  Team::Shared shared;
  if (threads <= 1) {  // may be inside another region, where one of OpenMP's own costs much
    Team::Seat seat;
    shared.seats = &seat;
    Team team(shared, 0, 1);
    body(team);
    return;
  }
  if (threads > Team::MAX_THREADS) threads = Team::MAX_THREADS;
  alignas(64) unsigned char memory[Team::MAX_THREADS * sizeof(Team::Seat)];
  shared.seats = reinterpret_cast<Team::Seat*>(memory);
  for (int i = 0; i < threads; i++) new (shared.seats + i) Team::Seat();
#pragma omp parallel num_threads(threads)
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
