// SPDX-License-Identifier: Apache-2.0
// TopKParams: everything that one call is about, in plain pointers and numbers. It is filled by
// ops/check.cpp, the only place where tensors are looked at, and read by every kernel.
#pragma once

#include <cstdint>

#include "order.h"

namespace gvr {

// What a caller may ask for by name. docs of each value: gvr_topk/ops.py.
enum class Algorithm : int32_t { kAuto = 0, kGvr = 1, kStream = 2, kRadix = 3, kResident = 4 };

// How a row was answered (column kStatPath of the telemetry).
enum class Path : int32_t {
  kEmpty = 0,     // no valid score
  kShort = 1,     // n <= K: every valid index, nothing to select
  kGvr = 2,       // guess, verify by whole-row counts, collect, refine
  kStream = 3,    // guess, collect under a threshold that only rises, refine
  kRadix = 4,     // histogram passes over the row, no hint
  kResident = 5,  // row kept in shared memory, one histogram; more passes: divided by its keys
};

// Telemetry: one int32 row of kStatColumns per score row.
enum StatColumn : int32_t {
  kStatPath = 0,          // enum Path
  kStatPasses = 1,        // how often the row's scores were read, the collecting pass included
  kStatSurvivors = 2,     // scores staged for the exact selection
  kStatHintValid = 3,     // hinted positions inside the window
  kStatHintHits = 4,      // hinted positions that are part of the answer
  kStatOverflows = 5,     // continuations because the staging area was full
  kStatUndershoots = 6,   // continuations because the guess admitted fewer than K
  kStatRefineRounds = 7,  // histogram rounds of the exact selection
  kStatColumns = 8,
};

// Header words in front of the hinted indices of one (layer, slot, draft) entry of the state.
enum StateWord : int32_t {
  kStateCount = 0,      // number of hinted indices that follow; -1 among them is a dropped one
  kStateThreshold = 1,  // binary32 bits of the K-th score when the entry was written
  kStateHits = 2,      // how many hinted positions of that step were part of the answer, -1 unknown
  kStateAccepted = 3,  // draft 0 only: which draft's entry is the hint of the next step
  kStateArrived = 3,   // draft 1 only: rows of the group that have compared; 0 between steps
  kStateHeader = 4,
};

// Where the selected keys lie in the KV cache, see place_of in rows.h. Per request.
struct KvPlacement {
  int32_t* out = nullptr;  // [rows, k]; null: not wanted
  int64_t out_stride = 0;
  const void* offsets = nullptr;  // added to every position first; null: nothing
  bool offsets_int64 = false;
  const int32_t* page_table = nullptr;  // [requests, pages]; null: no paging
  int64_t page_table_stride = 0;
  int64_t pages = 0;
  int32_t page_bits = 0;  // log2 of the page size
};

// How the answer differs from the one stored in the state. Needs state_hints >= k.
struct Difference {
  int32_t* entered = nullptr;  // [rows, k], -1 padded; null: not wanted, or a later kernel's
  int32_t* left = nullptr;     // [rows, k], -1 padded
  int32_t* counts = nullptr;   // [rows, 2]: how many entered, how many left; null: not wanted
};

// What every row looks at comes first: a kernel's parameters travel through small caches.
struct TopKParams {
  // Scores: row r starts at scores + r * score_stride elements; the last dimension is dense.
  const void* scores = nullptr;
  int64_t score_stride = 0;
  // Outputs, dense [rows, k] with the given row strides. values and stats may be null.
  int32_t* indices = nullptr;
  int64_t indices_stride = 0;
  int32_t n = 0;
  int32_t k = 0;
  ScoreType dtype = ScoreType::kFloat32;
  // Rows come in groups of next_n, one group per request; or group g belongs to request
  // row_to_request[g], and a value outside [0, requests) makes its rows empty.
  int32_t next_n = 1;
  const void* row_to_request = nullptr;
  // Row windows, see rows.h. One entry per request, or per group. Null: the whole row.
  const void* lengths = nullptr;
  const void* starts = nullptr;
  // State of one layer: [state_slots, state_depth, kStateHeader + state_hints], in and out.
  int32_t* state = nullptr;
  void* values = nullptr;
  int32_t* stats = nullptr;  // [rows, kStatColumns]
  KvPlacement kv;

  int64_t rows = 0;
  int64_t values_stride = 0;
  int64_t groups = 0;    // rows / next_n
  int64_t requests = 0;  // read with row_to_request only
  bool row_to_request_int64 = false;
  bool lengths_int64 = false;
  bool starts_int64 = false;
  bool windows_per_group = false;
  int32_t compress_ratio = 1;

  // Hint: hint + (row / rows_per_hint) * hint_stride, hint_size indices. Null: none.
  const int32_t* hint = nullptr;
  int64_t hint_stride = 0;
  int32_t hint_size = 0;
  int32_t rows_per_hint = 1;
  int64_t hint_offset = 0;

  const void* slots = nullptr;  // request (or group) -> slot; null: the identity
  bool slots_int64 = false;
  bool slots_per_group = false;
  int64_t state_slots = 0;
  int32_t state_depth = 1;
  int32_t state_hints = 0;
  uint32_t hint_step = 0;  // make_hint_step(state_hints, k) in rows.h

  Difference difference;

  bool sorted = false;
  Algorithm algorithm = Algorithm::kAuto;
};

}  // namespace gvr
