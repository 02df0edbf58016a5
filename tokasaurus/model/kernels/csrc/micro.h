// The register tile under every dense product: C[MR][NV*W] += A[MR][K] * B[K][NV*W].
//
// B is packed along columns, in one of two layouts:
//   float:      B[k][column]
//   bf16 pairs: B[k/2][column][2]; one 32-bit lane holds two consecutive k of a column
// A's rows are `Operand<B>::A`: float for float B; for bf16 pairs, bf16 where the machine has a
// bf16 dot product and float (exactly converted) where it has none.
#pragma once

#include <type_traits>

#include "simd.h"

namespace toka {

template <class T>
struct Operand;

template <>
struct Operand<float> {
  typedef float A;
  static constexpr int PACK = 1;  // k per step
};

template <>
struct Operand<bf16> {
#if defined(__AVX512BF16__)
  typedef bf16 A;
#else
  typedef float A;
#endif
  static constexpr int PACK = 2;
};

// Register tile of the flavour: MR x NV accumulators, NV vectors of B, one broadcast of A.
#if defined(__AVX512F__)
constexpr int MR = 12, NV = 2;
#elif defined(__AVX2__)
constexpr int MR = 6, NV = 2;
#else
constexpr int MR = 4, NV = 1;
#endif
constexpr int NR = 2 * W;  // columns of a packed panel

// More rows of a product with weights in few bits than this are limited by arithmetic, not by the
// stream of weights: nothing is fetched ahead for them.
constexpr int MAX_FETCHED_ROWS = 4;

// Rows that are multiplied by panels at once, each panel a stream from memory.
constexpr int MAX_STREAM_ROWS = 2;

// Panels that so many rows are multiplied by at a time: as many streams as keep the memory busy, if
// the registers hold their sums.
constexpr int panels_at_once([[maybe_unused]] int64_t rows) {
#if defined(__AVX512F__)
  return 4;  // of two cache lines per step
#elif defined(__AVX2__)
  return rows == 1 ? 6 : 3;
#else
  return rows == 1 ? 2 : 1;
#endif
}

// What a loop over B fetches into the cache meanwhile: BYTES of it per step, from `start` on.
template <int BYTES>
struct Fetch {
  const char* start;

  TOKA_INLINE void operator()(int step) const {
    for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(start + step * BYTES + line);
  }
};

struct FetchNothing {
  TOKA_INLINE void operator()(int) const {}
};

// How many bytes ahead a stream is fetched: a page, so that the next page's address is translated
// in time too.
constexpr int STREAM_DISTANCE = 4096;

// Of a panel whose steps are read one after the other.
template <int BYTES>
TOKA_INLINE Fetch<BYTES> fetch_stream(const void* panel) {
  return {static_cast<const char*>(panel) + STREAM_DISTANCE};
}

// Rows of A, `stride` bytes apart, by a pointer for every three of them: more would not fit into
// the registers, and x86 adds a stride or two for nothing.
template <int M>
class RowPointers {
 public:
  template <class A>
  TOKA_INLINE RowPointers(const A* a, ptrdiff_t lda) : stride_(lda * ptrdiff_t(sizeof(A))) {
    for (int i = 0; i < (M + 2) / 3; i++) {
      first_[i] = reinterpret_cast<const char*>(a + 3 * i * lda);
      asm("" : "+r"(first_[i]));  // hides that it is a sum, which would be made again and again
    }
  }
  template <class A>
  TOKA_INLINE const A* row(int m) const {
    return reinterpret_cast<const A*>(first_[m / 3] + m % 3 * stride_);
  }
  TOKA_INLINE void advance(ptrdiff_t bytes) {
    for (int i = 0; i < (M + 2) / 3; i++) first_[i] += bytes;
  }

 private:
  const char* first_[(M + 2) / 3];
  ptrdiff_t stride_;
};

template <int M, int N, class Fetches = FetchNothing>
TOKA_INLINE void multiply(const float* a, ptrdiff_t lda, const float* b, ptrdiff_t ldb, int steps,
                          F (&acc)[M][N], Fetches fetch = {}) {
  RowPointers<M> rows(a, lda);
#pragma GCC unroll 4
  for (int k = 0; k < steps; k++) {
    fetch(k);
    F bk[N];
    for (int n = 0; n < N; n++) bk[n] = load(b + n * W);
    for (int m = 0; m < M; m++) {
      const F am = splat(*rows.template row<float>(m));
      for (int n = 0; n < N; n++) acc[m][n] += am * bk[n];
    }
    rows.advance(sizeof(float));
    b += ldb;
  }
}

struct KeepNothing {
  TOKA_INLINE void operator()(int, int, F) const {}
};

// `ldb` counts columns (32-bit pairs) per step, `steps` counts pairs of k. Where B becomes floats,
// keep(k, n, vector) is told them.
template <int M, int N, class A, class Fetches = FetchNothing, class Keeps = KeepNothing>
TOKA_INLINE void multiply(const A* a, ptrdiff_t lda, const bf16* b, ptrdiff_t ldb, int steps,
                          F (&acc)[M][N], Fetches fetch = {}, [[maybe_unused]] Keeps keep = {}) {
  static_assert(std::is_same<A, Operand<bf16>::A>::value, "the rows of A must be operands");
#if defined(__AVX512BF16__)
#pragma GCC unroll 4
  for (int k = 0; k < steps; k++) {
    fetch(k);
    __m512bh bk[N];
    for (int n = 0; n < N; n++) bk[n] = load_as<__m512bh>(b + 2 * n * W);
    for (int m = 0; m < M; m++) {
      uint32_t pair;
      std::memcpy(&pair, a + m * lda + 2 * k, 4);
      const __m512bh am = (__m512bh)_mm512_set1_epi32(int(pair));
      for (int n = 0; n < N; n++) acc[m][n] = (F)_mm512_dpbf16_ps((__m512)acc[m][n], am, bk[n]);
    }
    b += 2 * ldb;
  }
#else
#pragma GCC unroll 4
  for (int k = 0; k < steps; k++) {
    fetch(k);
    F bk[N];
    for (int n = 0; n < N; n++) {
      bk[n] = pair_lo(load_as<U>(b + 2 * n * W));
      keep(2 * k, n, bk[n]);
    }
    for (int m = 0; m < M; m++) {
      const F am = splat(a[m * lda + 2 * k]);
      for (int n = 0; n < N; n++) acc[m][n] += am * bk[n];
    }
    for (int n = 0; n < N; n++) {
      bk[n] = pair_hi(load_as<U>(b + 2 * n * W));
      keep(2 * k + 1, n, bk[n]);
    }
    for (int m = 0; m < M; m++) {
      const F am = splat(a[m * lda + 2 * k + 1]);
      for (int n = 0; n < N; n++) acc[m][n] += am * bk[n];
    }
    b += 2 * ldb;
  }
#endif
}

// Of several streams the machine brings each into the L2 cache in time, and only the way from there
// is worth shortening.
constexpr int NEAR_DISTANCE = 512;

template <int BYTES>
TOKA_INLINE void fetch_near(const void* stream) {
  const char* near = static_cast<const char*>(stream) + NEAR_DISTANCE;
  for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(near + line);
}

// M rows of A times P panels of NR columns, `panel_size` elements apart; of each panel two sums per
// row. A panel is a stream of its own from memory, and sums of different ones don't wait for each
// other.
template <int M, int P>
TOKA_INLINE void multiply_panels(const float* a, ptrdiff_t lda, const float* b,
                                 ptrdiff_t panel_size, int64_t steps, F (&acc)[P][2 * M]) {
  for (int64_t k = 0; k < steps; k++, b += NR) {
    F rows[M];
    for (int m = 0; m < M; m++) rows[m] = splat(a[m * lda + k]);
    for (int p = 0; p < P; p++) fetch_near<NR * 4>(b + p * panel_size);
    for (int p = 0; p < P; p++)
      for (int n = 0; n < 2; n++) {
        const F bk = load(b + p * panel_size + n * W);
        for (int m = 0; m < M; m++) acc[p][2 * m + n] += rows[m] * bk;
      }
  }
}

template <int M, int P>
TOKA_INLINE void multiply_panels(const Operand<bf16>::A* a, ptrdiff_t lda, const bf16* b,
                                 ptrdiff_t panel_size, int64_t steps, F (&acc)[P][2 * M]) {
  for (int64_t k = 0; k < steps; k++, b += 2 * NR) {
    for (int p = 0; p < P; p++) fetch_near<NR * 4>(b + p * panel_size);
#if defined(__AVX512BF16__)
    __m512bh rows[M];
    for (int m = 0; m < M; m++) {
      int pair;
      std::memcpy(&pair, a + m * lda + 2 * k, 4);
      rows[m] = (__m512bh)_mm512_set1_epi32(pair);
    }
    for (int p = 0; p < P; p++)
      for (int n = 0; n < 2; n++) {
        const __m512bh bk = load_as<__m512bh>(b + p * panel_size + 2 * n * W);
        for (int m = 0; m < M; m++) {
          F& sum = acc[p][2 * m + n];
          sum = (F)_mm512_dpbf16_ps((__m512)sum, rows[m], bk);
        }
      }
#else
    F even[M], odd[M];
    for (int m = 0; m < M; m++) {
      even[m] = splat(a[m * lda + 2 * k]);
      odd[m] = splat(a[m * lda + 2 * k + 1]);
    }
    for (int p = 0; p < P; p++)
      for (int n = 0; n < 2; n++) {
        const U pairs = load_as<U>(b + p * panel_size + 2 * n * W);
        for (int m = 0; m < M; m++) acc[p][2 * m + n] += even[m] * pair_lo(pairs);
        for (int m = 0; m < M; m++) acc[p][2 * m + n] += odd[m] * pair_hi(pairs);
      }
#endif
  }
}

// Calls f(std::integral_constant-like Rows<m>) with m = rows, LEAST <= rows <= MR.
template <int M>
struct Rows {
  static constexpr int value = M;
};

template <int LEAST = 1, class Function, int M = MR>
TOKA_INLINE void with_rows(int rows, Function&& f) {
  if constexpr (M == LEAST) {
    f(Rows<M>());
  } else {
    if (rows == M)
      f(Rows<M>());
    else
      with_rows<LEAST, Function, M - 1>(rows, static_cast<Function&&>(f));
  }
}

// Adds to tile[rows][2], the sums of a panel's columns: calls add(acc, v) on pieces of it, where
// acc is [M][N] sums in registers, of the vectors from v on. LEAST <= rows <= MR.
template <int LEAST = 1, class V, class Add>
TOKA_INLINE void add_to_tile(int rows, V* tile, Add&& add) {
  constexpr int WIDE = 2;
  with_rows<LEAST>(rows, [&](auto constant) {
    constexpr int M = decltype(constant)::value;
    constexpr int N = M * WIDE <= MR * NV ? WIDE : NV;
    for (int v = 0; v < WIDE; v += N) {
      V acc[M][N];
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = tile[WIDE * m + v + n];
      add(acc, v);
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) tile[WIDE * m + v + n] = acc[m][n];
    }
  });
}

}  // namespace toka
