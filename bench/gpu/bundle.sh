#!/usr/bin/env bash
# Collects what a GPU machine without network lacks, to be carried there: wheels and our extension.
#
#   bench/gpu/bundle.sh DIR [PYTHON_VERSION]     (3.12 by default; about 45 MB)
#
# torch, nvcc and ninja must be there; FlashInfer compiles its kernels on that machine at first use.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mkdir -p "$1" && realpath "$1")
version=${2:-3.12}
python=${PYTHON:-$repo/.venv/bin/python}
platforms=()
for glibc in 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

mkdir -p "$out/wheels"
if "$python" -m pip --version >/dev/null 2>&1; then pip=("$python" -m pip); else pip=(python3 -m pip); fi
"${pip[@]}" download -q --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp "${platforms[@]}" -d "$out/wheels" \
  flashinfer-python==0.6.18.post1 apache-tvm-ffi==0.1.15.post2 gguf==0.19.0 \
  msgspec grpcio protobuf nvidia-ml-py
library="$repo/python/dopd/_router.abi3.so"
if [ -f "$library" ]; then
  strip --strip-debug -o "$out/_router.so" "$library"
  xz -T0 -6 -c "$out/_router.so" >"$out/_router.abi3.so.xz"
  rm "$out/_router.so"
else
  echo "no $library: make build first, or parts that serve will fail" >&2
fi
du -sh "$out"
