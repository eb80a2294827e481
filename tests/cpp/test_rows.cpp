// SPDX-License-Identifier: Apache-2.0
// Row windows, hints and state entries: no value in a tensor leads outside the row or the state.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../../csrc/common/rows.h"
#include "catch.h"

namespace {

using namespace gvr;

constexpr int64_t kInt64Min = std::numeric_limits<int64_t>::min();
constexpr int64_t kInt64Max = std::numeric_limits<int64_t>::max();
constexpr int32_t kInt32Max = std::numeric_limits<int32_t>::max();

TopKParams rows_of(int32_t n, int32_t next_n = 1, int32_t ratio = 1) {
  TopKParams p;
  p.rows = 1024;
  p.n = n;
  p.next_n = next_n;
  p.compress_ratio = ratio;
  return p;
}

RowWindow window(TopKParams p, int64_t length, int64_t row = 0, int64_t start = 0) {
  const int64_t requests = row / p.next_n + 1;
  std::vector<int64_t> lengths(requests, length), starts(requests, start);
  p.lengths = lengths.data();
  p.starts = starts.data();
  p.lengths_int64 = p.starts_int64 = true;
  return row_window(p, row);
}

TEST_CASE("without lengths the whole row is valid", "[rows]") {
  const RowWindow w = row_window(rows_of(77), 5);
  CHECK(w.begin == 0);
  CHECK(w.end == 77);
  CHECK(w.size() == 77);
  CHECK(row_window(rows_of(0), 5).size() == 0);
}

TEST_CASE("draft rows end one after the other", "[rows]") {
  const TopKParams p = rows_of(1000, /*next_n=*/4);
  for (int64_t row = 0; row < 8; ++row) CHECK(window(p, 100, row).end == 97 + row % 4);
  // A length shorter than the drafts: the first rows are empty, none is negative.
  for (int64_t row = 0; row < 4; ++row)
    CHECK(window(p, 2, row).end == std::max<int64_t>(0, row - 1));
}

TEST_CASE("the end is the contract's formula", "[rows]") {
  for (int32_t ratio : {1, 2, 4, 7, 128}) {
    for (int32_t next_n : {1, 2, 3}) {
      const TopKParams p = rows_of(50, next_n, ratio);
      for (int64_t length = -3; length < 60 * ratio; ++length) {
        for (int64_t row = 0; row < next_n; ++row) {
          const int64_t keys = length <= 0 ? 0 : std::max<int64_t>(0, length - next_n + row + 1);
          const int64_t end = std::min<int64_t>(50, keys / ratio);
          if (window(p, length, row).end != end) {
            FAIL("length " << length << ", row " << row << " of " << next_n << ", ratio " << ratio);
          }
        }
      }
    }
  }
}

TEST_CASE("any length and any start gives a window inside the row", "[rows]") {
  const int64_t values[] = {
      kInt64Min, kInt64Min + 1,    -(int64_t{1} << 32), -4,       -1, 0, 1, 49, 50, 51,
      kInt32Max, int64_t{1} << 32, kInt64Max - 1,       kInt64Max};
  for (int32_t n : {0, 1, 50, kInt32Max}) {
    for (int32_t next_n : {1, 3, kInt32Max}) {
      for (int32_t ratio : {1, 5, kInt32Max}) {
        for (int64_t length : values) {
          for (int64_t start : values) {
            const RowWindow w = window(rows_of(n, next_n, ratio), length, 0, start);
            const bool inside = 0 <= w.begin && w.begin <= w.end && w.end <= n;
            if (!inside) FAIL("n " << n << ", length " << length << ", start " << start);
            if (length <= 0 && w.size() != 0) FAIL("length " << length << " is not empty");
          }
        }
      }
    }
  }
}

TEST_CASE("int32 and int64 counts mean the same", "[rows]") {
  const std::vector<int32_t> narrow{5, -2, 90};
  const std::vector<int64_t> wide(narrow.begin(), narrow.end());
  TopKParams p = rows_of(50);
  for (int64_t row = 0; row < 3; ++row) {
    p.lengths = narrow.data();
    p.lengths_int64 = false;
    const RowWindow a = row_window(p, row);
    p.lengths = wide.data();
    p.lengths_int64 = true;
    const RowWindow b = row_window(p, row);
    CHECK(a.begin == b.begin);
    CHECK(a.end == b.end);
  }
}

TEST_CASE("hinted positions are inside the window or nowhere", "[rows]") {
  const RowWindow w{10, 20};
  CHECK(hinted_position(10, 0, w) == 10);
  CHECK(hinted_position(19, 0, w) == 19);
  CHECK(hinted_position(9, 0, w) == -1);
  CHECK(hinted_position(20, 0, w) == -1);
  CHECK(hinted_position(9, 1, w) == 10);
  CHECK(hinted_position(21, -2, w) == 19);
  CHECK(hinted_position(-1, 12, w) == -1);  // padding, whatever the offset
  CHECK(hinted_position(kInt32Max, kInt32Max, w) == -1);
  CHECK(hinted_position(kInt32Max, -kInt32Max, w) == -1);
}

// A state of 3 slots, 2 drafts and 5 hints, each word a number of its own.
struct State {
  static constexpr int32_t kWidth = kStateHeader + 5;
  std::vector<int32_t> words = std::vector<int32_t>(3 * 2 * kWidth);
  TopKParams p = rows_of(100, /*next_n=*/2);

  State() {
    p.state = words.data();
    p.state_slots = 3;
    p.state_depth = 2;
    p.state_hints = 5;
  }
  int32_t* entry(int64_t slot, int64_t draft) { return words.data() + (slot * 2 + draft) * kWidth; }
};

TEST_CASE("a row's entry is that of its request's slot and its draft", "[rows]") {
  State s;
  const std::vector<int64_t> slots{2, 0, -1, 3, kInt64Max, kInt64Min};
  s.p.slots = slots.data();
  s.p.slots_int64 = true;
  CHECK(row_state(s.p, 0).entry == s.entry(2, 0));
  CHECK(row_state(s.p, 1).entry == s.entry(2, 1));
  CHECK(row_state(s.p, 2).entry == s.entry(0, 0));
  CHECK(row_state(s.p, 3).entry == s.entry(0, 1));
  for (int64_t row = 4; row < 12; ++row) {
    CHECK(row_slot(s.p, row) == -1);
    CHECK(row_state(s.p, row).entry == nullptr);
    CHECK(row_hint(s.p, row).indices == nullptr);
  }
}

TEST_CASE("without slots request i has slot i, as far as there are slots", "[rows]") {
  State s;
  CHECK(row_state(s.p, 5).entry == s.entry(2, 1));
  CHECK(row_state(s.p, 6).entry == nullptr);
}

TEST_CASE("a map leads groups to requests, and to nothing where it is wild", "[rows]") {
  State s;
  const std::vector<int64_t> map{1, 0, 2, -1, kInt64Max, 1}, lengths{50, 90}, slots{2, 0};
  s.p.groups = 6;
  s.p.row_to_request = map.data();
  s.p.row_to_request_int64 = s.p.lengths_int64 = s.p.slots_int64 = true;
  s.p.requests = 2;
  s.p.lengths = lengths.data();
  s.p.slots = slots.data();
  CHECK(row_window(s.p, 1).end == 90);
  CHECK(row_window(s.p, 2).end == 49);
  CHECK(row_state(s.p, 1).entry == s.entry(0, 1));
  CHECK(row_state(s.p, 2).entry == s.entry(2, 0));
  for (const int64_t group : {2, 3, 4}) {
    for (const int64_t row : {2 * group, 2 * group + 1}) {
      CHECK(row_window(s.p, row).size() == 0);
      CHECK(row_slot(s.p, row) == -1);
      CHECK(place_of(row_places(s.p, row), 7) == 7);
    }
  }
  const std::vector<int64_t> by_group{10, 20, 30, 40, 50, 60};
  s.p.lengths = by_group.data();
  s.p.windows_per_group = true;
  CHECK(row_window(s.p, 3).end == 20);
  CHECK(row_window(s.p, 11).end == 60);
  CHECK(row_window(s.p, 5).size() == 0);  // no request, whatever its length
}

TEST_CASE("a slot belongs to the last group that has a valid score", "[rows]") {
  State s;
  const std::vector<int64_t> slots{1, 0, 1, 1}, lengths{9, 9, 9, 0};
  s.p.groups = 4;
  s.p.slots = slots.data();
  s.p.lengths = lengths.data();
  s.p.slots_int64 = s.p.lengths_int64 = true;
  CHECK(slots_may_repeat(s.p));
  CHECK(group_takes_slot(s.p, 2, 1));
  CHECK_FALSE(group_takes_slot(s.p, 3, 1));
  CHECK_FALSE(group_takes_slot(s.p, 1, 1));
  s.p.slots = nullptr;
  CHECK_FALSE(slots_may_repeat(s.p));
}

TEST_CASE("few hints are spread evenly and never leave the entry", "[rows]") {
  TopKParams p;
  for (const int32_t k : {1, 2, 7, 64, 1000, 2048, 65537}) {
    for (const int32_t hints : {1, 2, 3, 63, 64, 65, 1000, 2047, 2048, 3000}) {
      p.state_hints = hints;
      p.hint_step = make_hint_step(hints, k);
      int32_t next = 0, last = -1;
      for (int32_t position = 0; position < k; ++position) {
        const int32_t at = hint_at(p, position);
        if (at >= 0) {
          if (at != next++) FAIL(hints << " of " << k << ": hint " << at << " out of turn");
          if (last >= 0 && position - last > k / hints + 1) FAIL("a gap before " << position);
          last = position;
        }
        if (hint_count(p, position + 1) != next) FAIL("count after " << position);
      }
      if (next > hints || next < std::min(hints, k)) FAIL(next << " hints of " << hints);
    }
  }
  p.state_hints = 1;
  p.hint_step = make_hint_step(1, kInt32Max);
  CHECK(hint_count(p, kInt32Max) == 1);
}

TEST_CASE("a key's place is the page table's, or nowhere", "[rows]") {
  const std::vector<int32_t> table{5, -1, 0, kInt32Max};
  RowPlaces places{table.data(), 4, 0, 4};  // pages of 16
  CHECK(place_of(places, 0) == 80);
  CHECK(place_of(places, 15) == 95);
  CHECK(place_of(places, 16) == -1);
  CHECK(place_of(places, 33) == 1);
  CHECK(place_of(places, 48) == -1);  // beyond int32
  CHECK(place_of(places, 64) == -1);  // beyond the table
  CHECK(place_of(places, -1) == -1);
  places.offset = -32;
  CHECK(place_of(places, 31) == -1);
  CHECK(place_of(places, 32) == 80);
  for (const int64_t far : {int64_t{1} << 62, -(int64_t{1} << 62)}) {
    places.offset = far;
    for (const int32_t bits : {0, 4, 30}) {
      places.bits = bits;
      CHECK(place_of(places, kInt32Max) == -1);
    }
  }
  const RowPlaces ragged{nullptr, 0, kInt32Max - 5, 0};
  CHECK(place_of(ragged, 5) == kInt32Max);
  CHECK(place_of(ragged, 6) == -1);
}

TEST_CASE("offsets of any size are clamped to nowhere", "[rows]") {
  TopKParams p = rows_of(100);
  const std::vector<int64_t> offsets{kInt64Max, kInt64Min, 3};
  p.kv.offsets = offsets.data();
  p.kv.offsets_int64 = true;
  for (const int64_t row : {0, 1}) CHECK(place_of(row_places(p, row), kInt32Max) == -1);
  CHECK(place_of(row_places(p, 2), 4) == 7);
}

TEST_CASE("every draft row is hinted by the accepted entry", "[rows]") {
  State s;
  s.entry(1, 0)[kStateCount] = 2;
  s.entry(1, 1)[kStateCount] = 4;
  for (int32_t accepted : {0, 1}) {
    s.entry(1, 0)[kStateAccepted] = accepted;
    for (int64_t row : {2, 3}) {
      const HintRow hint = row_hint(s.p, row);
      CHECK(hint.indices == s.entry(1, accepted) + kStateHeader);
      CHECK(hint.size == (accepted == 0 ? 2 : 4));
    }
  }
}

TEST_CASE("a state of any bits gives a hint inside the state", "[rows]") {
  State s;
  for (int32_t word : {-1, 6, kInt32Max, std::numeric_limits<int32_t>::min()}) {
    s.entry(0, 0)[kStateAccepted] = word;
    s.entry(0, 0)[kStateCount] = word;
    const HintRow hint = row_hint(s.p, 0);
    CHECK(hint.indices == s.entry(0, 0) + kStateHeader);
    CHECK(hint.size == (word < 0 ? 0 : 5));
  }
}

TEST_CASE("a given hint is shared by the rows of a request or has one row each", "[rows]") {
  const std::vector<int32_t> hint(40);
  TopKParams p = rows_of(100, /*next_n=*/2);
  p.hint = hint.data();
  p.hint_stride = 10;
  p.hint_size = 7;
  p.rows_per_hint = 2;
  CHECK(row_hint(p, 3).indices == hint.data() + 10);
  p.rows_per_hint = 1;
  CHECK(row_hint(p, 3).indices == hint.data() + 30);
  CHECK(row_hint(p, 3).size == 7);
}

}  // namespace
