// SPDX-License-Identifier: Apache-2.0
#pragma once

using cudaError_t = int;
using cudaStream_t = void*;
