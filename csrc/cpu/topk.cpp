// SPDX-License-Identifier: Apache-2.0
// The CPU backend's side of torch: registration, threads, instruction set.
#include "topk.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <string>

#include "../ops/topk.h"
#include "../ops/winners.h"
#include "select.h"
#include "winners.h"

namespace gvr::cpu {
namespace {

void parallel_for(int64_t count, int64_t grain, const RangeBody& body) {
  at::parallel_for(0, count, grain, body);
}

// Follows torch, and so its ATEN_CPU_CAPABILITY.
Isa torch_isa() {
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return Isa::kAvx512;
  return capability == "AVX2" ? Isa::kAvx2 : Isa::kScalar;
}

template <class Params>
using RowFunction = void (*)(const Params& params, int64_t begin, int64_t end);

// Rows of lists of winners, several thousand entries to a task.
template <class Params, RowFunction<Params> kFunction>
void each_row(const Params& params) {
  constexpr int64_t kGrainEntries = 8192;
  at::parallel_for(0, params.rows, 1 + kGrainEntries / params.k,
                   [&](int64_t begin, int64_t end) { kFunction(params, begin, end); });
}

}  // namespace

void launch(const TopKParams& params) {
  static const Isa isa = torch_isa();
  const int32_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  select_rows(params, thread_tuning(), {threads, isa, &parallel_for});
}

}  // namespace gvr::cpu

TORCH_LIBRARY_IMPL(gvr, CPU, m) {
  using namespace gvr;
  register_backend(m, at::kCPU, &cpu::launch);
  register_winners(m, at::kCPU,
                   {.pack = &cpu::each_row<PackParams, &cpu::pack_winners>,
                    .merge = &cpu::each_row<MergeParams, &cpu::merge_winners>,
                    .keep = &cpu::each_row<KeepParams, &cpu::keep_winners>,
                    .digits = &cpu::each_row<DigitParams, &cpu::count_digits>});
}
