// SPDX-License-Identifier: Apache-2.0
// Tensors -> TopKParams. Every caller, from Python or C++, passes here, and every error message of
// the operators lives in check.cpp or check_winners.cpp: the argument, what was given, what is
// needed.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "../common/params.h"

namespace gvr {

using OptionalTensor = std::optional<at::Tensor>;

// The arguments of every selection as the schema has them.
struct TopKArguments {
  const at::Tensor& scores;
  int64_t k;
  const OptionalTensor& lengths;
  const OptionalTensor& starts;
  int64_t next_n;
  int64_t compress_ratio;
  int64_t hint_offset;
  bool sorted;
  std::string_view algorithm;
  // Null where the operator has no such argument.
  const OptionalTensor* row_to_request = nullptr;
  bool windows_per_row = false;
};

// Where the selected keys lie, as the schema has it.
struct PlacementArguments {
  const OptionalTensor& page_table;
  int64_t page_size;
  const OptionalTensor& offsets;
};

struct NamedTensor {
  const char* name;
  at::Tensor tensor;
};

// A checked call: parameters whose output pointers are still null, and the tensors that own what
// the input pointers refer to.
struct CheckedCall {
  TopKParams params;
  bool has_map = false;               // row_to_request was given
  int64_t requests = -1;              // with a map: unknown until something is per request
  std::vector<NamedTensor> tensors;   // arguments that outputs must not overlap
  std::vector<int64_t> output_shape;  // scores' leading dimensions, then k
  std::vector<at::Tensor> owners;
};

// `name`: of the argument that is or has the dtype.
ScoreType check_score_type(at::ScalarType dtype, const char* name);

CheckedCall check_arguments(const TopKArguments& arguments, at::DeviceType backend);

void check_hint(CheckedCall& call, const at::Tensor& scores, const OptionalTensor& hint);

// A slot beyond the state, or one that two requests of the call name, is an error where the host
// can see it: on the CPU.
void check_state(CheckedCall& call, const at::Tensor& scores, const at::Tensor& state,
                 int64_t layer, const OptionalTensor& slots);

void check_placement(CheckedCall& call, const at::Tensor& scores,
                     const PlacementArguments& placement);

// The state holds whole answers, as a difference needs them.
void check_difference(const CheckedCall& call);

// After the checks above: row_to_request leads to something.
void check_map_is_used(const CheckedCall& call);

// `out` as given by the caller: of the right kind, since it is never resized or reallocated, and
// with memory of its own.
void check_output(CheckedCall& call, const at::Tensor& scores, const at::Tensor& out,
                  const char* name, at::ScalarType dtype);

// Errors where a gradient would be lost without a word.
void check_no_gradient(const at::Tensor& scores, const char* op, const char* remedy,
                       const char* name = "scores");

// What a call writes; what is undefined was not asked for.
struct Outputs {
  at::Tensor indices, values, stats;
  at::Tensor kv_indices;
  at::Tensor entered, left, counts;
};

void attach_outputs(CheckedCall& call, const Outputs& outputs);

}  // namespace gvr
