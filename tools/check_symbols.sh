#!/usr/bin/env bash
# usage: check_symbols.sh BUILD_DIR
# Every exported symbol starts with nib_; an object compiled per level exports one table and no code.
set -euo pipefail
build=$1
status=0
stray=$(nm -D --defined-only "$build/libnibble.so" | awk '$2 ~ /[TDBRVW]/ && $3 !~ /^nib_/ {print $3}')
stray+=$(nm -g --defined-only "$build/libnibble.a" 2>/dev/null | awk 'NF == 3 && $2 ~ /[TDBRCVW]/ && $3 !~ /^nib_/ {print $3}')
if [ -n "$stray" ]; then
    echo "symbols without the nib_ prefix: $stray"
    status=1
fi
for object in "$build"/CMakeFiles/nibble_level_*.dir/src/*/*.o; do
    level=${object#*nibble_level_}
    level=${level%%.dir*}
    exported=$(nm -g --defined-only "$object" | awk '{print $2, $3}')
    if [ "$(wc -l <<<"$exported")" -ne 1 ] || ! grep -Eq "^[DR] nib_[a-z0-9_]+_$level$" <<<"$exported"; then
        echo "$object must export exactly one table of its level, but has: $exported"
        status=1
    fi
done
exit $status
