# SPDX-License-Identifier: Apache-2.0
"""Prints a TORCH_CUDA_ARCH_LIST for the visible GPUs, or "9.0" where there is none."""

import torch

NO_GPU = "9.0"

if __name__ == "__main__":
    found = set()
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    print(";".join(f"{major}.{minor}" for major, minor in sorted(found)) or NO_GPU)
