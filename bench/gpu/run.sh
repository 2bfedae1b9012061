#!/usr/bin/env bash
# Every test and bench of the GPU engine, on a machine with a GPU and no network.
#
#   bench/gpu/bundle.sh .gpu              where there is a network: what the machine lacks
#   bench/gpu/run.sh [--bundle DIR] ...   there; further words are those of `python -m bench.gpu`
#
# Parts run in processes of their own, each under ten minutes; results are written after each, and a
# run with the same --json goes on where the last one ended. A dry run without a GPU:
#   bench/gpu/run.sh --device cpu --small --json /tmp/gpu.json env steps handoff
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
bundle="$repo/.gpu"
if [ "${1:-}" = --bundle ]; then bundle=$(realpath "$2"); shift 2; fi
python=${PYTHON:-python3}

if [ -d "$bundle/wheels" ]; then
  # Apart from the machine's own packages; it lives as long as the bundle.
  site="$bundle/site"
  [ -d "$site" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$bundle"/wheels/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -f "$bundle/_router.abi3.so.xz" ]; then
  xz -dc "$bundle/_router.abi3.so.xz" >"$repo/python/dopd/_router.abi3.so"
fi
export PYTHONPATH="$repo/python:$repo${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
# Kernels are compiled once for all parts, and again by nobody.
export FLASHINFER_WORKSPACE_BASE=${FLASHINFER_WORKSPACE_BASE:-$bundle/kernels}
cd "$repo"
exec "$python" -m bench.gpu "$@"
