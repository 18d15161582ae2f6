#!/usr/bin/env bash
# Builds each preset and runs its tests, after the checks that need no build.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}
tools/check_includes.sh
tools/check_style.sh
for preset in "$@"; do
    echo "== $preset"
    cmake --preset "$preset" -DNIBBLE_TESTS=ON >/dev/null
    cmake --build "build/$preset" -j "$jobs" -- --quiet
    if [ "$preset" = release ]; then
        tools/check_symbols.sh build/release
        tools/check_spills.sh build/release
    fi
    ctest --test-dir "build/$preset" --output-on-failure --timeout 600 -j "$jobs"
done
