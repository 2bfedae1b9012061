#!/usr/bin/env bash
# Collects what a GPU machine without network lacks, to be carried there: wheels and our extension.
#
#   bench/gpu/bundle.sh DIR [PYTHON_VERSION] [--kernels ARCH]     (3.12 by default; about 45 MB)
#
# torch must be there. FlashInfer compiles its kernels on that machine at first use, for which nvcc
# and ninja must be there too; --kernels compiles here what the parts ask for (ARCH as 9.0a, 5 MB
# more). PYTHON names the interpreter that does so: it needs what `dopd kernels --help` tells, of a
# CUDA that is not newer than that machine's.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mkdir -p "$1" && realpath "$1")
shift
version=3.12 arch='' flashinfer=0.6.18.post1
if [ $# -gt 0 ] && [ "$1" != --kernels ]; then version=$1; shift; fi
if [ "${1:-}" = --kernels ]; then arch=${2:?--kernels needs an architecture, as 9.0a}; fi
python=${PYTHON:-$repo/.venv/bin/python}
platforms=()
for glibc in 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

mkdir -p "$out/wheels"
if [ -n "$arch" ]; then
  # First: it is what may fail. Of the models in bench/gpu/setup.py, in the dtype of a GPU.
  PYTHONPATH="$repo/python" "$python" -m dopd kernels random:tiny random:smollm2-135m \
    random:llama-3.1-8b --arch "$arch" --out "$out/wheels"
  compgen -G "$out/wheels/flashinfer_jit_cache-$flashinfer+*.whl" >/dev/null ||
    { echo "$python has another FlashInfer than the bundle: install $flashinfer" >&2; exit 1; }
fi
if "$python" -m pip --version >/dev/null 2>&1; then pip=("$python" -m pip); else pip=(python3 -m pip); fi
"${pip[@]}" download -q --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp "${platforms[@]}" -d "$out/wheels" \
  "flashinfer-python==$flashinfer" apache-tvm-ffi==0.1.15.post2 gguf==0.19.0 \
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
