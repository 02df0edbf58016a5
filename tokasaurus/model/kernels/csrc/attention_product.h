// Products of few rows with vectors that lie anywhere in memory: acc[M][N] += A[M][K] * B[K][N],
// where B's vectors are `ldb` columns from step to step, in the layouts of micro.h.
#pragma once

#include "micro.h"

namespace toka {

// Vectors that M rows are multiplied by at once: as many sums as the registers hold beside a vector
// and its factors, and enough of them that additions don't wait for one another.
constexpr int streamed_vectors(int rows, int64_t pack) {
#if defined(__AVX512F__)
  (void)pack;
  return rows <= 6 ? 4 : 2;
#elif defined(__AVX2__)
  return rows == 1 ? 8 : rows == 2 ? 4 : rows == 3 && pack == 1 ? 3 : 2;
#else
  (void)pack;
  return rows == 1 ? 4 : 1;
#endif
}

// Sums that a product's terms are divided among: with few of them, odd and even elements have their
// own, so that additions don't wait for one another.
constexpr int num_sums(int rows, int vectors, int64_t pack) {
#if defined(__AVX2__)
  return !HAS_BF16_DOT && pack == 2 && rows * vectors <= 6 ? 2 : 1;
#else
  return 1;
#endif
}

// Of what is left when there are fewer than N.
constexpr int fewer_vectors(int n) { return n == 3 ? 2 : n / 2; }

// acc[m][n] += factor(m) * vector(n), with as few of both at hand as there can be.
template <int M, int N, class Factor, class Vector>
TOKA_INLINE void add_products(F (&acc)[M][N], Factor&& factor, Vector&& vector) {
  if constexpr (M <= N) {
    F factors[M];
    for (int m = 0; m < M; m++) factors[m] = factor(m);
    for (int n = 0; n < N; n++) {
      const F b = vector(n);
      for (int m = 0; m < M; m++) acc[m][n] += factors[m] * b;
    }
  } else {
    F vectors[N];
    for (int n = 0; n < N; n++) vectors[n] = vector(n);
    for (int m = 0; m < M; m++) {
      const F a = factor(m);
      for (int n = 0; n < N; n++) acc[m][n] += a * vectors[n];
    }
  }
}

// `fetch(k)` brings into the cache what step k is to fetch.
template <int M, int N, class Fetches>
TOKA_INLINE void multiply_vectors(const float* a, ptrdiff_t lda, const float* const (&b)[N],
                                  ptrdiff_t ldb, int steps, F (&acc)[1][M][N], Fetches fetch) {
  for (int k = 0; k < steps; k++) {
    fetch(k);
    add_products(
        acc[0], [&](int m) { return splat(a[m * lda + k]); },
        [&](int n) { return load(b[n] + k * ldb); });
  }
}

template <int M, int N, class Fetches>
TOKA_INLINE void multiply_vectors(const Operand<bf16>::A* a, ptrdiff_t lda,
                                  const bf16* const (&b)[N], ptrdiff_t ldb, int steps,
                                  F (&acc)[num_sums(M, N, 2)][M][N], Fetches fetch) {
  for (int k = 0; k < steps; k++) {
    fetch(k);
#if defined(__AVX512BF16__)
    __m512bh factors[M];
    for (int m = 0; m < M; m++) {
      int pair;
      std::memcpy(&pair, a + m * lda + 2 * k, 4);
      factors[m] = (__m512bh)_mm512_set1_epi32(pair);
    }
    for (int n = 0; n < N; n++) {
      const __m512bh bk = load_as<__m512bh>(b[n] + 2 * k * ldb);
      for (int m = 0; m < M; m++)
        acc[0][m][n] = (F)_mm512_dpbf16_ps((__m512)acc[0][m][n], factors[m], bk);
    }
#else
    const auto pairs = [&](int n) { return load_as<U>(b[n] + 2 * k * ldb); };
    add_products(
        acc[0], [&](int m) { return splat(a[m * lda + 2 * k]); },
        [&](int n) { return pair_lo(pairs(n)); });
    add_products(
        acc[num_sums(M, N, 2) - 1], [&](int m) { return splat(a[m * lda + 2 * k + 1]); },
        [&](int n) { return pair_hi(pairs(n)); });
#endif
  }
}

}  // namespace toka
