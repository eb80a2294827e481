// SPDX-License-Identifier: Apache-2.0
// A GPU for tests, in plain C++: blocks of threads that meet at barriers, warps that exchange
// values, clusters of blocks that see each other's shared memory. Time does not exist on it, and
// threads run in an order that a seed decides, so that what a barrier does not say cannot be relied
// upon. It finds wrong answers, missing barriers, lanes that do not meet, and reads of shared
// memory that nobody wrote; it says nothing about speed.
//
// A CUDA thread is a fiber (ucontext). The fibers of a block run on an OS thread of their own, so
// that a __shared__ variable is a thread_local one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulator {

struct Launch {
  int rows = 1;  // clusters, or blocks where ctas_per_row is 1
  int ctas_per_row = 1;
  int layer = 0;            // blockIdx.y of all blocks
  int threads = 32;         // of a block
  size_t shared_bytes = 0;  // dynamic shared memory that the launch asks for
  uint64_t seed = 1;        // order of threads, and what shared memory holds at first
};

// Runs `kernel` on every thread of the launch. Throws std::runtime_error where threads wait for
// each other in vain, or where something was written behind the shared memory asked for.
void run(const Launch& launch, const std::function<void()>& kernel);

// What the calling CUDA thread asks its block.
enum class Operation { kSync, kShuffle, kBallot, kReduce, kMatch };

// All lanes of the warp give a value and get all 32; they must ask for the same operation.
const uint64_t* exchange(Operation operation, uint64_t value);
void block_barrier();
// Sum over the block of what its threads give.
int block_sum(int value);
void cluster_arrive(bool relaxed = false);  // relaxed: publishes nothing
void cluster_wait();
unsigned cluster_index();
int cluster_rank();
int cluster_size();
// The same object in the shared memory of another block of the cluster.
void* map_shared(void* local, int rank);
// A copy that is made when the thread waits for it: for all but the last `groups` groups.
void copy_later(void* to, const void* from, size_t bytes);
void end_copy_group();
void wait_for_copies(int groups);

}  // namespace emulator
