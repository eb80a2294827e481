// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "cuda.h"

thread_local emulator::Dim3 threadIdx, blockIdx, blockDim;

namespace gvr::cuda {
thread_local unsigned char g_shared[emulator::kSharedBytes] __attribute__((aligned(16)));
}

// With EMULATOR_RACES kernels.cpp is compiled under ThreadSanitizer, which takes every CUDA thread
// for a thread: it reports two that access the same memory without a barrier between them. This
// file is not; it tells what orders memory.
#if defined(EMULATOR_RACES)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* at);
void __tsan_release(void* at);
}
#endif

namespace emulator {
namespace {

using gvr::cuda::g_shared;

#if defined(EMULATOR_RACES)
constexpr unsigned kNoOrder = 1;  // a switch of fibers is no synchronisation
void* observer_new() { return __tsan_create_fiber(0); }
void observer_delete(void* fiber) { __tsan_destroy_fiber(fiber); }
void* observer_here() { return __tsan_get_current_fiber(); }
void observer_switch(void* fiber) { __tsan_switch_to_fiber(fiber, kNoOrder); }
template <class T>
void published(T* at) {
  __tsan_release(at);
}
template <class T>
void observed(T* at) {
  __tsan_acquire(at);
}
#else
void* observer_new() { return nullptr; }
void observer_delete(void*) {}
void* observer_here() { return nullptr; }
void observer_switch(void*) {}
template <class T>
void published(T*) {}
template <class T>
void observed(T*) {}
#endif

constexpr size_t kStackBytes = 128 * 1024;
constexpr auto kPatience = std::chrono::seconds(30);  // of a block that waits for other blocks

// What a fiber waits for: that a counter moves on. Null: nothing.
struct Wait {
  const std::atomic<unsigned>* counter = nullptr;
  unsigned value = 0;
  bool over() const { return counter == nullptr || *counter != value; }
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int group;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* observer = nullptr;
  std::vector<Copy> copies;
  int copy_group = 0;  // of the next copy
  Wait wait;
  const char* waits_for = "";
  unsigned cluster_phase = 0;  // at its arrival
  bool done = false, arrived = false;
};

struct Warp {
  uint64_t values[2][32] = {};  // in turns, so that a lane may still read what came before
  Operation operation = Operation::kSync;
  int arrived = 0;
  std::atomic<unsigned> turn{0};
};

// ThreadSanitizer does not see it, as it would a std::mutex, which orders what it guards.
class SpinLock {
 public:
  void lock() {
    while (taken_.exchange(true)) std::this_thread::yield();
  }
  void unlock() { taken_ = false; }

 private:
  std::atomic<bool> taken_{false};
};

// What the blocks of a cluster share.
struct Cluster {
  SpinLock mutex;
  std::vector<unsigned char*> shared;  // by rank
  std::atomic<int> blocks_ready{0};
  std::atomic<unsigned> phase{0};
  int live = 0, missing = 0;  // threads: all, and those that have not arrived
  std::atomic<bool> failed{false};
  std::string error;

  void fail(const std::string& text) {
    const std::lock_guard lock(mutex);
    if (!failed) error = text;
    failed = true;
    published(this);
  }
  void complete_if_all_here() {
    if (missing != 0) return;
    missing = live;
    ++phase;
  }
};

struct Block {
  Cluster& cluster;
  const std::function<void()>& kernel;
  unsigned cluster_index;
  int rank;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  void* observer = nullptr;  // of the scheduler
  Fiber* running = nullptr;
  int live;
  int at_barrier = 0;
  std::atomic<unsigned> barrier{0};
  int sums[2] = {0, 0};

  Block(Cluster& of, const std::function<void()>& what, unsigned index, int rank_, int threads)
      : cluster(of),
        kernel(what),
        cluster_index(index),
        rank(rank_),
        fibers(threads),
        warps((threads + 31) / 32),
        live(threads) {}

  void until(const std::atomic<unsigned>& counter, unsigned value, const char* what) {
    running->wait = {&counter, value};
    running->waits_for = what;
    observer_switch(observer);
    swapcontext(&running->context, &scheduler);
  }
  void complete_barrier() {
    at_barrier = 0;
    ++barrier;
    sums[barrier & 1u] = 0;
  }
};

thread_local Block* t_block = nullptr;

void run_fiber() {
  Block& block = *t_block;
  block.kernel();
  Fiber& self = *block.running;
  self.done = true;
  --block.live;
  if (block.live > 0 && block.at_barrier == block.live) block.complete_barrier();
  published(&block.cluster);
  {
    const std::lock_guard lock(block.cluster.mutex);
    --block.cluster.live;
    if (!self.arrived || self.cluster_phase != block.cluster.phase) --block.cluster.missing;
    block.cluster.complete_if_all_here();
  }
  observer_switch(block.observer);
}

std::string describe_waiting(const Block& block) {
  std::string text = "block " + std::to_string(block.rank) + " of row " +
                     std::to_string(block.cluster_index) + " stands still:";
  int named = 0;
  for (size_t t = 0; t < block.fibers.size() && named < 4; ++t) {
    const Fiber& fiber = block.fibers[t];
    if (fiber.done) continue;
    text += " thread " + std::to_string(t) + " waits for " + fiber.waits_for + ";";
    ++named;
  }
  return text + " " + std::to_string(block.fibers.size() - block.live) + " threads have ended";
}

void schedule(Block& block, std::mt19937_64& random) {
  std::vector<int> order(block.fibers.size());
  std::iota(order.begin(), order.end(), 0);
  auto since = std::chrono::steady_clock::now();
  while (block.live > 0 && !block.cluster.failed) {
    std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    bool for_cluster = false;
    for (const int t : order) {
      Fiber& fiber = block.fibers[t];
      if (fiber.done) continue;
      if (!fiber.wait.over()) {
        for_cluster |= fiber.wait.counter == &block.cluster.phase;
        continue;
      }
      fiber.wait = {};
      threadIdx.x = static_cast<unsigned>(t);
      block.running = &fiber;
      observer_switch(fiber.observer);
      swapcontext(&block.scheduler, &fiber.context);
      progress = true;
    }
    const auto now = std::chrono::steady_clock::now();
    if (progress) {
      since = now;
    } else if (!for_cluster || now - since > kPatience) {
      block.cluster.fail(describe_waiting(block));
    } else {
      std::this_thread::yield();
    }
  }
}

void run_block(const Launch& launch, Cluster& cluster, const std::function<void()>& kernel,
               unsigned index, int rank) {
  Block block(cluster, kernel, index, rank, launch.threads);
  t_block = &block;
  blockIdx.x = index * static_cast<unsigned>(launch.ctas_per_row) + static_cast<unsigned>(rank);
  blockIdx.y = static_cast<unsigned>(launch.layer);
  blockDim.x = static_cast<unsigned>(launch.threads);
  std::mt19937_64 random(launch.seed * 1000003u + blockIdx.x);
  for (auto& byte : g_shared) byte = static_cast<unsigned char>(random());
  std::vector<unsigned char> behind(g_shared + launch.shared_bytes, g_shared + kSharedBytes);
  for (Fiber& fiber : block.fibers) {
    getcontext(&fiber.context);
    fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &block.scheduler;
    makecontext(&fiber.context, run_fiber, 0);
    fiber.observer = observer_new();
  }
  block.observer = observer_here();
  cluster.shared[rank] = g_shared;
  ++cluster.blocks_ready;
  while (cluster.blocks_ready < launch.ctas_per_row) std::this_thread::yield();
  schedule(block, random);
  observed(&cluster);
  for (Fiber& fiber : block.fibers) observer_delete(fiber.observer);
  if (!std::equal(behind.begin(), behind.end(), g_shared + launch.shared_bytes)) {
    cluster.fail("block " + std::to_string(rank) + " wrote behind its " +
                 std::to_string(launch.shared_bytes) + " bytes of shared memory");
  }
  // Shared memory lives as long as another block may look at it.
  ++cluster.blocks_ready;
  while (cluster.blocks_ready < 2 * launch.ctas_per_row) std::this_thread::yield();
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.shared_bytes > kSharedBytes) throw std::runtime_error("too much shared memory");
  for (int row = 0; row < launch.rows; ++row) {
    Cluster cluster;
    cluster.shared.resize(launch.ctas_per_row);
    cluster.live = cluster.missing = launch.threads * launch.ctas_per_row;
    std::vector<std::thread> blocks;
    for (int rank = 0; rank < launch.ctas_per_row; ++rank) {
      blocks.emplace_back(run_block, std::cref(launch), std::ref(cluster), std::cref(kernel),
                          static_cast<unsigned>(row), rank);
    }
    for (std::thread& block : blocks) block.join();
    observed(&cluster);
    if (cluster.failed) throw std::runtime_error(cluster.error);
  }
}

const uint64_t* exchange(Operation operation, uint64_t value) {
  Block& block = *t_block;
  Warp& warp = block.warps[threadIdx.x / 32];
  const unsigned turn = warp.turn;
  // Of all that lanes do together, __syncwarp alone orders memory.
  if (operation == Operation::kSync) published(&warp);
  uint64_t* values = warp.values[turn & 1u];
  values[threadIdx.x % 32] = value;
  if (warp.arrived == 0) warp.operation = operation;
  if (warp.operation != operation) block.cluster.fail("lanes of a warp meet at different places");
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.turn;
  } else {
    block.until(warp.turn, turn, "its warp");
  }
  if (operation == Operation::kSync) observed(&warp);
  return values;
}

void block_barrier() { block_sum(0); }

int block_sum(int value) {
  Block& block = *t_block;
  const unsigned turn = block.barrier;
  int& sum = block.sums[turn & 1u];
  sum += value;
  published(&block.barrier);
  if (++block.at_barrier == block.live) {
    block.complete_barrier();
  } else {
    block.until(block.barrier, turn, "its block");
  }
  observed(&block.barrier);
  return sum;
}

void cluster_arrive(bool relaxed) {
  Block& block = *t_block;
  if (!relaxed) published(&block.cluster);
  const std::lock_guard lock(block.cluster.mutex);
  block.running->arrived = true;
  block.running->cluster_phase = block.cluster.phase;
  --block.cluster.missing;
  block.cluster.complete_if_all_here();
}

void cluster_wait() {
  Block& block = *t_block;
  Fiber& self = *block.running;
  if (!self.arrived) block.cluster.fail("a thread waits for its cluster without having arrived");
  self.arrived = false;
  if (block.cluster.phase == self.cluster_phase) {
    block.until(block.cluster.phase, self.cluster_phase, "its cluster");
  }
  observed(&block.cluster);
}

unsigned cluster_index() { return t_block->cluster_index; }
int cluster_rank() { return t_block->rank; }
int cluster_size() { return static_cast<int>(t_block->cluster.shared.size()); }

void* map_shared(void* local, int rank) {
  const auto offset = static_cast<unsigned char*>(local) - g_shared;
  return t_block->cluster.shared[rank] + offset;
}

void copy_later(void* to, const void* from, size_t bytes) {
  Fiber& self = *t_block->running;
  self.copies.push_back({to, from, bytes, self.copy_group});
}

void end_copy_group() { ++t_block->running->copy_group; }

void wait_for_copies(int groups) {
  Fiber& self = *t_block->running;
  std::erase_if(self.copies, [&](const Copy& copy) {
    if (copy.group >= self.copy_group - groups) return false;
    std::memcpy(copy.to, copy.from, copy.bytes);
    return true;
  });
}

}  // namespace emulator
