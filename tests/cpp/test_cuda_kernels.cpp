// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels against a sort, without a GPU: emulator/ runs their source on the CPU, threads
// in random order. Every path has to be entered. Comparisons are exact.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../../csrc/common/order.h"
#include "../../csrc/common/plan.h"
#include "../../csrc/common/rows.h"
#include "catch.h"
#include "emulator/kernels.h"
#include "emulator/machine.h"
#include "raw_scores.h"

namespace {

using namespace gvr;
using gvr::test::narrow;
using gvr::test::widen;
using Random = std::mt19937;

constexpr DeviceInfo kDevice{132, 90, 232448, 16};
constexpr Algorithm kFamilies[] = {Algorithm::kResident, Algorithm::kStream, Algorithm::kGvr,
                                   Algorithm::kRadix};
constexpr float kInf = std::numeric_limits<float>::infinity();
// ThreadSanitizer makes a thread of every CUDA thread, which takes a while, and 8,128 at most.
#if defined(EMULATOR_RACES)
constexpr int kTurns = 1, kMostRows = 1, kMostClusterBits = 1, kLongest = 4'000;
#else
constexpr int kTurns = 2, kMostRows = 2, kMostClusterBits = 2, kLongest = 12'000;
#endif
constexpr int32_t kSentinel = -7;
constexpr int32_t kGuard = 16;

int draw(Random& random, int least, int most) {
  return std::uniform_int_distribution<int>(least, most)(random);
}

// Scores that have defeated selections, by name.
using Rows = std::map<std::string, std::function<float(float normal, int i, int n, Random&)>>;
const Rows& row_kinds() {
  static const Rows kinds = {
      {"normal", [](float x, int, int, Random&) { return x; }},
      {"few values", [](float x, int, int, Random&) { return std::round(2 * x); }},
      {"all equal", [](float, int, int, Random&) { return -1.5f; }},
      {"ascending", [](float, int i, int, Random&) { return static_cast<float>(i); }},
      {"descending", [](float, int i, int, Random&) { return static_cast<float>(-i); }},
      {"rectified", [](float x, int, int, Random&) { return std::max(x, 0.0f); }},
      {"zeros of both signs", [](float x, int, int, Random&) { return x < 0 ? -0.0f : 0.0f; }},
      {"some NaN",
       [](float x, int, int, Random& r) { return r() % 10 == 0 ? (r() % 2 ? NAN : -NAN) : x; }},
      {"NaN alone", [](float, int, int, Random&) { return NAN; }},
      {"infinities", [](float x, int, int,
                        Random& r) { return r() % 4 == 0 ? kInf : (r() % 4 == 0 ? -kInf : x); }},
      {"-inf alone", [](float, int, int, Random&) { return -kInf; }},
      {"log-normal", [](float x, int, int, Random&) { return std::exp(20 * x); }},
      {"far above",
       [](float x, int i, int, Random&) { return i % 100 == 0 ? 1e30f * x : 1e-30f * x; }},
      {"few far above", [](float x, int i, int, Random&) { return i < 5 ? 1e20f : x; }},
      {"narrow", [](float x, int, int, Random&) { return 1e6f + x; }},
      {"subnormal", [](float x, int, int, Random&) { return 1e-41f * x; }},
      {"wider than floats divide", [](float x, int, int, Random&) { return 3e38f * x; }},
      {"one huge, then -inf",
       [](float x, int i, int n, Random&) { return i == 0 ? 3e38f : (i > n - 200 ? -kInf : x); }},
      {"winners at the end",
       [](float x, int i, int n, Random&) { return i > n - 200 ? 5 + x : x; }},
      {"any bits",
       [](float, int, int, Random& r) { return bits_float(static_cast<uint32_t>(r())); }},
  };
  return kinds;
}

// One call with everything that it reads and writes.
struct Call {
  ScoreType dtype = ScoreType::kFloat32;
  int rows = 1, n = 0, k = 0, first = 0;
  std::vector<std::vector<uint32_t>> raw;
  std::vector<unsigned char> scores;
  std::vector<int32_t> lengths, starts, hint, indices, stats, state, state_before, kv;
  std::vector<unsigned char> values;
  bool wants_values = false, wants_stats = false, wants_state = false, wants_places = false;
  bool has_windows = false, has_hint = false, narrow_state = false;
  Tuning tuning;

  // A state may hold fewer hints than there are winners.
  int32_t stored() const { return narrow_state ? (k + 2) / 3 : k; }
  size_t entry_size() const { return kStateHeader + static_cast<size_t>(stored()); }
  size_t bytes() const { return dtype == ScoreType::kFloat32 ? 4 : 2; }

  void fill(const std::string& kind, Random& random) {
    std::normal_distribution<float> normal;
    const auto& make = row_kinds().at(kind);
    scores.assign((first + static_cast<size_t>(rows) * n) * bytes(), 0xFF);
    raw.assign(rows, {});
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < n; ++i) {
        raw[r].push_back(narrow(dtype, make(normal(random), i, n, random)));
        std::memcpy(&scores[(first + static_cast<size_t>(r) * n + i) * bytes()], &raw[r][i],
                    bytes());
      }
      lengths.push_back(draw(random, -1, n + 1));
      starts.push_back(draw(random, 0, n / 2));
      for (int j = 0; j < k; ++j) hint.push_back(draw(random, -2, n + 10));
    }
  }

  TopKParams params() {
    TopKParams p;
    p.scores = scores.data() + first * bytes();
    p.score_stride = n;
    p.n = n;
    p.k = k;
    p.dtype = dtype;
    p.rows = p.groups = p.requests = rows;
    indices.assign(static_cast<size_t>(rows) * k + kGuard, kSentinel);
    p.indices = indices.data();
    p.indices_stride = k;
    if (wants_values) {
      values.assign((static_cast<size_t>(rows) * k + kGuard) * bytes(), 0xAB);
      p.values = values.data();
      p.values_stride = k;
    }
    stats.assign(static_cast<size_t>(rows) * kStatColumns, kSentinel);
    if (wants_stats) p.stats = stats.data();
    if (wants_places) {
      kv.assign(static_cast<size_t>(rows) * k + kGuard, kSentinel);
      p.kv.out = kv.data();
      p.kv.out_stride = k;
    }
    if (has_windows) {
      p.lengths = lengths.data();
      p.starts = starts.data();
    }
    if (has_hint && !wants_state) {
      p.hint = hint.data();
      p.hint_size = k;
      p.hint_stride = k;
    }
    if (wants_state) {
      const int32_t hints = stored();
      state.assign(rows * entry_size() + kGuard, kSentinel);
      std::fill_n(state.begin(), rows * entry_size(), 0);
      for (int r = 0; r < rows && has_hint; ++r) {
        state[r * entry_size() + kStateCount] = hints;
        std::copy_n(&hint[static_cast<size_t>(r) * k], hints,
                    &state[r * entry_size() + kStateHeader]);
      }
      p.state = state.data();
      p.state_slots = rows;
      p.state_hints = hints;
      p.hint_step = make_hint_step(hints, k);
      state_before = state;
    }
    return p;
  }

  // Winners of a row, best first, from a sort.
  std::vector<int32_t> expected(const TopKParams& p, int row) const {
    const RowWindow window = row_window(p, row);
    std::vector<uint64_t> ranks;
    for (int i = window.begin; i < window.end; ++i) {
      ranks.push_back(rank_key(ordered_key(widen(dtype, raw[row][i])), i));
    }
    const size_t count = std::min(ranks.size(), static_cast<size_t>(k));
    std::partial_sort(ranks.begin(), ranks.begin() + count, ranks.end(), std::greater<>());
    std::vector<int32_t> winners;
    for (size_t i = 0; i < count; ++i) winners.push_back(rank_key_index(ranks[i]));
    return winners;
  }

  void check_row(const TopKParams& p, int row) const {
    std::vector<int32_t> winners = expected(p, row);
    const size_t at = static_cast<size_t>(row) * k, count = winners.size();
    std::vector<int32_t> given(&indices[at], &indices[at] + k);
    if (wants_state) {
      const int32_t* entry = &state[row * entry_size()];
      const int32_t* before = &state_before[row * entry_size()];
      if (count == 0) {  // a row without scores leaves its entry alone
        REQUIRE(std::equal(entry, entry + entry_size(), before));
      } else {
        REQUIRE(entry[kStateCount] == hint_count(p, static_cast<int32_t>(count)));
      }
      for (uint32_t i = 0; i < count; ++i) {
        const int32_t hint_place = hint_at(p, i);
        if (hint_place >= 0) REQUIRE(entry[kStateHeader + hint_place] == given[i]);
      }
    }
    for (size_t i = 0; i < static_cast<size_t>(k) && wants_values; ++i) {
      uint32_t value = 0;
      std::memcpy(&value, &values[(at + i) * bytes()], bytes());
      REQUIRE(value == (given[i] < 0 ? narrow(dtype, -kInf) : raw[row][given[i]]));
    }
    if (wants_places) REQUIRE(std::equal(given.begin(), given.end(), &kv[at]));
    std::sort(given.begin(), given.begin() + count);
    std::sort(winners.begin(), winners.end());
    winners.resize(k, -1);
    REQUIRE(given == winners);
  }
};

Tuning draw_tuning(Random& random) {
  Tuning tuning;
  tuning.ctas_per_row = 1 << draw(random, 0, kMostClusterBits);
  tuning.threads = kTinyBlock << draw(random, 0, 2);
  if (draw(random, 0, 2) == 0) tuning.staging = draw(random, 64, 3000);
  if (draw(random, 0, 3) == 0) tuning.rank_capacity = draw(random, 1, 64);
  if (draw(random, 0, 3) == 0) tuning.bins = draw(random, 1, 16);
  if (draw(random, 0, 3) == 0) tuning.chunk = 256 << draw(random, 0, 3);
  if (draw(random, 0, 9) == 0) tuning.max_verify = 1;
  if (draw(random, 0, 9) == 0) tuning.force_undershoot = 1;
  return tuning;
}

Call draw_call(const std::string& kind, Random& random) {
  Call call;
  call.dtype = static_cast<ScoreType>(draw(random, 0, 2));
  call.rows = draw(random, 1, kMostRows);
  call.n = draw(random, 1, draw(random, 0, 2) == 0 ? kLongest : 3'000);
  call.k = draw(random, 1, draw(random, 0, 2) == 0 ? 2'048 : 300);
  call.first = draw(random, 0, 7);
  call.wants_values = draw(random, 0, 1);
  call.wants_stats = draw(random, 0, 1);
  call.wants_state = !call.wants_stats && draw(random, 0, 2) == 0;
  call.wants_places = draw(random, 0, 5) == 0;
  call.has_windows = draw(random, 0, 3) == 0;
  call.has_hint = draw(random, 0, 1);
  call.narrow_state = draw(random, 0, 1);
  call.tuning = draw_tuning(random);
  call.fill(kind, random);
  return call;
}

std::string describe(const Call& call, const Plan& plan, const std::string& kind) {
  return std::string(algorithm_name(plan.family)) + ", " + kind + ", dtype " +
         std::to_string(static_cast<int>(call.dtype)) + ", " + std::to_string(call.rows) + " x " +
         std::to_string(call.n) + ", k " + std::to_string(call.k) + ", " +
         std::to_string(plan.ctas_per_row) + " CTAs of " + std::to_string(plan.threads);
}

void run_call(Call& call, const Plan& plan, uint64_t seed) {
  TopKParams p = call.params();
  emulator::run_kernel(p, plan, seed);
  for (int row = 0; row < call.rows; ++row) call.check_row(p, row);
  const auto guarded = [](const auto& data, size_t used, auto sentinel) {
    return std::all_of(data.begin() + std::min(used, data.size()), data.end(),
                       [&](auto x) { return x == sentinel; });
  };
  const size_t used = static_cast<size_t>(call.rows) * call.k;
  REQUIRE(guarded(call.indices, used, kSentinel));
  REQUIRE(guarded(call.values, used * call.bytes(), 0xAB));
  REQUIRE(guarded(call.kv, used, kSentinel));
  REQUIRE(guarded(call.state, call.rows * call.entry_size(), kSentinel));
}

}  // namespace

TEST_CASE("Every family answers every kind of row as a sort does") {
  Random random(20260601);
  std::set<int32_t> paths;
  for (const Algorithm family : kFamilies) {
    for (const auto& [kind, make] : row_kinds()) {
      for (int turn = 0; turn < kTurns; ++turn) {
        Call call = draw_call(kind, random);
        Plan plan = make_plan({call.rows, call.n, call.k, call.dtype, call.has_hint, family},
                              kDevice, call.tuning);
        plan.own_lists = plan.own_lists && call.wants_values && draw(random, 0, 1) == 0;
        INFO(describe(call, plan, kind));
        run_call(call, plan, random());
        for (int r = 0; r < call.rows && call.wants_stats; ++r) {
          paths.insert(call.stats[r * kStatColumns + kStatPath]);
        }
      }
    }
  }
  REQUIRE(paths.size() == 6);  // every value of Path
}

TEST_CASE("The choice of auto answers rows of model size") {
  Random random(7);
  for (const auto& [rows, n, k] : {std::tuple{1, 16'384, 2048}, {3, 9'000, 512}}) {
    Call call;
    call.rows = rows;
    call.n = n;
    call.k = k;
    call.wants_stats = true;
    call.fill("normal", random);
    const Plan plan =
        make_plan({rows, n, k, call.dtype, false, Algorithm::kAuto}, kDevice, Tuning{});
    INFO(describe(call, plan, "normal"));
    run_call(call, plan, random());
    REQUIRE(call.stats[kStatPath] == static_cast<int32_t>(Path::kResident));
    REQUIRE(call.stats[kStatPasses] == 1);
  }
}

TEST_CASE("Where few bins divide the scores the crossing bin is divided again") {
  Random random(17);
  for (const Algorithm family : {Algorithm::kResident, Algorithm::kStream, Algorithm::kGvr}) {
    for (const int ctas : {1, 2}) {
      Call call;
      call.n = 1'500;
      call.k = 64;
      call.wants_stats = true;
      call.fill("normal", random);
      call.tuning.ctas_per_row = ctas;
      call.tuning.bins = 1;
      call.tuning.rank_capacity = 32;
      const Plan plan =
          make_plan({1, call.n, call.k, call.dtype, false, family}, kDevice, call.tuning);
      INFO(describe(call, plan, "normal"));
      run_call(call, plan, random());
      REQUIRE(call.stats[kStatRefineRounds] == 2);
    }
  }
}

TEST_CASE("The selection's own launch tells what entered and left each answer") {
  Random random(19);
  constexpr int kGroups = 2, kSteps = 3;
  for (const Algorithm family : kFamilies) {
    for (const int next_n : {1, 3}) {
      Call call;
      call.rows = kGroups * next_n;
      const bool large = family == Algorithm::kGvr && next_n == 1;  // more than a tile of the table
      call.n = draw(random, 1'000, 2'000) + (large ? 2'000 : 0);
      call.k = draw(random, 1, 200) + (large ? 2'048 : 0);
      call.tuning.ctas_per_row = 1 << draw(random, 0, 1);
      const int32_t entry_size = kStateHeader + call.k;
      std::vector<int32_t> state(static_cast<size_t>(call.rows) * entry_size, 0);
      std::vector<std::set<int32_t>> previous(kGroups);
      for (int step = 0; step < kSteps; ++step) {
        call.lengths.clear();
        call.starts.clear();
        call.fill(step == 1 ? "few values" : "normal", random);
        call.has_windows = step > 0;
        TopKParams p = call.params();
        p.next_n = next_n;
        p.groups = p.requests = kGroups;
        call.starts[1] = 0;
        call.starts[0] = 5;
        call.lengths[0] = 5 + draw(random, 0, call.k);  // shorter than k, or partly empty
        p.state = state.data();
        p.state_slots = kGroups;
        p.state_depth = next_n;
        p.state_hints = call.k;
        const size_t size = static_cast<size_t>(call.rows) * call.k;
        std::vector<int32_t> entered(size, kSentinel), left(size, kSentinel);
        std::vector<int32_t> counts(2 * static_cast<size_t>(call.rows), kSentinel);
        p.difference = {entered.data(), left.data(), counts.data()};
        const Plan plan =
            make_plan({call.rows, call.n, call.k, call.dtype, true, family}, kDevice, call.tuning);
        INFO(describe(call, plan, "next_n ") << next_n << ", step " << step);
        emulator::run_kernel(p, plan, random());
        for (int row = 0; row < call.rows; ++row) {
          const std::vector<int32_t> winners = call.expected(p, row);
          const int32_t* given = &call.indices[static_cast<size_t>(row) * call.k];
          const std::set<int32_t> now(winners.begin(), winners.end());
          REQUIRE(std::set<int32_t>(given, given + now.size()) == now);
          const std::set<int32_t>& before = now.empty() ? now : previous[row / next_n];
          const auto check = [&](const std::set<int32_t>& a, const std::set<int32_t>& b,
                                 const std::vector<int32_t>& out, int count) {
            std::set<int32_t> missing;
            std::set_difference(a.begin(), a.end(), b.begin(), b.end(),
                                std::inserter(missing, missing.end()));
            const int32_t* told = &out[static_cast<size_t>(row) * call.k];
            REQUIRE(count == static_cast<int>(missing.size()));
            REQUIRE(std::set<int32_t>(told, told + count) == missing);
            REQUIRE(std::count(told + count, told + call.k, -1) == call.k - count);
          };
          check(now, before, entered, counts[2 * row]);
          check(before, now, left, counts[2 * row + 1]);
          const int32_t* entry = &state[static_cast<size_t>(row) * entry_size];
          if (!now.empty()) {
            REQUIRE(entry[kStateCount] == static_cast<int32_t>(now.size()));
            REQUIRE(std::equal(given, given + now.size(), entry + kStateHeader));
          }
          if (row % next_n == 1) REQUIRE(entry[kStateArrived] == 0);
        }
        for (int group = 0; group < kGroups; ++group) {
          const std::vector<int32_t> last = call.expected(p, (group + 1) * next_n - 1);
          if (!last.empty()) previous[group] = {last.begin(), last.end()};
        }
      }
    }
  }
}

TEST_CASE("A slice longer than its first vectors is sampled when all of it has arrived") {
  Random random(23);
  Call call;
  call.n = 16 * kTinyBlock + 404;
  call.k = 64;
  call.fill("normal", random);
  call.tuning.ctas_per_row = 1;
  call.tuning.threads = kTinyBlock;
  const Plan plan =
      make_plan({1, call.n, call.k, call.dtype, false, Algorithm::kResident}, kDevice, call.tuning);
  REQUIRE(plan.threads == kTinyBlock);
  run_call(call, plan, 5);
}

TEST_CASE("A chunk longer than any row changes nothing") {
  Random random(11);
  Call call;
  call.n = 6'000;
  call.k = 100;
  call.fill("normal", random);
  call.tuning.chunk = std::numeric_limits<int32_t>::max();
  call.tuning.ctas_per_row = 4;
  const Plan plan =
      make_plan({1, call.n, call.k, call.dtype, false, Algorithm::kStream}, kDevice, call.tuning);
  REQUIRE(plan.ctas_per_row == 4);
  run_call(call, plan, 3);
}

TEST_CASE("Lists of several ranks merge as a sort of all") {
  Random random(13);
  for (const int world : {1, 2, 3, 6}) {
    for (const int k : {1, 33, 200}) {
      constexpr int kRows = 2;
      const size_t row_size = static_cast<size_t>(kRows) * k;
      std::vector<int32_t> messages;  // [world, rows, 2, k]
      std::vector<std::vector<uint64_t>> all(kRows), own(kRows);
      const int rank = draw(random, 0, world - 1);
      std::vector<uint32_t> own_bits(row_size);
      std::vector<int32_t> own_local(row_size, -1);
      for (int list = 0; list < world; ++list) {
        std::vector<uint32_t> bits(row_size, float_bits(-kInf));
        std::vector<int32_t> local(row_size, -1), message(2 * row_size, kSentinel);
        for (int row = 0; row < kRows; ++row) {
          const int count = draw(random, 0, 2) == 0 ? draw(random, 0, k) : k;
          std::vector<std::pair<uint64_t, uint32_t>> entries;
          for (int i = 0; i < count; ++i) {  // few values, infinities, NaN, both zeros
            const float few[] = {0.0f, -0.0f, 1.0f, -2.5f, kInf, -kInf, NAN};
            const uint32_t raw = float_bits(few[draw(random, 0, 6)]);
            entries.emplace_back(rank_key(ordered_key(raw), i), raw);
          }
          std::sort(entries.begin(), entries.end(), std::greater<>());
          for (int i = 0; i < count; ++i) {
            bits[row * k + i] = entries[i].second;
            local[row * k + i] = rank_key_index(entries[i].first);
            all[row].push_back(
                rank_key(rank_key_score(entries[i].first), local[row * k + i] * world + list));
          }
        }
        PackParams pack;
        pack.values = bits.data();
        pack.indices = local.data();
        pack.rows = kRows;
        pack.k = k;
        pack.placement = {.rank = list, .world = world};  // dealt out in turn
        pack.message = message.data();
        emulator::run_pack(pack, random());
        messages.insert(messages.end(), message.begin(), message.end());
        if (list == rank) own_bits = bits, own_local = local;
      }
      std::vector<uint32_t> values(row_size), kept(row_size);
      std::vector<int32_t> indices(row_size), mine(row_size);
      MergeParams merge;
      merge.lists = messages.data();
      merge.list_stride = static_cast<int64_t>(2 * row_size);
      merge.rows = kRows;
      merge.k = k;
      merge.world = world;
      merge.values = values.data();
      merge.indices = indices.data();
      emulator::run_merge(merge, random());
      merge.values = kept.data();
      merge.indices = mine.data();
      merge.own_values = own_bits.data();
      merge.own_indices = own_local.data();
      merge.own = rank;
      emulator::run_merge(merge, random());
      for (int row = 0; row < kRows; ++row) {
        std::sort(all[row].begin(), all[row].end(), std::greater<>());
        all[row].resize(std::min(all[row].size(), static_cast<size_t>(k)));
        std::vector<int32_t> expected, expected_own;
        for (const uint64_t key : all[row]) {
          expected.push_back(rank_key_index(key));
          if (expected.back() % world == rank) expected_own.push_back(expected.back() / world);
        }
        expected.resize(k, -1);
        expected_own.resize(k, -1);
        INFO("world " << world << ", k " << k << ", rank " << rank);
        REQUIRE(std::equal(expected.begin(), expected.end(), &indices[row * k]));
        REQUIRE(std::equal(expected_own.begin(), expected_own.end(), &mine[row * k]));
        for (size_t i = 0; i < all[row].size(); ++i) {
          REQUIRE(ordered_key(values[row * k + i]) == rank_key_score(all[row][i]));
        }
      }
    }
  }
}

TEST_CASE("The emulator sees threads that do not meet") {
  const auto run = [](int threads, int ctas, const std::function<void()>& kernel) {
    emulator::run({.ctas_per_row = ctas, .threads = threads}, kernel);
  };
  thread_local int rank = 0;
  REQUIRE_NOTHROW(run(64, 2, [] {
    emulator::block_barrier();
    emulator::cluster_arrive();
    emulator::cluster_wait();
  }));
  // Half a warp asks its warp for something, and the others have left.
  REQUIRE_THROWS_WITH(run(32, 1,
                          [] {
                            if (rank++ % 2 == 0) emulator::exchange(emulator::Operation::kSync, 0);
                          }),
                      test::contains("waits for its warp"));
  // One lane votes where the others add.
  REQUIRE_THROWS_WITH(run(32, 1,
                          [] {
                            const bool one = rank++ == 5;
                            emulator::exchange(
                                one ? emulator::Operation::kBallot : emulator::Operation::kReduce,
                                0);
                          }),
                      test::contains("different places"));
}
