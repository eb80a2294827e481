// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace cooperative_groups {

struct cluster_group {
  static int block_rank() { return emulator::cluster_rank(); }
  static int num_blocks() { return emulator::cluster_size(); }
  static void barrier_arrive() { emulator::cluster_arrive(); }
  static void barrier_wait() { emulator::cluster_wait(); }
  static void sync() {
    barrier_arrive();
    barrier_wait();
  }
  template <class T>
  static T* map_shared_rank(T* local, int rank) {
    return static_cast<T*>(emulator::map_shared(local, rank));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
