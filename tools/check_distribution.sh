#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the sdist, from it alone a CPU wheel, installs that into an empty environment, and uses it
# there. The active Python needs torch and what a build needs; nothing is fetched. About a minute.
#
#   tools/check_distribution.sh [OUT]      OUT keeps sdist and wheel; by default they are deleted
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(tools/find_python.sh wheel)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${1:-$work/dist}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# The hook of the build backend, without a front end. From a copy, so that the checkout stays clean.
git_files() { git ls-files -z --cached --others --exclude-standard; }
mkdir "$work/source"
if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
  git_files | xargs -0 cp --parents -t "$work/source"
else
  cp -r . "$work/source"
fi
export GVR_CPU_ONLY=1
cd "$work/source"
"$python" -c "from setuptools.build_meta import build_sdist; build_sdist('$out')" > "$work/log" 2>&1 ||
  { cat "$work/log" >&2; exit 1; }
sdist=$(ls "$out"/gvr?topk-*.tar.gz)  # old setuptools write gvr-topk

echo "building a CPU wheel from $(basename "$sdist")"
cd "$work"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
  --wheel-dir "$out" "$sdist"
wheel=$(ls "$out"/gvr_topk-*.whl)

"$python" - "$sdist" "$wheel" << 'PY'
import sys
import tarfile
import zipfile

sdist, wheel = sys.argv[1:]
with tarfile.open(sdist) as archive:
    source = {name.partition("/")[2] for name in archive.getnames()}
with zipfile.ZipFile(wheel) as archive:
    built = set(archive.namelist())

wanted = {"csrc/ops/schema.cpp", "csrc/cuda/kernels/stream.cuh", "tests/conftest.py", "LICENSE",
          "README.md", "docs/semantics.md", "Makefile", "gvr_topk/_C.pyi", "gvr_topk/py.typed"}
missing = sorted(wanted - source)
stray = sorted(n for n in source if n.endswith((".so", ".o", "_build.json", ".pyc")))
for name in ("_build.json", "_C.pyi", "py.typed", "data/trace_A_layer6_cut.safetensors"):
    missing += [] if f"gvr_topk/{name}" in built else [f"{name} in the wheel"]
missing += [] if any(n.endswith(".so") for n in built) else ["the extension in the wheel"]
missing += [] if any(n.endswith("LICENSE") for n in built) else ["LICENSE in the wheel"]
stray += sorted(n for n in built if not n.startswith("gvr_topk"))
if missing or stray:
    sys.exit(f"missing: {missing}\nnot wanted: {stray}")
PY

# An empty environment. Torch and the other requirements come from the active one through a path
# file, behind its own packages: installing torch again would take minutes and a network.
"$python" -m venv "$work/clean"
clean=$work/clean/bin/python
"$python" - << 'PY' > "$("$clean" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
import sys

print(*(path for path in sys.path if path.endswith(("-packages"))), sep="\n")
PY
"$clean" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --ignore-installed \
  "$wheel"

mkdir "$work/empty"
cd "$work/empty"
unset PYTHONPATH
"$clean" - "$work/clean" << 'PY'
import importlib.metadata
import sys

import torch

import gvr_topk

assert gvr_topk.__file__.startswith(sys.argv[1]), gvr_topk.__file__
assert importlib.metadata.version("gvr-topk") == gvr_topk.__version__
scores = torch.randn(3, 5000)
expected = scores.sort(dim=-1, descending=True, stable=True).indices[:, :64].int()
assert torch.equal(gvr_topk.topk_indices(scores, 64, sorted=True), expected)
PY
"$work/clean/bin/gvr-topk" demo --device cpu --steps 4 --json > /dev/null
"$work/clean/bin/gvr-topk" env --import-time | sed "s#$work/#.../#"
ls -l "$out" | awk 'NR > 1 { print $5, "bytes", $NF }'
echo "distribution: sdist and wheel build, install and answer"
