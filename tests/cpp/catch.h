// SPDX-License-Identifier: Apache-2.0
// Catch2 of either generation: 3.x, or the single header of 2.x that Debian 12 has.
#pragma once

#if __has_include(<catch2/catch_all.hpp>) && !defined(GVR_CATCH2_SINGLE_HEADER)
#include <catch2/catch_all.hpp>
namespace gvr::test {
inline auto contains(const std::string& text) { return Catch::Matchers::ContainsSubstring(text); }
}  // namespace gvr::test
#else
#include <catch2/catch.hpp>
namespace gvr::test {
inline auto contains(const std::string& text) { return Catch::Contains(text); }
}  // namespace gvr::test
#endif
