// A vector register of floats, at the width of the machine this is compiled for.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#define LANES_ARE_16 1
#else
constexpr int LANES = 8;
#endif

constexpr int64_t CACHE_LINE = 64;  // bytes
constexpr int SECOND_CACHE = 2;     // where __builtin_prefetch is to put something

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

// Tensors are aligned to their elements, not to registers.
static inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Small integers as floats, which is exact. Of a conversion in the compiler's own words GCC makes
// one for each lane.
static inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  Bytes value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_convertvector(value, Floats);
#endif
}

static inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// Halves are added to halves: always in the same order, so that equal rows give equal bits.
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

static inline float sum(Floats value) {
  Eight eight[LANES / 8];
  std::memcpy(eight, &value, sizeof value);
#if LANES_ARE_16
  eight[0] += eight[1];
#endif
  Four four[2];
  std::memcpy(four, eight, sizeof four);
  const Four half = four[0] + four[1];
  return (half[0] + half[2]) + (half[1] + half[3]);
}

// Of each group of 2 D lanes: D of `a`, then D of `b`, from the SKIP-th on.
template <int D, int SKIP, int... LANE>
static inline Floats merge(Floats a, Floats b, std::integer_sequence<int, LANE...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, (LANE - LANE % (2 * D) + LANE % D + SKIP +
                                        (LANE % (2 * D) < D ? 0 : LANES))...);
#else
  return __builtin_shuffle(a, b, Ints{(LANE - LANE % (2 * D) + LANE % D + SKIP +
                                       (LANE % (2 * D) < D ? 0 : LANES))...});
#endif
}

// The `sum` of each of so many registers, in its lane: the same additions, for all at a time.
template <int D = LANES / 2>
static inline Floats sums_of(Floats* values) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>();
  for (int i = 0; i < D; i++)
    values[i] = merge<D, 0>(values[i], values[i + D], lanes) +
                merge<D, D>(values[i], values[i + D], lanes);
  if constexpr (D == 1)
    return values[0];
  else
    return sums_of<D / 2>(values);
}

// exp(x) for x <= 0, as 2^n * exp(r) with |r| <= ln(2) / 2 and the Taylor series of exp(r) to r^7:
// within 2 units in the last place. Below -87 the result is 0.
static inline Floats exp_of_negative(Floats x) {
  const Floats scaled = x * 1.44269504088896341f - 0.5f;
  const Ints n = __builtin_convertvector(scaled, Ints);  // rounds to nearest, for x <= 0
  const Floats whole = __builtin_convertvector(n, Floats);
  // ln(2) in two parts: the first has so few bits that its product with n is exact.
  const Floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats series = r * (1.0f / 5040) + (1.0f / 720);
  series = series * r + (1.0f / 120);
  series = series * r + (1.0f / 24);
  series = series * r + (1.0f / 6);
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const Ints bits = (n + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  const Ints large = x > -87.0f;  // all bits set where true
  Floats result = series * power;
  Ints result_bits;
  std::memcpy(&result_bits, &result, sizeof result);
  result_bits &= large;
  std::memcpy(&result, &result_bits, sizeof result);
  return result;
}
