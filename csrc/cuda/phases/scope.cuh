// SPDX-License-Identifier: Apache-2.0
// The CTAs that share a row: one block, or a cluster of blocks that see each other's shared memory.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

namespace gvr::cuda {

// Programmatic dependent launch: this kernel may have started before the one in front of it in the
// stream has ended. Everything that memory says comes after this line, the reading of it and the
// writing to it; and the kernel behind may do the same.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

template <bool kCluster>
struct Scope {
  static constexpr bool kIsCluster = false;
  static __device__ __forceinline__ uint32_t row() { return blockIdx.x; }
  static __device__ __forceinline__ int rank() { return 0; }
  static __device__ __forceinline__ int size() { return 1; }
  static __device__ __forceinline__ void sync() { __syncthreads(); }
  static __device__ __forceinline__ void arrive() {}
  static __device__ __forceinline__ void announce() {}
  static __device__ __forceinline__ void wait() {}
  template <class T>
  static __device__ __forceinline__ T* remote(T* local, int) {
    return local;
  }
};

// Below sm_90 the cluster kernels are never launched (DeviceInfo::max_cluster is 1); they compile
// to the block's scope so that one source serves every architecture.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <>
struct Scope<true> {
  static constexpr bool kIsCluster = true;
  // The row's number: grids have one cluster per row.
  static __device__ __forceinline__ uint32_t row() {
    uint32_t cluster;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(cluster));
    return cluster;
  }
  static __device__ __forceinline__ int rank() {
    return static_cast<int>(cooperative_groups::this_cluster().block_rank());
  }
  static __device__ __forceinline__ int size() {
    return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
  }
  // The hardware barrier is warp-aligned: lanes that took a branch of their own must be back.
  static __device__ __forceinline__ void sync() {
    __syncwarp();
    cooperative_groups::this_cluster().sync();
  }
  // Split barrier. Between the two halves a CTA may work on what nobody else sees.
  static __device__ __forceinline__ void arrive() {
    __syncwarp();
    cooperative_groups::this_cluster().barrier_arrive();
  }
  // An arrival that publishes no data: it says only that this CTA has started.
  static __device__ __forceinline__ void announce() {
    __syncwarp();
    __cluster_barrier_arrive_relaxed();
  }
  static __device__ __forceinline__ void wait() {
    __syncwarp();
    cooperative_groups::this_cluster().barrier_wait();
  }
  // Another CTA's copy of a shared-memory object.
  template <class T>
  static __device__ __forceinline__ T* remote(T* local, int rank) {
    return cooperative_groups::this_cluster().map_shared_rank(local, rank);
  }
};
#endif

}  // namespace gvr::cuda
