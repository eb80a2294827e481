# SPDX-License-Identifier: Apache-2.0
"""Builds gvr_topk._C. Metadata is in pyproject.toml.

GVR_CPU_ONLY=1        build no CUDA code
GVR_FORCE_CUDA=1      an error instead of a CPU build when CUDA is incomplete
TORCH_CUDA_ARCH_LIST  GPU architectures, as everywhere in torch
MAX_JOBS              parallel compilations; NVCC_THREADS: threads of each nvcc
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(
        f"gvr_topk: building needs torch >= 2.11 in this Python ({sys.executable}): {error}\n"
        "Install torch first, then: pip install --no-build-isolation ."
    )

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0;10.3;12.0+PTX"
CPU_SOURCES = ("csrc/common/*.cpp", "csrc/ops/*.cpp", "csrc/cpu/*.cpp")
CUDA_SOURCES = ("csrc/cuda/*.cpp", "csrc/cuda/**/*.cu")
HEADERS = ("csrc/**/*.h", "csrc/**/*.cuh")


def flag(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def files(*patterns: str) -> list[str]:
    return sorted({str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern)})


def use_cuda() -> bool:
    """CUDA is built when torch and the toolkit have it. No GPU is needed, so none is asked for."""
    if flag("GVR_CPU_ONLY"):
        if flag("GVR_FORCE_CUDA"):
            sys.exit("gvr_topk: GVR_CPU_ONLY and GVR_FORCE_CUDA are both set; unset one of them")
        return False
    if torch.version.cuda and cpp_extension.CUDA_HOME:
        return True
    if flag("GVR_FORCE_CUDA"):
        sys.exit(
            "gvr_topk: GVR_FORCE_CUDA is set, but CUDA is incomplete: torch was built for CUDA "
            f"{torch.version.cuda}, the toolkit (CUDA_HOME) is {cpp_extension.CUDA_HOME}.\n"
            "Install a CUDA build of torch and the toolkit of the same major version."
        )
    return False


def architectures() -> str:
    """TORCH_CUDA_ARCH_LIST, or the default. Old PTX is refused: what a driver makes of it on a
    newer GPU knows neither clusters nor the wait for the kernel before, and is launched with both.
    """
    given = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    for name in re.split(r"[;\s]+", given):
        ptx = re.fullmatch(r"(\d+)\.\d+[af]?\+PTX", name)
        if ptx and int(ptx[1]) < 9:
            sys.exit(
                f"gvr_topk: TORCH_CUDA_ARCH_LIST: got {name}, need no PTX below 9.0: name every "
                f'architecture below 9.0 that is wanted, as in "{DEFAULT_ARCHITECTURES}"'
            )
    return given


def toolkit_version(cuda_home: str) -> str:
    """Version of the toolkit as its header has it, e.g. "13.0"; "" where there is no header."""
    header = Path(cuda_home) / "include" / "cuda.h"
    text = header.read_text(errors="replace") if header.is_file() else ""
    found = re.search(r"#define\s+CUDA_VERSION\s+(\d+)", text)
    return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else ""


def check_cuda_major() -> None:
    nvcc = toolkit_version(cpp_extension.CUDA_HOME)
    if nvcc and nvcc.split(".")[0] != torch.version.cuda.split(".")[0]:
        sys.exit(
            f"gvr_topk: the CUDA toolkit in {cpp_extension.CUDA_HOME} is {nvcc}, but torch "
            f"{torch.__version__} was built for CUDA {torch.version.cuda}.\n"
            f"Set CUDA_HOME to a toolkit of version {torch.version.cuda.split('.')[0]}.x, install "
            "a torch for this toolkit, or build without CUDA: GVR_CPU_ONLY=1"
        )


def extension(cuda: bool) -> cpp_extension.CppExtension:
    cxx = ["-std=c++20", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-Wall"]
    # GCC 12 reports its own AVX-512 headers: https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105593
    cxx += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    options = {
        "sources": files(*CPU_SOURCES),
        "depends": [*files(*HEADERS), "setup.py"],
        "extra_compile_args": {"cxx": cxx},
        "extra_link_args": ["-fopenmp"],
    }
    if not cuda:
        return cpp_extension.CppExtension("gvr_topk._C", **options)

    check_cuda_major()
    # torch reads the list only while no nvcc flag names an architecture, so none below does.
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    nvcc = ["-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr"]
    nvcc += ["-Xptxas=-v,--warn-on-spills"]
    if os.environ.get("NVCC_THREADS"):
        nvcc += ["--threads", os.environ["NVCC_THREADS"]]
    options["sources"] += files(*CUDA_SOURCES)
    options["extra_compile_args"]["nvcc"] = nvcc
    options["define_macros"] = [("GVR_WITH_CUDA", None)]
    # Since CUDA 13 the C++ core libraries are beside the toolkit's headers, and g++ needs a hint.
    cccl = Path(cpp_extension.CUDA_HOME) / "include" / "cccl"
    options["include_dirs"] = [str(cccl)] if cccl.is_dir() else []
    return cpp_extension.CUDAExtension("gvr_topk._C", **options)


class BuildExtension(cpp_extension.BuildExtension):
    """Rebuilds when what was built differs, and records it in _build.json for the import check."""

    def build_extension(self, ext: cpp_extension.CppExtension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        record = library.with_name("_build.json")
        cuda = ("GVR_WITH_CUDA", None) in ext.define_macros
        built = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "architectures": os.environ["TORCH_CUDA_ARCH_LIST"] if cuda else None,
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        }
        if not record.is_file() or json.loads(record.read_text()) != built:
            self.force = True
        record.unlink(missing_ok=True)
        super().build_extension(ext)
        # Without the shared C++ library the first error message ends in a segmentation fault.
        if b"\0libstdc++.so.6\0" not in library.read_bytes():
            sys.exit(
                f"gvr_topk: {library} was linked with a static libstdc++ and would crash at the "
                "first error.\nRemove -static-libstdc++ (LDFLAGS, compiler defaults) and rebuild."
            )
        record.write_text(json.dumps(built, indent=2) + "\n")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        record = Path(self.build_lib, "gvr_topk", "_build.json")
        shutil.copy(record, ROOT / "gvr_topk" / "_build.json")


setup(ext_modules=[extension(use_cuda())], cmdclass={"build_ext": BuildExtension})
