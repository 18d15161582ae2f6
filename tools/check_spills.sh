#!/usr/bin/env bash
# usage: check_spills.sh BUILD_DIR
# Micro-kernels keep their sums in registers: in the loops of the functions named tile_* (noinline, so that they are there
# to be found) of every level with AVX-512, no vector may be read from or written to the stack. Counted in the disassembly.
set -euo pipefail
build=$1
status=0
for level in avx512 avx512vnni avx512bf16; do
    n_functions=0
    for object in "$build/CMakeFiles/nibble_level_$level.dir"/src/kernel/*.o; do
        source=$(dirname "$0")/../src/kernel/$(basename "$object" .o)
        [ -e "$source" ] || continue # left from a source that is gone
        # One line per function: its name, the accesses inside loops (between the target and the place of a jump back).
        counts=$(objdump -d --no-show-raw-insn "$object" | awk '
            # Addresses are compared as strings of 16 hex digits.
            function address(hex) { sub(/:$/, "", hex); return substr("0000000000000000" hex, length(hex) + 1) }
            function finish(  i, j, n) {
                for (i = 1; i <= n_accesses; i++) {
                    for (j = 1; j <= n_loops; j++) if (from[j] <= access[i] && access[i] <= to[j]) { n++; break }
                }
                if (name ~ /^tile_/) print name, n + 0
                n_loops = n_accesses = has_frame = 0
            }
            /^[0-9a-f]+ <.*>:$/ { finish(); name = $2; gsub(/[<>:]/, "", name); next }
            name ~ /^tile_/ && $1 ~ /^[0-9a-f]+:$/ {
                here = address($1)
                if ($2 == "mov" && $3 == "%rsp,%rbp") has_frame = 1
                if ($2 ~ /^j/ && address($3) < here) { from[++n_loops] = address($3); to[n_loops] = here }
                if (/%[yz]mm/ && (/\(%rsp[,)]/ || (has_frame && /\(%rbp[,)]/))) access[++n_accesses] = here
            }
            END { finish() }')
        [ -n "$counts" ] || continue
        while read -r name n; do
            n_functions=$((n_functions + 1))
            if [ "$n" -ne 0 ]; then
                echo "$level: $name of $(basename "$object" .o) goes to the stack $n times in its loops"
                status=1
            fi
        done <<<"$counts"
    done
    if [ "$n_functions" -eq 0 ]; then
        echo "$level: no micro-kernel (tile_*) found in $build"
        status=1
    fi
    [ -z "${VERBOSE:-}" ] || echo "$level: $n_functions micro-kernels"
done
exit $status
