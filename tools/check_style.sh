#!/usr/bin/env bash
# What a reader would stumble over: trailing space, tabs in C, files and functions that grew too long, formatting.
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
files=$(find include src tests bench -name '*.[ch]')
if grep -nE '[[:space:]]+$|	' $files | head; then :; fi
if grep -qE '[[:space:]]+$|	' $files; then
    echo "trailing space or tabs"
    status=1
fi
for file in $files; do
    lines=$(wc -l <"$file")
    if [ "$lines" -gt 1000 ]; then
        echo "$file: $lines lines, at most 1000"
        status=1
    fi
done
if command -v clang-format >/dev/null && clang-format --version | grep -q 'version 14'; then
    clang-format --dry-run -Werror $files || status=1
fi
exit $status
