// A row or two times a packed weight: reading the weight is all that takes time.
//
// Every thread has a share of the panels, and reads it in as many streams as keep the memory busy.
// A stream goes on from panel to panel, the last one until the share's end; a step takes one panel
// of each that is not at its end.
#pragma once

#include <cassert>

#include "epilogue.h"

namespace toka {

// What a waiting thread reads ahead of the next layer: a part of its L2 cache.
constexpr int64_t AHEAD_BYTES = 320 * 1024;

class PanelShare {
  static constexpr int64_t PAGE = 4096;
  static constexpr int64_t LONG_STREAM = 16;  // steps, of which one more doesn't matter

 public:
  PanelShare(const LinearCall& call, int owner, int num_threads) {
    const int64_t panels = num_panels(call.out_features, false);
    first_ = owner * panels / num_threads;
    size_ = (owner + 1) * panels / num_threads - first_;
    const int64_t at_once = panels_at_once(call.num_rows);
    steps_ = round_up(size_, at_once) / at_once;
    // Streams that run over the same sets of the caches side by side drive one another out.
    const int64_t bytes = packed_bytes(NR, call.in_features, call.gated, call.type, call.format);
    if (at_once > 1 && steps_ >= LONG_STREAM && steps_ * bytes % PAGE == 0) steps_++;
  }

  int64_t steps() const { return steps_; }
  // Panels (of one half) of a step: panel(step), and others at the same distance.
  int64_t panel(int64_t step) const { return first_ + step; }
  int64_t distance() const { return steps_; }
  int64_t streams(int64_t step) const { return (size_ - step + steps_ - 1) / steps_; }
  // Panels of the last stream, which may have fewer than the others.
  int64_t shortest() const { return size_ - (streams(0) - 1) * steps_; }

 private:
  int64_t first_, size_, steps_;
};

// Calls f(Rows<n>()) with n = streams, 1 <= streams <= MOST.
template <int MOST, class Function>
TOKA_INLINE void with_streams(int64_t streams, Function&& f) {
  if constexpr (MOST == 1) {
    f(Rows<1>());
  } else {
    if (streams == MOST)
      f(Rows<MOST>());
    else
      with_streams<MOST - 1>(streams, static_cast<Function&&>(f));
  }
}

// Makes all outputs of M rows: multiply(panel, distance, sums) adds up P panels that are `distance`
// bytes apart, sums being F[P][2 * M], two vectors per row.
template <class T, class Out, int M = 1, class Multiply>
void stream_panels(Team& team, const LinearCall& call, int64_t panel_bytes, Multiply&& multiply) {
  const int64_t bytes = panel_bytes * (call.gated ? 2 : 1);
  const char* packed = static_cast<const char*>(call.packed);
  const Epilogue<T, Out> epilogue{call};
  const auto share_of = [&](int owner) { return PanelShare(call, owner, team.size()); };
  team.shares([&](int owner) { return share_of(owner).steps(); }, [&](int owner, int64_t step) {
    const PanelShare share = share_of(owner);
    const int64_t panel = share.panel(step), distance = share.distance();
    assert(share.streams(step) >= 1 && "a step beyond the share's end");
    with_streams<panels_at_once(M)>(share.streams(step), [&](auto streams) TOKA_ALWAYS {
      constexpr int P = decltype(streams)::value;
      F sums[2][P][2 * M];
      multiply(packed + panel * bytes, distance * bytes, sums[0]);
      if (call.gated) multiply(packed + panel * bytes + panel_bytes, distance * bytes, sums[1]);
      for (int i = 0; i < P; i++)
        epilogue(sums[0][i], call.gated ? sums[1][i] : nullptr, M, 0, (panel + i * distance) * NR);
    });
  });
}

}  // namespace toka
