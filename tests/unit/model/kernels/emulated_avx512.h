// The instructions that the kernels ask for by name and this machine may not have, in plain C++, so
// that the code around them runs and is tested anywhere. Included before every source.
//
// EMULATE_AVX512: AVX-512 F and BW; with EMULATE_VNNI and EMULATE_BF16 also those.
// EMULATE_AVX_VNNI: AVX-VNNI, on 256 bits.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace emulated {

// A vector's elements.
template <class T, int BYTES>
struct Lanes {
  static constexpr int COUNT = BYTES / int(sizeof(T));
  T values[COUNT];
  Lanes() = default;
  template <class V>
  explicit Lanes(const V& v) {
    static_assert(sizeof(V) == BYTES, "a vector of another size");
    std::memcpy(values, &v, BYTES);
  }
  T& operator[](int i) { return values[i]; }
  template <class V>
  operator V() const {
    static_assert(sizeof(V) == BYTES, "a vector of another size");
    V v;
    std::memcpy(&v, values, BYTES);
    return v;
  }
};

// Sums of four products of unsigned by signed bytes, without saturation.
template <int BYTES, class V>
inline V sums_of_byte_products(const V& sum, const V& a, const V& b) {
  Lanes<int32_t, BYTES> sums(sum);
  Lanes<uint8_t, BYTES> unsigned_bytes(a);
  Lanes<int8_t, BYTES> signed_bytes(b);
  for (int i = 0; i < BYTES; i++)
    sums[i / 4] += int32_t(unsigned_bytes[i]) * int32_t(signed_bytes[i]);
  return sums;
}
inline __m512i dpbusd(const __m512i& sum, const __m512i& a, const __m512i& b) {
  return sums_of_byte_products<64>(sum, a, b);
}
inline __m256i dpbusd(const __m256i& sum, const __m256i& a, const __m256i& b) {
  return sums_of_byte_products<32>(sum, a, b);
}

#if defined(EMULATE_AVX512)
inline __m512 max_ps(const __m512& a, const __m512& b) {
  Lanes<float, 64> x(a), y(b);
  for (int i = 0; i < 16; i++) x[i] = x[i] > y[i] ? x[i] : y[i];  // the second one if one is NaN
  return x;
}
inline __m512 min_ps(const __m512& a, const __m512& b) {
  Lanes<float, 64> x(a), y(b);
  for (int i = 0; i < 16; i++) x[i] = x[i] < y[i] ? x[i] : y[i];
  return x;
}
inline float reduce_add_ps(const __m512& a) {
  Lanes<float, 64> x(a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  return x[0];
}
inline float reduce_max_ps(const __m512& a) {
  Lanes<float, 64> x(a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
  return x[0];
}
inline __m512i set1_epi32(int value) {
  Lanes<int32_t, 64> result;
  for (int32_t& lane : result.values) lane = value;
  return result;
}
inline __m512i madd_epi16(const __m512i& a, const __m512i& b) {
  Lanes<int16_t, 64> x(a), y(b);
  Lanes<int32_t, 64> sums;
  for (int i = 0; i < 16; i++) sums[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return sums;
}
inline __m512 cvtepi32_ps(const __m512i& a) {
  Lanes<int32_t, 64> x(a);
  Lanes<float, 64> result;
  for (int i = 0; i < 16; i++) result[i] = float(x[i]);
  return result;
}
inline __m512i cvtps_epi32(const __m512& a) {
  Lanes<float, 64> x(a);
  Lanes<int32_t, 64> result;
  for (int i = 0; i < 16; i++) {
    const bool fits = x[i] >= -2147483648.0f && x[i] < 2147483648.0f;
    result[i] = fits ? int32_t(std::nearbyint(x[i])) : std::numeric_limits<int32_t>::min();
  }
  return result;
}
inline __m512i cvtepi8_epi32(const __m128i& a) {
  Lanes<int8_t, 16> x(a);
  Lanes<int32_t, 64> result;
  for (int i = 0; i < 16; i++) result[i] = x[i];
  return result;
}
inline __m512i cvtepu16_epi32(const __m256i& a) {
  Lanes<uint16_t, 32> x(a);
  Lanes<int32_t, 64> result;
  for (int i = 0; i < 16; i++) result[i] = x[i];
  return result;
}
inline __m256i cvtepi32_epi16(const __m512i& a) {
  Lanes<int32_t, 64> x(a);
  Lanes<int16_t, 32> result;
  for (int i = 0; i < 16; i++) result[i] = int16_t(x[i]);
  return result;
}
inline __m128i cvtepi32_epi8(const __m512i& a) {
  Lanes<int32_t, 64> x(a);
  Lanes<int8_t, 16> result;
  for (int i = 0; i < 16; i++) result[i] = int8_t(x[i]);
  return result;
}
#endif

#if defined(EMULATE_BF16)
// Of a float or of the float that a bf16 is the upper half of; denormals count as zeros.
inline uint32_t without_denormal(uint32_t bits) {
  return (bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits;
}
inline float widened(uint16_t bf16) {
  const uint32_t bits = without_denormal(uint32_t(bf16) << 16);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline __m256bh cvtneps_pbh(const __m512& a) {
  Lanes<uint32_t, 64> x(a);
  Lanes<uint16_t, 32> result;
  for (int i = 0; i < 16; i++) {
    const uint32_t bits = without_denormal(x[i]);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    result[i] = uint16_t(is_nan ? bits >> 16 | 0x40u
                                : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  return result;
}
// The odd elements' products are added first, each product and sum rounded once.
inline __m512 dpbf16_ps(const __m512& sum, const __m512bh& a, const __m512bh& b) {
  Lanes<float, 64> sums(sum);
  Lanes<uint16_t, 64> x(a), y(b);
  for (int i = 0; i < 16; i++)
    for (int j = 2 * i + 1; j >= 2 * i; j--) sums[i] = std::fma(widened(x[j]), widened(y[j]), sums[i]);
  return sums;
}
#endif

}  // namespace emulated

// Defined after immintrin.h, which would declare the real ones for them.
#if defined(EMULATE_AVX512)
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_reduce_add_ps emulated::reduce_add_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_madd_epi16 emulated::madd_epi16
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#endif
#if defined(EMULATE_VNNI)
#define __AVX512VNNI__ 1
#define _mm512_dpbusd_epi32 emulated::dpbusd
#endif
#if defined(EMULATE_BF16)
#define __AVX512BF16__ 1
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#endif
#if defined(EMULATE_AVX_VNNI)
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 emulated::dpbusd
#endif
