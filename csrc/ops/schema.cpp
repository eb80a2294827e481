// SPDX-License-Identifier: Apache-2.0
// Every operator of gvr_topk. Meaning of the arguments: gvr_topk/ops.py.
#include <torch/library.h>

#include <string>

namespace {

// Arguments that every selection shares, after `scores`, `k` and what is special to the operator.
constexpr const char* kWindow =
    "Tensor? lengths=None, Tensor? starts=None, int next_n=1, int compress_ratio=1, "
    "int hint_offset=0, bool sorted=False, str algorithm=\"auto\"";

// What a server adds, see gvr_topk/serving.py. The map makes the arguments above, slots, offsets
// and the page table one per request where a request has many rows.
constexpr const char* kRequests = "Tensor? row_to_request=None, bool windows_per_row=False, ";
constexpr const char* kPlacement =
    "Tensor? page_table=None, int page_size=1, Tensor? offsets=None, ";

std::string stateless(const std::string& name, const std::string& outputs,
                      const std::string& result) {
  return name + "(Tensor scores, int k, *, Tensor? hint=None, " + kWindow + outputs + ") -> " +
         result;
}

std::string stateful(const std::string& name, const std::string& result,
                     const std::string& serving = "") {
  return name + "(Tensor scores, Tensor(a!) state, int layer, int k, *, Tensor? slots=None, " +
         serving + kWindow + ") -> " + result;
}

std::string placed(const std::string& name, const std::string& outputs, const std::string& result) {
  return name + "(Tensor scores, int k, *, Tensor? hint=None, " + kPlacement + kRequests + kWindow +
         outputs + ") -> " + result;
}

// Where a shard stands in the whole row, see gvr_topk/distributed/winners.py.
constexpr const char* kShard =
    "int offset=0, Tensor? device_offset=None, int page=1, int rank=0, int world=1) -> Tensor";

}  // namespace

TORCH_LIBRARY(gvr, m) {
  const auto define = [&m](const std::string& schema) {
    m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  };
  define(stateless("topk", "", "(Tensor values, Tensor indices)"));
  // A custom operator that returns what it mutates cannot be functionalized, so .out returns
  // nothing.
  define(stateless("topk.out", ", Tensor(a!) values, Tensor(b!) indices", "()"));
  define(stateless("topk_indices", "", "Tensor"));
  define(stateless("topk_indices.out", ", Tensor(a!) indices", "()"));
  define(stateless("topk_stats", "", "(Tensor values, Tensor indices, Tensor stats)"));
  define(stateful("step", "Tensor"));
  define(stateful("step_values", "(Tensor values, Tensor indices)"));
  define(stateful("step_stats", "(Tensor values, Tensor indices, Tensor stats)"));
  define(placed("topk_kv", "", "(Tensor kv_indices, Tensor indices)"));
  define(placed("topk_kv.out", ", Tensor(a!) kv_indices, Tensor(b!) indices", "()"));
  define(stateful("step_kv", "(Tensor kv_indices, Tensor indices)",
                  std::string(kPlacement) + kRequests));
  define(stateful("step_difference", "(Tensor indices, Tensor entered, Tensor left, Tensor counts)",
                  kRequests));

  // Lists of winners that ranks exchange.
  const std::string pair = " -> (Tensor values, Tensor indices)";
  define("pack_winners(Tensor values, Tensor indices, *, " + std::string(kShard));
  define("place_winners(Tensor values, Tensor indices, Tensor counts, int list, *, " +
         std::string(kShard));
  define("merge_winners(Tensor gathered, ScalarType dtype)" + pair);
  define("order_winners(Tensor packed, Tensor counts, ScalarType dtype)" + pair);
  define("own_winners(Tensor gathered, Tensor values, Tensor indices, int rank)" + pair);
  define("keep_winners(Tensor values, Tensor indices, Tensor counts)" + pair);
  define("winner_keys(Tensor values, Tensor indices, *, " + std::string(kShard));
  define(
      "count_digits(Tensor keys, Tensor? bound, Tensor? before, int last_shift, int shift, "
      "int bits) -> (Tensor bound, Tensor counts)");
}
