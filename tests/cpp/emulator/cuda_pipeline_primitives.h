// SPDX-License-Identifier: Apache-2.0
#pragma once

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  emulator::copy_later(to, from, bytes);
}
inline void __pipeline_commit() {}
// The kernels wait for all copies or for none.
inline void __pipeline_wait_prior(int) { emulator::wait_for_copies(); }
