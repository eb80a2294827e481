// SPDX-License-Identifier: Apache-2.0
// The choice of kernel: every plan can be launched, and overrides stay within its bounds.
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#include "../../csrc/common/plan.h"
#include "catch.h"

namespace {

using namespace gvr;

constexpr DeviceInfo kDevices[] = {
    {108, 80, 163 * 1024, 1},   // A100
    {132, 90, 227 * 1024, 16},  // H200
    {148, 100, 227 * 1024, 16}, {36, 120, 99 * 1024, 8}, {1, 80, 99 * 1024, 1},
};
constexpr Algorithm kAlgorithms[] = {Algorithm::kAuto, Algorithm::kGvr, Algorithm::kStream,
                                     Algorithm::kRadix, Algorithm::kResident};

bool is_power_of_two(int32_t x) { return x > 0 && (x & (x - 1)) == 0; }

void check_launchable(const Shape& shape, const DeviceInfo& device, const Tuning& tuning) {
  const Plan plan = make_plan(shape, device, tuning);
  const bool known = plan.family == Algorithm::kGvr || plan.family == Algorithm::kStream ||
                     plan.family == Algorithm::kRadix || plan.family == Algorithm::kResident;
  const bool cluster =
      is_power_of_two(plan.ctas_per_row) &&
      plan.ctas_per_row <= (device.max_cluster < kMaxCluster ? device.max_cluster : kMaxCluster) &&
      (plan.family != Algorithm::kRadix || plan.ctas_per_row == 1);
  const bool staged = plan.family == Algorithm::kRadix ||
                      (plan.staging > shape.k &&
                       int64_t{8} * plan.staging < int64_t{device.shared_bytes_per_block});
  const bool positive =
      plan.bin_share > 0 && plan.chunk > 0 && plan.rank_capacity > 0 && plan.max_verify > 0;
  const bool hint = !plan.use_hint || shape.has_hint;
  const int64_t slice_bytes = int64_t{plan.slice} * (shape.dtype == ScoreType::kFloat32 ? 4 : 2);
  const bool resident =
      plan.family != Algorithm::kResident ||
      ((plan.threads == kTinyBlock || plan.threads == kSmallBlock || plan.threads == kLargeBlock) &&
       int64_t{plan.slice} * plan.ctas_per_row >= shape.n &&
       plan.slice <= kResidentScores * plan.threads &&
       slice_bytes < device.shared_bytes_per_block && !plan.use_hint);
  if (!(known && cluster && staged && positive && hint && resident)) {
    FAIL("rows " << shape.rows << ", n " << shape.n << ", k " << shape.k << ", "
                 << algorithm_name(shape.algorithm) << ", sm_" << device.capability << ": "
                 << algorithm_name(plan.family) << ", ctas " << plan.ctas_per_row << ", staging "
                 << plan.staging);
  }
}

template <typename Body>
void for_every_shape(const Body& body) {
  for (int64_t rows :
       {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{63}, int64_t{64}, int64_t{65}, int64_t{131},
        int64_t{132}, int64_t{133}, int64_t{264}, int64_t{265}, int64_t{1024}, int64_t{1} << 40}) {
    for (int32_t n : {0, 1, 511, 512, 2047, 2048, 2049, 4096, 65536, 131072, 1 << 20,
                      std::numeric_limits<int32_t>::max()}) {
      for (int32_t k : {1, 2, 512, 1024, 2047, 2048, 2049, 4096, 8191, 8192, 8193, 1 << 20,
                        std::numeric_limits<int32_t>::max()}) {
        for (Algorithm algorithm : kAlgorithms) {
          for (bool has_hint : {false, true}) {
            body(Shape{rows, n, k, ScoreType::kFloat32, has_hint, algorithm});
          }
        }
      }
    }
  }
}

TEST_CASE("every plan can be launched", "[plan]") {
  for (const DeviceInfo& device : kDevices) {
    for_every_shape([&](const Shape& shape) { check_launchable(shape, device, Tuning{}); });
  }
}

TEST_CASE("every override of every shape can be launched", "[plan]") {
  for (int32_t value : {1, 2, 3, 7, 64, 300, 1 << 20, std::numeric_limits<int32_t>::max()}) {
    Tuning tuning;
    tuning.ctas_per_row = tuning.chunk = value;
    tuning.bins = tuning.rank_capacity = tuning.max_verify = value;
    for_every_shape([&](const Shape& shape) {
      for (const DeviceInfo& device : kDevices) check_launchable(shape, device, tuning);
    });
  }
}

TEST_CASE("overrides are obeyed", "[plan]") {
  const Shape shape{1, 1500, 64, ScoreType::kFloat32, true, Algorithm::kGvr};
  Tuning tuning;
  tuning.ctas_per_row = 4;
  tuning.staging = 200;
  tuning.chunk = 96;
  tuning.bins = 64;
  tuning.rank_capacity = 3;
  tuning.max_verify = 1;
  tuning.force_undershoot = 1;
  Plan plan = make_plan(shape, kDevices[1], tuning);
  CHECK(plan.family == Algorithm::kGvr);
  CHECK(plan.ctas_per_row == 4);
  CHECK(plan.staging == 200);
  CHECK(plan.chunk == 96);
  CHECK(plan.bin_share == 0.25f);
  CHECK(plan.rank_capacity == 3);
  CHECK(plan.max_verify == 1);
  CHECK(plan.force_undershoot);
  CHECK(plan.use_hint);
  tuning.ignore_hint = 1;
  CHECK_FALSE(make_plan(shape, kDevices[1], tuning).use_hint);
  tuning.staging = 1;
  CHECK(make_plan(shape, kDevices[1], tuning).staging > shape.k);
}

TEST_CASE("a named algorithm is used where it fits, radix where none does", "[plan]") {
  for (Algorithm algorithm : kAlgorithms) {
    Shape shape{4, 12000, 2048, ScoreType::kFloat32, true, algorithm};
    for (const DeviceInfo& device : kDevices) {
      const Plan plan = make_plan(shape, device, Tuning{});
      if (algorithm != Algorithm::kAuto) CHECK(plan.family == algorithm);
    }
    shape.k = kMaxStagedK + 1;
    CHECK(make_plan(shape, kDevices[1], Tuning{}).family == Algorithm::kRadix);
  }
}

TEST_CASE("more rows never take more CTAs each", "[plan]") {
  int32_t previous = kMaxCluster;
  for (int64_t rows = 1; rows <= 4096; rows *= 2) {
    const Shape shape{rows, 131072, 2048, ScoreType::kFloat32, true, Algorithm::kStream};
    const int32_t ctas = make_plan(shape, kDevices[1], Tuning{}).ctas_per_row;
    CHECK(ctas <= previous);
    previous = ctas;
  }
  CHECK(previous == 1);
}

TEST_CASE("algorithms have names and names have algorithms", "[plan]") {
  for (Algorithm a : kAlgorithms) CHECK(algorithm_from_name(algorithm_name(a)) == a);
  for (const char* name : {"", "AUTO", "radix ", "quick"}) {
    CHECK_THROWS_AS(algorithm_from_name(name), std::invalid_argument);
  }
}

TEST_CASE("tuning belongs to its thread", "[plan]") {
  thread_tuning().chunk = 5;
  int32_t elsewhere = -1;
  std::thread([&] { elsewhere = thread_tuning().chunk; }).join();
  CHECK(elsewhere == 0);
  thread_tuning() = Tuning{};
}

}  // namespace
