#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the Python to build and run with; everything else goes to stderr.
#
# The active python3 if it has torch >= 2.11 and the packages below: then nothing is installed and
# no network is needed. Otherwise .venv, made here: on top of the active Python's packages if these
# include a fitting torch, else with torch from PyPI. PYTHON=... names another active Python.
#
# Arguments are further packages that are needed, as MODULE or MODULE=REQUIREMENT where pip has
# another name: tools/find_python.sh PIL=pillow
set -euo pipefail
cd "$(dirname "$0")/.."

active=${PYTHON:-python3}
torch=${GVR_TORCH:-torch==2.11.0}
modules=(pytest hypothesis safetensors typer rich tqdm numpy ninja setuptools)
packages=("${modules[@]}" "${@#*=}")
modules+=("${@%%=*}")

fits() {  # fits PYTHON MODULE...: Python >= 3.10 with a fitting torch and these modules
  "$1" - "${@:2}" >&2 <<'PY'
import importlib.util
import sys

if sys.version_info < (3, 10):
    sys.exit(1)
try:
    from torch import __version__ as version
except ImportError:
    sys.exit(1)
fitting = tuple(int(part) for part in version.split(".")[:2]) >= (2, 11)
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if fitting and missing:
    print(f"{sys.executable}: torch {version} fits, missing: {', '.join(missing)}", file=sys.stderr)
sys.exit(not fitting or bool(missing))
PY
}

if ! "$active" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "need Python 3.10 or later as python3, or PYTHON=/path/to/python" >&2
  exit 1
fi
for python in "$active" "$PWD/.venv/bin/python"; do
  if command -v "$python" > /dev/null && fits "$python" "${modules[@]}"; then
    command -v "$python"
    exit
  fi
done

options=()
if fits "$active"; then
  options+=(--system-site-packages)
  torch=
fi
[ -x .venv/bin/python ] || "$active" -m venv "${options[@]}" .venv >&2
echo "installing ${torch:+$torch and }the test packages into .venv" >&2
# pip leaves what is already there alone.
if ! .venv/bin/python -m pip install --disable-pip-version-check ${torch:+"$torch"} \
    "${packages[@]}" >&2; then
  echo "pip failed. Without a network, use a Python that has torch >= 2.11 and: ${packages[*]}" >&2
  exit 1
fi
fits .venv/bin/python "${modules[@]}"
echo "$PWD/.venv/bin/python"
