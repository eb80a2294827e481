// SPDX-License-Identifier: Apache-2.0
// gvr_topk from C++: TopKCache and the operators behind it, with LibTorch and without Python.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <vector>

#include "../../csrc/common/params.h"
#include "../../csrc/ops/topk_cache.h"
#include "catch.h"

namespace {

using gvr::TopKCache;

constexpr int64_t kN = 1500;
constexpr int64_t kK = 32;
constexpr int64_t kCount = gvr::kStateCount, kAccepted = gvr::kStateAccepted;
constexpr int64_t kHeader = gvr::kStateHeader;

// Rows of small distinct integers whose winners are the positions first .. first + kK - 1.
at::Tensor winners_at(int64_t first, int64_t rows = 1) {
  at::Tensor scores = at::arange(kN, at::kFloat).remainder(97).neg().repeat({rows, 1});
  scores.narrow(1, first, kK) += 1000;
  return scores;
}

at::Tensor positions(int64_t first) { return at::arange(first, first + kK, at::kInt); }

at::Tensor ids(std::vector<int64_t> values) { return at::tensor(values, at::kLong); }

at::Tensor header(const TopKCache& cache, int64_t layer, int64_t slot, int64_t draft = 0) {
  return cache.state()[layer][slot][draft].narrow(0, 0, kHeader);
}

TEST_CASE("a step selects and the next one is hinted", "[cache]") {
  TopKCache cache(2, 3, kK);
  const at::Tensor slots = ids({2});
  const TopKCache::StepOptions options;
  const at::Tensor indices = cache.step(winners_at(40), 1, slots, {}, options);
  CHECK(indices.scalar_type() == at::kInt);
  CHECK(at::equal(std::get<0>(indices[0].sort()), positions(40)));
  CHECK(header(cache, 1, 2)[kCount].item<int64_t>() == kK);
  CHECK(cache.state()[0].count_nonzero().item<int64_t>() == 0);

  const auto [values, again, stats] = cache.step_stats(winners_at(40), 1, slots, {}, options);
  CHECK(at::equal(values, winners_at(40).gather(1, again.to(at::kLong))));
  CHECK(stats[0][gvr::kStatHintHits].item<int64_t>() == kK);
  CHECK(stats.size(1) == gvr::kStatColumns);
}

TEST_CASE("lengths, values and order are options of a step", "[cache]") {
  TopKCache cache(1, 1, kK);
  TopKCache::StepOptions options;
  options.sorted = true;
  options.algorithm = "radix";
  const auto [values, indices] =
      cache.step_values(winners_at(kN - kK), 0, {}, ids({kK / 2}), options);
  CHECK(indices[0][kK / 2 - 1].item<int64_t>() >= 0);
  CHECK(indices.narrow(1, kK / 2, kK / 2).eq(-1).all().item<bool>());
  CHECK(at::equal(values, std::get<0>(values.sort(-1, /*descending=*/true))));
}

TEST_CASE("reset forgets the given slots in every layer", "[cache]") {
  TopKCache cache(2, 3, kK);
  for (int64_t layer : {0, 1}) cache.step(winners_at(7, 3), layer, {}, {}, {});
  cache.reset(ids({1}));
  for (int64_t layer : {0, 1}) {
    CHECK(header(cache, layer, 0)[kCount].item<int64_t>() == kK);
    CHECK(header(cache, layer, 1).count_nonzero().item<int64_t>() == 0);
    CHECK(header(cache, layer, 2)[kCount].item<int64_t>() == kK);
  }
  cache.reset();
  CHECK(cache.state().narrow(3, 0, kHeader).count_nonzero().item<int64_t>() == 0);
}

TEST_CASE("copy reads every source before it writes", "[cache]") {
  TopKCache cache(2, 4, kK);
  for (int64_t layer : {0, 1}) {
    cache.step(at::cat({winners_at(0), winners_at(100), winners_at(200)}), layer, ids({0, 1, 2}),
               {}, {});
  }
  const at::Tensor before = cache.state().clone();
  cache.copy(ids({0, 1, 2}).to(at::kInt), ids({1, 0, 3}));
  const at::Tensor expected = before.index_select(1, ids({1, 0, 2, 0}));
  CHECK(at::equal(cache.state().narrow(1, 0, 3), expected.narrow(1, 0, 3)));
  CHECK(at::equal(cache.state().select(1, 3), before.select(1, 2)));
}

TEST_CASE("commit chooses the draft that hints the next step", "[cache]") {
  TopKCache cache(1, 2, kK, /*hint_size=*/{}, /*depth=*/3);
  TopKCache::StepOptions options;
  options.next_n = 3;
  const at::Tensor drafts = at::cat({winners_at(0), winners_at(300), winners_at(600)});
  cache.step(drafts, 0, ids({1}), {}, options);
  CHECK(header(cache, 0, 1)[kAccepted].item<int64_t>() == 2);
  cache.commit(ids({1}), ids({1}));
  CHECK(header(cache, 0, 1)[kAccepted].item<int64_t>() == 1);
  const auto [values, indices, stats] = cache.step_stats(winners_at(300), 0, ids({1}), {}, {});
  CHECK(stats[0][gvr::kStatHintHits].item<int64_t>() == kK);
}

TEST_CASE("a step places its keys and says what changed", "[cache]") {
  TopKCache cache(1, 2, kK);
  TopKCache::KvOptions kv;
  kv.page_table = at::arange(100, at::kInt).flip(0).view({1, 100});
  kv.page_size = 16;
  const auto [places, indices] = cache.step_kv(winners_at(64), 0, ids({1}), {}, kv, {});
  CHECK(at::equal(places, (99 - indices.div(16, "floor")) * 16 + indices.remainder(16)));
  const auto [again, entered, left, counts] =
      cache.step_difference(winners_at(64 + 10), 0, ids({1}), {}, {}, {});
  CHECK(at::equal(counts, at::full({1, 2}, 10, at::kInt)));
  const auto first = [](const at::Tensor& t) { return std::get<0>(t[0].narrow(0, 0, 10).sort()); };
  CHECK(at::equal(first(entered), at::arange(64 + kK, 74 + kK, at::kInt)));
  CHECK(at::equal(first(left), at::arange(64, 74, at::kInt)));
}

TEST_CASE("hints are seeded, moved and sent", "[cache]") {
  TopKCache cache(2, 3, kK), other(2, 1, kK);
  cache.seed(1, ids({2}), positions(100).view({1, kK}));
  cache.remap(ids({2}), at::arange(1000).flip(0));
  other.import_entries(ids({0}), cache.export_entries(ids({2})));
  const auto [values, indices, stats] =
      other.step_stats(winners_at(1000 - 100 - kK), 1, {}, {}, {});
  CHECK(stats[0][gvr::kStatHintHits].item<int64_t>() == kK);
  CHECK(cache.state()[0].narrow(-1, 0, kHeader).count_nonzero().item<int64_t>() == 0);
}

TEST_CASE("the cache says what it is and what it takes", "[cache]") {
  const TopKCache cache(3, 5, 100, /*hint_size=*/40, /*depth=*/2);
  CHECK(cache.layers() == 3);
  CHECK(cache.slots() == 5);
  CHECK(cache.k() == 100);
  CHECK(cache.hint_size() == 40);
  CHECK(cache.depth() == 2);
  CHECK(cache.device() == at::kCPU);
  CHECK(cache.state().is_contiguous());
  CHECK(cache.nbytes() >= 3 * 5 * 2 * (kHeader + 40) * 4);
}

TEST_CASE("wrong arguments are errors that name them", "[cache]") {
  CHECK_THROWS_AS(TopKCache(0, 1, 1), c10::ValueError);
  CHECK_THROWS_AS(TopKCache(1, 1, 0), c10::ValueError);
  CHECK_THROWS_AS(TopKCache(1, 1, 8, /*hint_size=*/9), c10::ValueError);
  TopKCache cache(1, 2, kK);
  CHECK_THROWS_AS(cache.reset(ids({2})), c10::IndexError);
  CHECK_THROWS_AS(cache.reset(at::zeros({1})), c10::TypeError);
  CHECK_THROWS_AS(cache.copy(ids({0}), ids({0, 1})), c10::ValueError);
  CHECK_THROWS_AS(cache.commit(ids({0}), ids({1})), c10::IndexError);
  CHECK_THROWS_WITH(cache.step(winners_at(0), 1, {}, {}, {}), gvr::test::contains("layer: got 1"));
  CHECK_THROWS_WITH(cache.step(winners_at(0, 3), 0, {}, {}, {}),
                    gvr::test::contains("slots: got None"));
  CHECK(cache.state().count_nonzero().item<int64_t>() == 0);
}

}  // namespace
