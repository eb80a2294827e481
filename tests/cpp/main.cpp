// SPDX-License-Identifier: Apache-2.0
// The main function of the tests under Catch2 2.x; Catch2 3.x brings its own.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
