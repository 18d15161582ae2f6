#!/usr/bin/env bash
# Installs the system packages of the given groups that are missing (Debian 12 or newer, Ubuntu), and says which.
set -euo pipefail
declare -A packages=(
    [build]="gcc libc6-dev cmake ninja-build pkg-config libjansson-dev libpcre2-dev libxxhash-dev"
    [test]="libcmocka-dev jq python3 binutils"
    [all]="clang clang-format clang-tidy llvm libclang-rt-14-dev"
)
# Emulators run the kernels' other levels, and a cross compiler makes those of ARM.
[ "$(uname -m)" != x86_64 ] || packages[test]+=" qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
have() {
    if command -v dpkg-query >/dev/null; then
        [ "$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null)" = "install ok installed" ]
    else
        false
    fi
}
missing=()
for group in "$@"; do
    for package in ${packages[$group]}; do
        have "$package" || missing+=("$package")
    done
done
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "nibble needs these packages (Debian's names): ${missing[*]}" >&2
    echo "This system has no apt-get: install their equivalents, then run: make" >&2
    exit 1
fi
echo "installing: ${missing[*]}"
run=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "not root and no sudo: ask an administrator for: apt-get install ${missing[*]}" >&2
        exit 1
    }
    run=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
install=("${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}")
"${install[@]}" >/dev/null 2>&1 || { "${run[@]}" apt-get update -qq && "${install[@]}" >/dev/null; }
