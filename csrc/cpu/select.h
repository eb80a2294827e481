// SPDX-License-Identifier: Apache-2.0
// All rows of a call, on threads that the caller provides.
#pragma once

#include <cstdint>
#include <functional>

#include "../common/params.h"
#include "../common/plan.h"
#include "vector_ops.h"

namespace gvr::cpu {

using RangeBody = std::function<void(int64_t begin, int64_t end)>;

struct Runtime {
  int32_t threads = 1;
  Isa isa = Isa::kAvx512;
  // Calls body on ranges of at least `grain` that make up [0, count), possibly at the same time.
  void (*parallel_for)(int64_t count, int64_t grain, const RangeBody& body) = nullptr;
};

void select_rows(const TopKParams& params, const Tuning& tuning, const Runtime& runtime);

}  // namespace gvr::cpu
