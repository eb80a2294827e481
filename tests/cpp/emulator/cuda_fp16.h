// SPDX-License-Identifier: Apache-2.0
#pragma once

struct __half {
  unsigned short bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  float magnitude = std::ldexp(static_cast<float>(mantissa + (exponent == 0 ? 0 : 1024)),
                               (exponent == 0 ? 1 : exponent) - 25);
  if (exponent == 31) magnitude = mantissa == 0 ? INFINITY : NAN;
  return x.bits & 0x8000u ? -magnitude : magnitude;
}
