// SPDX-License-Identifier: Apache-2.0
// The CPU backend's side of torch: registration, threads, instruction set.
#include "topk.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <string>

#include "../ops/topk.h"
#include "select.h"

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

}  // namespace

void launch(const TopKParams& params) {
  static const Isa isa = torch_isa();
  const int32_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  select_rows(params, thread_tuning(), {threads, isa, &parallel_for});
}

}  // namespace gvr::cpu

TORCH_LIBRARY_IMPL(gvr, CPU, m) { gvr::register_backend(m, at::kCPU, &gvr::cpu::launch); }
