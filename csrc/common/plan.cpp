// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gvr {
namespace {

int32_t floor_power_of_two(int64_t x) {
  int32_t p = 1;
  while (int64_t{2} * p <= x) p *= 2;
  return p;
}

// One CTA per SM; two where that gives a row a second CTA; and never slices so short that a CTA's
// fixed cost exceeds its reading time. benchmarks/NOTES.md, "CTAs per row".
int32_t choose_ctas_per_row(const Shape& shape, const DeviceInfo& device) {
  constexpr int64_t kLeastSlice = 1024;
  const int64_t rows = std::max<int64_t>(shape.rows, 1);
  const int64_t one_per_sm = device.sm_count / rows;
  const int64_t two_per_sm = std::min<int64_t>(2, 2 * device.sm_count / rows);
  const int64_t by_length = shape.n / kLeastSlice;
  const int64_t wanted = std::min(std::max(one_per_sm, two_per_sm), by_length);
  return floor_power_of_two(std::max<int64_t>(1, wanted));
}

// The row's own sample sets the threshold as well as the hint does, and gathering the hint is a
// chain of two dependent loads. It pays only where one CTA reads a row so long that the sample
// holds few winners. benchmarks/NOTES.md, "What the hint is worth".
bool hint_pays(const Shape& shape, int32_t ctas_per_row) {
  return ctas_per_row == 1 && shape.n >= 96 * 1024;
}

}  // namespace

Plan make_plan(const Shape& shape, const DeviceInfo& device, const Tuning& tuning) {
  Plan plan{};
  plan.family = shape.algorithm == Algorithm::kAuto ? Algorithm::kStream : shape.algorithm;

  // Staging holds the usual 1.4 K survivors, and after a compaction K and at least as many new
  // ones.
  const int64_t staging = tuning.staging > 0
                              ? std::max<int64_t>(tuning.staging, int64_t{shape.k} + 32)
                              : std::max<int64_t>(2 * int64_t{shape.k} + 1024, 2048);
  plan.staging = static_cast<int32_t>(std::min<int64_t>((staging + 3) / 4 * 4, 1 << 20));
  const int64_t staging_bytes = int64_t{8} * plan.staging;
  const int64_t fixed_bytes = 40 * 1024;  // histograms, ranking area, scalars
  if (shape.k > kMaxStagedK || staging_bytes + fixed_bytes > device.shared_bytes_per_block) {
    plan.family = Algorithm::kRadix;
  }

  const int32_t limit = std::min(device.max_cluster, kMaxCluster);
  const int32_t wanted =
      tuning.ctas_per_row > 0 ? tuning.ctas_per_row : choose_ctas_per_row(shape, device);
  plan.ctas_per_row = plan.family == Algorithm::kRadix
                          ? 1
                          : std::min(floor_power_of_two(wanted), std::max(limit, 1));
  plan.chunk = tuning.chunk > 0 ? tuning.chunk : 64 * 1024;
  plan.rank_capacity = tuning.rank_capacity > 0 ? std::min(tuning.rank_capacity, 256) : 256;
  plan.max_verify = tuning.max_verify > 0 ? tuning.max_verify : 6;
  plan.use_hint = shape.has_hint && tuning.ignore_hint == 0 &&
                  (shape.algorithm != Algorithm::kAuto || hint_pays(shape, plan.ctas_per_row));
  plan.force_undershoot = tuning.force_undershoot != 0;
  return plan;
}

Tuning& thread_tuning() {
  thread_local Tuning tuning;
  return tuning;
}

const char* algorithm_name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kAuto: return "auto";
    case Algorithm::kGvr: return "gvr";
    case Algorithm::kStream: return "stream";
    case Algorithm::kRadix: return "radix";
  }
  return "unknown";
}

Algorithm algorithm_from_name(const char* name) {
  const std::string given(name);
  for (Algorithm a : {Algorithm::kAuto, Algorithm::kGvr, Algorithm::kStream, Algorithm::kRadix}) {
    if (given == algorithm_name(a)) return a;
  }
  throw std::invalid_argument("algorithm: got \"" + given +
                              "\", need \"auto\", \"gvr\", \"stream\" or \"radix\"");
}

}  // namespace gvr
