// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include "cuda/kernels/gvr.cuh"
#include "cuda/kernels/radix.cuh"
#include "cuda/kernels/resident.cuh"
#include "cuda/kernels/stream.cuh"
#include "cuda/kernels/winners.cuh"

namespace emulator {
namespace {

using gvr::Plan;
using gvr::ScoreType;
using gvr::TopKParams;

template <ScoreType kType, bool kCluster, int kThreads, bool kMore>
void run_resident_kernel(const TopKParams& params, const Plan& plan, Launch launch) {
  using Layout =
      gvr::cuda::ResidentLayout<gvr::cuda::ResidentConfig<kType, kCluster, kThreads, kMore>>;
  launch.threads = kThreads;
  launch.shared_bytes = std::max(Layout::bytes(plan), sizeof(gvr::cuda::DivideScratch));
  run(launch, [&] { gvr::cuda::resident_kernel<kType, kCluster, kThreads, kMore>(params, plan); });
}

template <ScoreType kType, bool kCluster, int kThreads>
void run_resident(const TopKParams& params, const Plan& plan, const Launch& launch) {
  const bool more = params.values != nullptr || params.state != nullptr ||
                    params.stats != nullptr || params.kv.out != nullptr;
  if (more) {
    run_resident_kernel<kType, kCluster, kThreads, true>(params, plan, launch);
  } else {
    run_resident_kernel<kType, kCluster, kThreads, false>(params, plan, launch);
  }
}

template <ScoreType kType, bool kCluster>
void run_family(const TopKParams& params, const Plan& plan, Launch launch) {
  if (plan.family == gvr::Algorithm::kResident) {
    if (plan.threads == gvr::kTinyBlock) {
      run_resident<kType, kCluster, gvr::kTinyBlock>(params, plan, launch);
    } else if (plan.threads == gvr::kSmallBlock) {
      run_resident<kType, kCluster, gvr::kSmallBlock>(params, plan, launch);
    } else {
      run_resident<kType, kCluster, gvr::kLargeBlock>(params, plan, launch);
    }
    return;
  }
  if (plan.family == gvr::Algorithm::kRadix) {
    launch.threads = gvr::cuda::Config::kRadixThreads;
    launch.shared_bytes = sizeof(gvr::cuda::DifferenceScratch);
    run(launch, [&] { gvr::cuda::radix_kernel<kType>(params); });
    return;
  }
  launch.threads = gvr::cuda::Config::kThreads;
  launch.shared_bytes =
      std::max(gvr::cuda::shared_bytes(plan.staging, gvr::cuda::Config::kThreads, kCluster),
               sizeof(gvr::cuda::DivideScratch));
  run(launch, [&] {
    if (plan.family == gvr::Algorithm::kGvr) {
      gvr::cuda::gvr_kernel<kType, kCluster>(params, plan);
    } else {
      gvr::cuda::stream_kernel<kType, kCluster>(params, plan);
    }
  });
}

template <ScoreType kType>
void run_typed(const TopKParams& params, const Plan& plan, const Launch& launch) {
  if (plan.ctas_per_row > 1) {
    run_family<kType, true>(params, plan, launch);
  } else {
    run_family<kType, false>(params, plan, launch);
  }
}

}  // namespace

void run_kernel(const TopKParams& params, const Plan& plan, uint64_t seed) {
  Launch launch;
  launch.rows = static_cast<int>(params.rows);
  launch.ctas_per_row = plan.ctas_per_row;
  launch.seed = seed;
  switch (params.dtype) {
    case ScoreType::kFloat32: return run_typed<ScoreType::kFloat32>(params, plan, launch);
    case ScoreType::kBFloat16: return run_typed<ScoreType::kBFloat16>(params, plan, launch);
    case ScoreType::kFloat16: return run_typed<ScoreType::kFloat16>(params, plan, launch);
  }
}

void run_merge(const gvr::MergeParams& params, uint64_t seed) {
  Launch launch;
  launch.threads = gvr::cuda::kListThreads;
  launch.rows = static_cast<int>(params.rows * gvr::cuda::list_blocks(params.k));
  launch.seed = seed;
  constexpr ScoreType kType = ScoreType::kFloat32;
  const bool own = params.own_values != nullptr;
  for (launch.layer = 0; launch.layer < (own ? 1 : params.world); ++launch.layer) {
    run(launch, [&] {
      if (own) {
        gvr::cuda::merge_kernel<kType, 4, true>(params);
      } else if (params.world <= 2) {
        gvr::cuda::merge_kernel<kType, 1, false>(params);
      } else {
        gvr::cuda::merge_kernel<kType, 4, false>(params);
      }
    });
  }
}

void run_pack(const gvr::PackParams& params, uint64_t seed) {
  Launch launch;
  launch.threads = gvr::cuda::kListThreads;
  launch.rows = static_cast<int>(params.rows * gvr::cuda::list_blocks(params.k));
  launch.seed = seed;
  run(launch, [&] { gvr::cuda::pack_kernel<ScoreType::kFloat32>(params); });
}

}  // namespace emulator
