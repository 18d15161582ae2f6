#!/usr/bin/env bash
# usage: check_compilers.sh DIR
# The kernel check (tests/standalone), built in DIR by every compiler that is here, with and without optimization, for this
# processor and for ARM: quantized bytes are the same everywhere. Part of `make test-all`.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}
build() { # NAME TYPE options...
    cmake -S tests/standalone -B "$dir/$1" -DCMAKE_BUILD_TYPE="$2" "${@:3}" >/dev/null
    cmake --build "$dir/$1" -j "$jobs" >/dev/null
}
check() { # NAME command...: says the hash, or what failed
    if ! "${@:2}" >"$dir/said" 2>&1; then
        echo "$1: the kernel check failed"
        tail "$dir/said"
        exit 1
    fi
    echo "$1: $(grep SHA-256 "$dir/said" || echo passed)"
}
dir=$1
mkdir -p "$dir"
export NIBBLE_CHECK_BLOCKS=5000
for compiler in gcc clang; do
    command -v "$compiler" >/dev/null || { echo "no $compiler: not checked"; continue; }
    for type in Debug Release; do
        build "$compiler-$type" "$type" -DCMAKE_C_COMPILER="$compiler"
        check "$compiler, $type" "$dir/$compiler-$type/test_kernel_check"
    done
done
if command -v qemu-aarch64 >/dev/null && command -v aarch64-linux-gnu-gcc >/dev/null; then
    build aarch64 Release -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
    check "aarch64" qemu-aarch64 -cpu max "$dir/aarch64/test_kernel_check"
    check "aarch64, other kernels" qemu-aarch64 -cpu max "$dir/aarch64/test_kernels"
    check "aarch64, attention" qemu-aarch64 -cpu max "$dir/aarch64/test_attend"
else
    echo "no qemu-aarch64 or no aarch64-linux-gnu-gcc: ARM is not checked"
fi
