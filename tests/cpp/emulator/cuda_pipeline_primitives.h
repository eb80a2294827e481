// SPDX-License-Identifier: Apache-2.0
#pragma once

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  emulator::copy_later(to, from, bytes);
}
inline void __pipeline_commit() { emulator::end_copy_group(); }
inline void __pipeline_wait_prior(int groups) { emulator::wait_for_copies(groups); }
