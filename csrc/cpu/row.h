// SPDX-License-Identifier: Apache-2.0
// One row: guess, verify, collect, refine, emit.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../common/params.h"
#include "../common/rows.h"
#include "collect.h"
#include "guess.h"
#include "select.h"

namespace gvr::cpu {

// What holds for every row of a call.
struct Call {
  const TopKParams& params;
  const Tuning& tuning;
  const Runtime& runtime;
  const VectorOps& ops;
  int32_t slices;  // of one row, collected on as many threads
};

// Answers rows one after the other and keeps its memory, O(slices * k), between them.
class RowSelector {
 public:
  void answer(const Call& call, int64_t row);
  // Gives back memory that only an unusually large k needed.
  void trim();

 private:
  void answer_short(const Call& call);
  void select(const Call& call);
  uint32_t first_floor(const Call& call, Guess& guess);
  uint32_t verify(const Call& call, uint32_t floor);
  int64_t count(const Call& call, uint32_t floor);
  // Both return how many scores were admitted.
  int64_t collect(const Call& call, uint32_t floor);
  int64_t guess_and_collect(const Call& call, uint32_t& floor);
  int64_t admitted();
  void refine(const Call& call);
  void emit(const Call& call, int32_t found);
  void count_hits(const Call& call);
  void write_state(const Call& call, int32_t found);
  RowWindow slice(int32_t s) const;
  // body(s) for every slice, on the threads of the call.
  template <typename Body>
  void for_each_slice(const Call& call, const Body& body);

  int64_t row_ = 0;
  RowView view_{};
  HintRow hint_{};
  int32_t slices_ = 1;
  Limits limits_{};
  Cut cut_{};
  std::array<int32_t, kStatColumns> stats_{};
  int32_t* indices_ = nullptr;  // the row's output

  Guess guess_;
  std::vector<Stage> stages_;
  std::vector<Survivors> survivors_;
  std::vector<int64_t> counts_;
  std::vector<uint32_t> floors_;  // by slice
  std::vector<uint32_t> keys_;
  std::vector<uint64_t> scratch_;
};

}  // namespace gvr::cpu
