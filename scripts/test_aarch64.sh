#!/usr/bin/env bash
# Tests of the CPU kernels on an emulated aarch64 machine, from an x86-64 Debian 12.
#
# Needs the packages qemu-user-static and g++-aarch64-linux-gnu, arm64 among dpkg's architectures
# (`dpkg --add-architecture arm64 && apt-get update`), and an installed development environment.
# Python for arm64 is unpacked into a folder of its own; nothing of it is installed. The kernels are
# cross-compiled at native speed; loading the libraries takes half a minute, the tests some minutes.
#
#   scripts/test_aarch64.sh                                      the kernels' tests
#   scripts/test_aarch64.sh tests/unit/model/kernels/test_linear.py -k rows   what pytest is told
#   MARCH=-march=armv8.2-a+dotprod scripts/test_aarch64.sh ...   another machine (default: armv8-a)
#   FOLDER=...                                                   where things are kept
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER=${FOLDER:-${XDG_CACHE_HOME:-$HOME/.cache}/tokasaurus/aarch64}
# The last one whose wheel for aarch64 comes without CUDA. It is older than what the engine asks for,
# and the kernels use nothing newer.
TORCH=${TORCH:-torch==2.10.0}
export MARCH=${MARCH:--march=armv8-a}
PYTHON=.venv/bin/python

"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "The development environment must be of Python 3.11, as Debian 12 is.")'
for command in qemu-aarch64-static aarch64-linux-gnu-g++; do
  command -v "$command" >/dev/null || { echo "Install $command (see the top of this script)." >&2; exit 1; }
done

if [ ! -e "$FOLDER/root.done" ]; then
  mkdir -p "$FOLDER/debs" "$FOLDER/root"
  packages=(python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1
    libstdc++6 libgomp1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libexpat1
    libreadline8 libtinfo6 libncursesw6 libcrypt1)
  (cd "$FOLDER/debs" && apt-get download "${packages[@]/%/:arm64}")
  for package in "$FOLDER"/debs/*.deb; do dpkg -x "$package" "$FOLDER/root"; done
  touch "$FOLDER/root.done"
fi

install_wheels() {
  "$PYTHON" -m pip install --quiet --target "$FOLDER/site" --only-binary=:all: --implementation cp \
    --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 "$@"
}
if [ ! -e "$FOLDER/site.done" ]; then
  install_wheels numpy msgspec hypothesis pytest pytest-timeout transformers tokenizers safetensors \
    sympy networkx jinja2 fsspec filelock typing-extensions setuptools pyzmq psutil \
    prometheus_client llguidance orjson pydantic
  # Without what it depends on: pip would decide by this machine which of CUDA's packages that are.
  install_wheels --no-deps "$TORCH" pydra-config dill
  "$PYTHON" -m compileall -q "$FOLDER/root/usr/lib/python3.11" "$FOLDER/site" || true
  touch "$FOLDER/site.done"
fi

# The cross compiler in the place of the machine's own one, which knows what "native" is.
cat >"$FOLDER/c++" <<'WRAPPER'
#!/usr/bin/env bash
exec aarch64-linux-gnu-g++ "${@/#-march=native/$MARCH}" -std=c++20
WRAPPER
chmod +x "$FOLDER/c++"

if [ $# = 0 ]; then
  set -- tests/unit/model/kernels tests/unit/model/attention/test_cpu_backend.py \
    --deselect tests/unit/model/kernels/test_loader.py
fi
# A build is kept by its sources and flags, and "native" stands for each MARCH.
export PYTHONPATH="$FOLDER/site:$PWD" CXX="$FOLDER/c++" XDG_CACHE_HOME="$FOLDER/builds$MARCH"
exec qemu-aarch64-static -L "$FOLDER/root" "$FOLDER/root/usr/bin/python3.11" \
  -m pytest -p no:cacheprovider -m "not slow and not gpu" --timeout 0 "$@"
