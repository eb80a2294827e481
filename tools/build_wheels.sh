#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and tests wheels for every supported Python, in containers: needs cibuildwheel, Docker (or
# CIBW_CONTAINER_ENGINE=podman) and a network, no GPU.
#
#   tools/build_wheels.sh OUT [CELL...]     CELL: cpu, cu128, cu130, ...; by default cpu and cu130
#
# A wheel fits one torch minor version and one CUDA version, which its file name cannot say: it goes
# to OUT/torch-VERSION+CELL. GVR_TORCH_VERSION names another torch; CIBW_BUILD fewer Pythons.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 1 ]; then
  sed -n '3,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$1
shift
version=${GVR_TORCH_VERSION:-2.11.0}
cells=("$@")
[ ${#cells[@]} -gt 0 ] || cells=(cpu cu130)

for cell in "${cells[@]}"; do
  export GVR_TORCH="torch==$version" GVR_TORCH_INDEX="https://download.pytorch.org/whl/$cell"
  case $cell in
    cpu)
      export GVR_CPU_ONLY=1 GVR_FORCE_CUDA=0
      image=manylinux_2_28
      ;;
    cu[0-9][0-9][0-9])
      # A CUDA toolkit beside the Pythons of a manylinux image, as torch itself is built.
      export GVR_CPU_ONLY=0 GVR_FORCE_CUDA=1
      image=pytorch/manylinux2_28-builder:cuda${cell:2:2}.${cell:4:1}
      ;;
    *)
      echo "CELL: got $cell, need cpu or cuXYZ, such as cu130" >&2
      exit 2
      ;;
  esac
  echo "torch $version+$cell in $image"
  CIBW_MANYLINUX_X86_64_IMAGE=$image \
    python3 -m cibuildwheel --platform linux --output-dir "$out/torch-$version+$cell"
done
