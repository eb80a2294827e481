// SPDX-License-Identifier: Apache-2.0
// TopKCache: the previous answers of every layer and request slot of a decoder, in one tensor.
//
// It owns that tensor and says what may be done to it; the selection itself is the operator
// gvr::step, which takes the plain tensor. Slots name requests: a stable number that a server gives
// a request, never its position in the batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace gvr {

class TopKCache {
 public:
  // What a step may be told besides scores, layer, slots and lengths; gvr_topk/ops.py explains
  // each.
  struct StepOptions {
    std::optional<at::Tensor> starts;
    int64_t next_n = 1;
    int64_t compress_ratio = 1;
    int64_t hint_offset = 0;
    bool sorted = false;
    std::string algorithm = "auto";
  };

  // Rows of a request that are many, as in prefill: gvr_topk/serving.py.
  struct RequestMap {
    std::optional<at::Tensor> row_to_request;
    bool windows_per_row = false;
  };
  // Where the selected keys lie in the KV cache: gvr_topk/serving.py.
  struct KvOptions {
    std::optional<at::Tensor> page_table;
    int64_t page_size = 1;
    std::optional<at::Tensor> offsets;
    RequestMap map;
  };

  // `hint_size` previous indices are kept per entry (k by default); where they are fewer than k
  // they are taken at even distances from the answer. `depth` entries per slot, one per draft token
  // of a speculative step.
  TopKCache(int64_t layers, int64_t slots, int64_t k,
            std::optional<int64_t> hint_size = std::nullopt, int64_t depth = 1,
            at::Device device = at::kCPU);

  // Select with the stored hint and store the new one, in one launch.
  at::Tensor step(const at::Tensor& scores, int64_t layer, const std::optional<at::Tensor>& slots,
                  const std::optional<at::Tensor>& lengths, const StepOptions& options) const;
  // (values, indices)
  std::tuple<at::Tensor, at::Tensor> step_values(const at::Tensor& scores, int64_t layer,
                                                 const std::optional<at::Tensor>& slots,
                                                 const std::optional<at::Tensor>& lengths,
                                                 const StepOptions& options) const;
  // (values, indices, stats)
  std::tuple<at::Tensor, at::Tensor, at::Tensor> step_stats(
      const at::Tensor& scores, int64_t layer, const std::optional<at::Tensor>& slots,
      const std::optional<at::Tensor>& lengths, const StepOptions& options) const;

  // (kv_indices, indices)
  std::tuple<at::Tensor, at::Tensor> step_kv(const at::Tensor& scores, int64_t layer,
                                             const std::optional<at::Tensor>& slots,
                                             const std::optional<at::Tensor>& lengths,
                                             const KvOptions& kv, const StepOptions& options) const;
  // (indices, entered, left, counts): the answer and its difference to the stored one. hint_size
  // must be k.
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> step_difference(
      const at::Tensor& scores, int64_t layer, const std::optional<at::Tensor>& slots,
      const std::optional<at::Tensor>& lengths, const RequestMap& map,
      const StepOptions& options) const;

  // Slots below are 1-D int32 or int64 tensors on any device. A slot out of range is an IndexError
  // when the tensor is on the CPU, and one that is to be written twice a ValueError. On CUDA, where
  // looking would stop the stream, an unknown slot is ignored, nothing of the cache is read or
  // written for it, and a repeated one ends with a hint from any of the sources.

  // indices [slots, k], -1 where there are fewer, become the hints of one layer, as a step that
  // answered them would have left them.
  void seed(int64_t layer, const at::Tensor& slots, const at::Tensor& indices);

  // The ones below act on every layer.

  // Forget the hints of these slots (of all: no argument).
  void reset(const std::optional<at::Tensor>& slots = std::nullopt);
  // dst[i] takes over the entries of src[i]. Every src is read before the first dst is written.
  void copy(const at::Tensor& src, const at::Tensor& dst);
  // The next step of slots[i] is hinted by the entry of draft accepted[i] of its last step.
  void commit(const at::Tensor& slots, const at::Tensor& accepted);
  // Keys were moved: the hint p of slots[i] becomes positions[i, p] ([p] where positions has one
  // dimension), and is dropped where that is negative or p is beyond it. int32 or int64.
  void remap(const at::Tensor& slots, const at::Tensor& positions);
  // A copy of the entries, [layers, slots, depth, kStateHeader + hint_size], and the way back into
  // this cache or another of the same layers, depth and hint_size. Entries may come from any
  // device.
  at::Tensor export_entries(const at::Tensor& slots) const;
  void import_entries(const at::Tensor& slots, const at::Tensor& entries);

  // int32 [layers, slots, depth, kStateHeader + hint_size]; see StateWord in common/params.h.
  const at::Tensor& state() const { return state_; }
  at::Device device() const { return state_.device(); }
  int64_t layers() const { return state_.size(0); }
  int64_t slots() const { return state_.size(1); }
  int64_t depth() const { return state_.size(2); }
  int64_t k() const { return k_; }
  int64_t hint_size() const;
  // Bytes of device memory that the cache holds.
  int64_t nbytes() const;

 private:
  enum class Repeats { kAllowed, kRefused };

  void check_device(const at::Tensor& scores) const;
  // One dimension of [layers * slots (+ 1 spare), depth, words]: the entry of every layer for these
  // slots, or the spare one for a slot out of range.
  at::Tensor entries_of(const at::Tensor& slots, const char* name, Repeats repeats) const;

  int64_t k_;
  at::Tensor entries_;  // state_ as [layers * slots, depth, words], and one spare entry behind it
  at::Tensor state_;
};

}  // namespace gvr
