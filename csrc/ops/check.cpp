// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "../common/plan.h"
#include "../common/rows.h"

namespace gvr {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

bool is_count_dtype(at::ScalarType dtype) { return dtype == at::kInt || dtype == at::kLong; }

void check_device(const at::Tensor& tensor, const at::Tensor& scores, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == scores.device(), name, ": got a tensor on ", tensor.device(),
                    ", need the device of scores (", scores.device(), ")");
}

// `size` entries are one per request. Without row_to_request there is one request per group of
// rows; with it, the first tensor that has an entry per request says how many requests there are.
void check_requests(CheckedCall& call, int64_t size, at::IntArrayRef shape, const char* name) {
  const TopKParams& p = call.params;
  if (!call.has_map) {
    TORCH_CHECK_VALUE(size == p.groups, name, ": got shape ", shape, ", need [", p.groups,
                      "] (rows / next_n = ", p.rows, " / ", p.next_n, ")");
    return;
  }
  if (call.requests < 0) call.requests = call.params.requests = size;
  TORCH_CHECK_VALUE(size == call.requests, name, ": got shape ", shape, ", need ", call.requests,
                    " requests, as the other arguments of the call have");
}

// 1-D int32/int64 tensor with one entry per request, or per group of rows -> dense pointer owned by
// `call`.
const void* check_counts(CheckedCall& call, const at::Tensor& scores, const at::Tensor& counts,
                         const char* name, bool& is_int64, bool per_group = false) {
  const TopKParams& p = call.params;
  TORCH_CHECK_TYPE(is_count_dtype(counts.scalar_type()), name, ": got dtype ", counts.scalar_type(),
                   ", need torch.int32 or torch.int64");
  check_device(counts, scores, name);
  TORCH_CHECK_VALUE(counts.dim() == 1 && (!per_group || counts.size(0) == p.groups), name,
                    ": got shape ", counts.sizes(), ", need [", p.groups,
                    "] (rows / next_n = ", p.rows, " / ", p.next_n, ")");
  if (!per_group) check_requests(call, counts.size(0), counts.sizes(), name);
  is_int64 = counts.scalar_type() == at::kLong;
  call.tensors.push_back({name, counts});
  call.owners.push_back(counts.contiguous());
  return call.owners.back().const_data_ptr();
}

int64_t count_rows(const at::Tensor& scores) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < scores.dim(); ++d) {
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(rows, scores.size(d), &rows), "scores: got shape ",
                      scores.sizes(), ", need fewer than 2^63 rows");
  }
  return rows;
}

// Every slot exists, negative ones apart, which are padding; and no two requests that have valid
// scores share one. The slots are host memory.
void check_slot_values(const CheckedCall& call) {
  const TopKParams& p = call.params;
  const int64_t requests = call.has_map ? call.requests : p.groups;
  for (int64_t i = 0; i < requests; ++i) {
    const int64_t slot = load_count(p.slots, p.slots_int64, i);
    TORCH_CHECK_INDEX(slot < p.state_slots, "slots: got ", slot, " at position ", i,
                      ", need slots < ", p.state_slots, " (negative for padding)");
  }
  if (requests < 2) return;
  std::unordered_map<int64_t, int64_t> owners;
  for (int64_t group = 0; group < p.groups; ++group) {
    const int64_t slot = group_slot(p, group);
    if (slot < 0 || !group_takes_slot(p, group, slot)) continue;
    const int64_t request = group_request(p, group);
    const int64_t owner = owners.emplace(slot, request).first->second;
    TORCH_CHECK_VALUE(owner == request, "slots: got slot ", slot, " for requests ", owner, " and ",
                      request, ", need a slot of its own for each");
  }
}

// Whether the address ranges that two tensors span intersect.
bool share_memory(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || a.device() != b.device()) return false;
  const auto end = [](const at::Tensor& t) {
    int64_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return static_cast<const char*>(t.const_data_ptr()) + (last + 1) * t.element_size();
  };
  return static_cast<const char*>(a.const_data_ptr()) < end(b) &&
         static_cast<const char*>(b.const_data_ptr()) < end(a);
}

// Leading dimensions -> one row dimension. A view where strides allow it; a copy only for batches
// that no single row stride describes and for a last dimension that is not dense.
at::Tensor as_rows(const at::Tensor& tensor, int64_t rows) {
  const int64_t last = tensor.size(-1);
  at::Tensor flat = tensor.dim() == 2 ? tensor : tensor.reshape({rows, last});
  return last <= 1 || flat.stride(1) == 1 ? flat : flat.contiguous();
}

}  // namespace

ScoreType check_score_type(at::ScalarType dtype, const char* name) {
  switch (dtype) {
    case at::kFloat: return ScoreType::kFloat32;
    case at::kBFloat16: return ScoreType::kBFloat16;
    case at::kHalf: return ScoreType::kFloat16;
    default: break;
  }
  TORCH_CHECK_TYPE(false, name, ": got dtype ", dtype,
                   ", need torch.float32, torch.bfloat16 or torch.float16");
}

CheckedCall check_arguments(const TopKArguments& a, at::DeviceType backend) {
  CheckedCall call;
  TopKParams& p = call.params;
  TORCH_CHECK_VALUE(a.scores.device().type() == backend, "scores: got a tensor on ",
                    a.scores.device(), ", need one on ", backend,
                    " like the other tensors of the call");
  TORCH_CHECK_VALUE(a.scores.dim() >= 1, "scores: got a 0-dimensional tensor, need [..., n]");
  p.dtype = check_score_type(a.scores.scalar_type(), "scores");
  const int64_t n = a.scores.size(-1);
  TORCH_CHECK_VALUE(n <= kInt32Max, "scores: got rows of ", n, " scores, need at most 2^31 - 1");
  TORCH_CHECK_VALUE(a.k >= 1 && a.k <= kInt32Max, "k: got ", a.k, ", need 1 <= k < 2^31");
  TORCH_CHECK_VALUE(a.next_n >= 1 && a.next_n <= kInt32Max, "next_n: got ", a.next_n,
                    ", need at least 1");
  TORCH_CHECK_VALUE(a.compress_ratio >= 1 && a.compress_ratio <= kInt32Max, "compress_ratio: got ",
                    a.compress_ratio, ", need at least 1");
  TORCH_CHECK_VALUE(a.hint_offset >= -kInt32Max && a.hint_offset <= kInt32Max, "hint_offset: got ",
                    a.hint_offset, ", need a 32-bit offset");
  p.rows = count_rows(a.scores);
  TORCH_CHECK_VALUE(p.rows % a.next_n == 0, "next_n: got ", a.next_n,
                    ", need a divisor of the number of rows (", p.rows, ")");
  int64_t elements = 0;
  TORCH_CHECK_VALUE(!__builtin_mul_overflow(p.rows, a.k, &elements) &&
                        !__builtin_mul_overflow(elements, int64_t{8}, &elements),
                    "k: got ", a.k, ", need rows * k to fit in memory (", p.rows, " rows)");
  p.n = static_cast<int32_t>(n);
  p.k = static_cast<int32_t>(a.k);
  p.next_n = static_cast<int32_t>(a.next_n);
  p.groups = p.rows / p.next_n;
  p.compress_ratio = static_cast<int32_t>(a.compress_ratio);
  p.hint_offset = a.hint_offset;
  p.sorted = a.sorted;
  try {
    p.algorithm = algorithm_from_name(std::string(a.algorithm).c_str());
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
  if (a.row_to_request != nullptr && *a.row_to_request) {
    p.row_to_request = check_counts(call, a.scores, **a.row_to_request, "row_to_request",
                                    p.row_to_request_int64, /*per_group=*/true);
    call.has_map = true;
  }
  p.windows_per_group = a.windows_per_row;
  if (a.lengths) {
    p.lengths =
        check_counts(call, a.scores, *a.lengths, "lengths", p.lengths_int64, a.windows_per_row);
  }
  if (a.starts) {
    p.starts = check_counts(call, a.scores, *a.starts, "starts", p.starts_int64, a.windows_per_row);
  }

  call.tensors.push_back({"scores", a.scores});
  call.owners.push_back(as_rows(a.scores, p.rows));
  p.scores = call.owners.back().const_data_ptr();
  p.score_stride = p.rows > 1 ? call.owners.back().stride(0) : 0;
  call.output_shape.assign(a.scores.sizes().begin(), a.scores.sizes().end());
  call.output_shape.back() = a.k;
  return call;
}

void check_hint(CheckedCall& call, const at::Tensor& scores, const OptionalTensor& hint) {
  if (!hint) return;
  TopKParams& p = call.params;
  TORCH_CHECK_TYPE(hint->scalar_type() == at::kInt, "hint: got dtype ", hint->scalar_type(),
                   ", need torch.int32");
  check_device(*hint, scores, "hint");
  TORCH_CHECK_VALUE(hint->dim() == scores.dim() || hint->dim() == 2, "hint: got ", hint->dim(),
                    " dimensions, need ", scores.dim(), " (as scores) or 2");
  const int64_t hint_rows = count_rows(*hint);
  TORCH_CHECK_VALUE(hint_rows == p.rows || hint_rows == p.groups, "hint: got ", hint_rows,
                    " rows (shape ", hint->sizes(), "), need ", p.rows,
                    p.groups == p.rows
                        ? std::string()
                        : " (one per row) or " + std::to_string(p.groups) + " (one per request)");
  TORCH_CHECK_VALUE(hint->size(-1) <= kInt32Max, "hint: got rows of ", hint->size(-1),
                    " indices, need at most 2^31 - 1");
  if (hint->size(-1) == 0 || p.rows == 0) return;
  call.tensors.push_back({"hint", *hint});
  call.owners.push_back(as_rows(*hint, hint_rows));
  const at::Tensor& rows = call.owners.back();
  p.hint = rows.const_data_ptr<int32_t>();
  p.hint_stride = hint_rows > 1 ? rows.stride(0) : 0;
  p.hint_size = static_cast<int32_t>(hint->size(-1));
  p.rows_per_hint = hint_rows == p.rows ? 1 : p.next_n;
}

void check_state(CheckedCall& call, const at::Tensor& scores, const at::Tensor& state,
                 int64_t layer, const OptionalTensor& slots) {
  TopKParams& p = call.params;
  TORCH_CHECK_TYPE(state.scalar_type() == at::kInt, "state: got dtype ", state.scalar_type(),
                   ", need torch.int32");
  check_device(state, scores, "state");
  TORCH_CHECK_VALUE(state.dim() == 4 && state.is_contiguous() &&
                        state.size(3) > int64_t{kStateHeader} && state.size(3) <= kInt32Max,
                    "state: got shape ", state.sizes(), " and strides ", state.strides(),
                    ", need a contiguous [layers, slots, depth, ", int{kStateHeader},
                    " + hint_size] tensor, as TopKCache makes it");
  TORCH_CHECK_INDEX(layer >= 0 && layer < state.size(0), "layer: got ", layer,
                    ", need 0 <= layer < ", state.size(0));
  TORCH_CHECK_VALUE(p.next_n <= state.size(2), "next_n: got ", p.next_n,
                    ", need at most the depth of the state (", state.size(2), ")");
  p.state_slots = state.size(1);
  p.state_depth = static_cast<int32_t>(state.size(2));
  p.state_hints = static_cast<int32_t>(state.size(3)) - int32_t{kStateHeader};
  TORCH_CHECK_VALUE(p.k >= p.state_hints, "k: got ", p.k,
                    ", need at least the hint_size of the state (", p.state_hints, ")");
  p.hint_step = make_hint_step(p.state_hints, p.k);
  p.state = state.mutable_data_ptr<int32_t>() + layer * state.stride(0);
  if (slots) {
    p.slots = check_counts(call, scores, *slots, "slots", p.slots_int64);
    if (scores.is_cpu() && p.rows > 0) check_slot_values(call);
    return;
  }
  if (call.has_map && call.requests < 0) call.requests = p.requests = p.state_slots;
  const int64_t requests = call.has_map ? call.requests : p.groups;
  TORCH_CHECK_VALUE(requests <= p.state_slots, "slots: got None for ", requests,
                    " requests, need a tensor of slots, or at most ", p.state_slots,
                    " requests (the slots of the state)");
}

void check_placement(CheckedCall& call, const at::Tensor& scores,
                     const PlacementArguments& placement) {
  KvPlacement& kv = call.params.kv;
  const int64_t size = placement.page_size;
  TORCH_CHECK_VALUE(size >= 1 && size <= kInt32Max && (size & (size - 1)) == 0, "page_size: got ",
                    size, ", need a power of two below 2^31");
  if (placement.page_table) {
    const at::Tensor& table = *placement.page_table;
    TORCH_CHECK_TYPE(table.scalar_type() == at::kInt, "page_table: got dtype ", table.scalar_type(),
                     ", need torch.int32");
    check_device(table, scores, "page_table");
    TORCH_CHECK_VALUE(table.dim() == 2 && table.size(1) >= 1, "page_table: got shape ",
                      table.sizes(), ", need [requests, pages] with at least one page");
    check_requests(call, table.size(0), table.sizes(), "page_table");
    call.tensors.push_back({"page_table", table});
    call.owners.push_back(as_rows(table, table.size(0)));
    const at::Tensor& rows = call.owners.back();
    kv.page_table = rows.const_data_ptr<int32_t>();
    kv.page_table_stride = rows.size(0) > 1 ? rows.stride(0) : 0;
    kv.pages = rows.size(1);
    while ((int64_t{1} << kv.page_bits) < size) ++kv.page_bits;
  } else {
    TORCH_CHECK_VALUE(size == 1, "page_size: got ", size, " without a page_table, need both");
  }
  if (placement.offsets) {
    kv.offsets = check_counts(call, scores, *placement.offsets, "offsets", kv.offsets_int64);
  }
}

void check_difference(const CheckedCall& call) {
  const TopKParams& p = call.params;
  TORCH_CHECK_VALUE(p.state_hints == p.k, "state: got a hint_size of ", p.state_hints,
                    ", need one of k (", p.k, "): a difference needs the whole previous answer");
}

void check_map_is_used(const CheckedCall& call) {
  TORCH_CHECK_VALUE(!call.has_map || call.requests >= 0,
                    "row_to_request: got a map without anything per request, need page_table, "
                    "offsets, slots, lengths or starts with an entry per request");
}

void check_output(CheckedCall& call, const at::Tensor& scores, const at::Tensor& out,
                  const char* name, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(out.scalar_type() == dtype, name, ": got dtype ", out.scalar_type(), ", need ",
                   dtype);
  check_device(out, scores, name);
  TORCH_CHECK_VALUE(out.sizes() == call.output_shape, name, ": got shape ", out.sizes(), ", need ",
                    at::IntArrayRef(call.output_shape));
  const bool one_row_stride = out.dim() <= 2 || out.is_contiguous();
  TORCH_CHECK_VALUE((out.size(-1) <= 1 || out.stride(-1) == 1) && one_row_stride, name,
                    ": got strides ", out.strides(),
                    ", need a dense last dimension (and a contiguous tensor beyond 2-D)");
  // With these strides only rows closer than their width, as expand makes them, share memory.
  const bool rows_overlap = out.dim() == 2 && out.size(0) > 1 && out.stride(0) < out.size(1);
  TORCH_CHECK_VALUE(!rows_overlap, name, ": got rows that overlap (strides ", out.strides(),
                    "), need every element to have its own memory");
  for (const NamedTensor& other : call.tensors) {
    TORCH_CHECK_VALUE(!share_memory(out, other.tensor), name,
                      ": got a tensor whose memory overlaps that of ", other.name,
                      ", need one with memory of its own");
  }
  call.tensors.push_back({name, out});
}

void check_no_gradient(const at::Tensor& scores, const char* op, const char* remedy,
                       const char* name) {
  TORCH_CHECK_VALUE(!(scores.requires_grad() && c10::GradMode::is_enabled()), name, ": ", op,
                    " got a tensor that requires grad, and its values carry none; need ", remedy);
}

void attach_outputs(CheckedCall& call, const Outputs& outputs) {
  TopKParams& p = call.params;
  const auto row_stride = [&p](const at::Tensor& t) {
    return p.rows > 1 ? (t.dim() == 2 ? t.stride(0) : int64_t{p.k}) : int64_t{0};
  };
  const auto data = [](const at::Tensor& t) {
    return t.defined() ? t.mutable_data_ptr<int32_t>() : nullptr;
  };
  p.indices = data(outputs.indices);
  p.indices_stride = row_stride(outputs.indices);
  if (outputs.values.defined()) {
    p.values = outputs.values.mutable_data_ptr();
    p.values_stride = row_stride(outputs.values);
  }
  p.stats = data(outputs.stats);
  p.kv.out = data(outputs.kv_indices);
  if (outputs.kv_indices.defined()) p.kv.out_stride = row_stride(outputs.kv_indices);
  p.difference = {data(outputs.entered), data(outputs.left), data(outputs.counts)};
}

}  // namespace gvr
