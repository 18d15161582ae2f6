#!/usr/bin/env bash
# usage: bench/quantize.sh BUILD_DIR
# How fast models are quantized, with an importance matrix, on random models; at the end, without one, beside plain copies
# (with one q4_0 is no copy but a search). With LLAMA_CPP=DIR (a folder with llama-quantize) the peer does the same in turn,
# on the same files, and the outputs are compared byte by byte.
#   FORMATS="q4_k iq3_s"   instead of all; every matrix gets the one format (--pure)
#   THREADS=2 ROUNDS=3     the numbers are medians over the rounds: of the seconds, and of each round's ratio. "cpu" is the
#                          ratio of processor seconds, which a busy machine disturbs less.
#   COPIES=0               formats only
#   LARGE=FILE SMALL=FILE  models instead of the random ones; SMALL is for formats that take the peer long
# Prints, never judges: numbers depend on the machine. Inputs are in the page cache, outputs are brought to disk by nibble and
# by the second kind of copy, and are left to the system by the peer and the first.
set -euo pipefail
nibble=$(realpath "$1")/nibble
threads=${THREADS:-2}
rounds=${ROUNDS:-3}
read -ra formats <<<"${FORMATS:-q4_k q5_k q2_k q3_k q6_k iq4_xs iq4_nl iq3_s iq3_xxs iq2_m iq2_xs iq2_xxs q8_0 q4_0 bf16}"
work=$(mktemp -d "${TMPDIR:-/tmp}/nibble-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT

# measured COMMAND...: wall seconds, processor seconds, and the most memory it had, in MB; mapped files count as far as
# they were touched.
measured() {
    python3 - "$work/log" "$@" <<'P'
import os, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
began = time.monotonic()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ,
                        file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)])
_, status, usage = os.wait4(child, 0)
seconds = time.monotonic() - began
if status:
    sys.exit(f"failed: {' '.join(sys.argv[2:])}\n" + open(sys.argv[1]).read())
print(f"{seconds:.4f} {usage.ru_utime + usage.ru_stime:.4f} {usage.ru_maxrss / 1e3:.0f}")
P
}

# imatrix_for MODEL FILE: an importance matrix in the older format, made up: most columns count about the same, some much more.
imatrix_for() {
    "$nibble" inspect "$1" --json | python3 -c '
import json, math, random, struct, sys
random.seed(1)
matrices = [t for t in json.load(sys.stdin)["tensors"] if len([n for n in t["shape"] if n > 1]) > 1]
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<i", len(matrices)))
    for t in matrices:
        name, n = t["name"].encode(), t["shape"][0] * math.prod(t["shape"][2:])
        values = [math.exp(random.gauss(0, 1)) for _ in range(n)]
        file.write(struct.pack(f"<i{len(name)}sii{n}f", len(name), name, 1, n, *values))
' "$2"
}

# statistics of the lines "ours peer" on stdin: median seconds of both, median ratio of a line
medians() {
    python3 -c '
import statistics, sys
rows = [[float(x) for x in line.split()] for line in sys.stdin]
print(*(f"{statistics.median(column):.3f}" for column in zip(*rows)), f"{statistics.median(b / a for a, b in rows):.2f}")'
}

median_of() { # median_of COLUMN: of the numbers in a column of stdin
    python3 -c 'import statistics, sys; print(f"{statistics.median(float(line.split()[int(sys.argv[1])]) for line in sys.stdin):.0f}")' "$1"
}

model_for() { case $1 in iq*) echo "$small" ;; *) echo "$large" ;; esac; }
ours() {
    rm -f "$work/ours.gguf"
    measured "$nibble" quantize "$1" --to "$2" --pure "${@:3}" --no-provenance -t "$threads" -o "$work/ours.gguf" -q
}
peer() {
    rm -f "$work/peer.gguf"
    measured "$LLAMA_CPP/llama-quantize" --pure --imatrix "$1.imatrix" "$1" "$work/peer.gguf" "$2" "$threads"
}
copy() {
    rm -f "$work/copy"
    measured cp "$1" "$work/copy"
}
copy_to_disk() {
    rm -f "$work/copy"
    measured sh -c 'cp "$1" "$2" && sync "$2"' sh "$1" "$work/copy"
}

large=$work/large.gguf small=$work/small.gguf
if [ -n "${LARGE:-}" ]; then ln -s "$(realpath "$LARGE")" "$large"; else
    "$nibble" random llama:layers=14,embd=1024,ff=2816,heads=16,kv=4,vocab=4096 -q -o "$large"; fi
if [ -n "${SMALL:-}" ]; then ln -s "$(realpath "$SMALL")" "$small"; else
    "$nibble" random llama:layers=4,embd=768,ff=2304,heads=12,kv=4,vocab=4096 -q -o "$small"; fi
for model in "$large" "$small"; do
    imatrix_for "$model" "$model.imatrix"
    cat "$model" >/dev/null
    printf '%s: %s bytes\n' "$(basename "$model")" "$(stat -Lc %s "$model")"
done

printf 'threads: %s, rounds: %s\n\n%-9s %-6s %8s %8s' "$threads" "$rounds" format model nibble "its MB"
[ -z "${LLAMA_CPP:-}" ] || printf ' %8s %8s %8s %8s  %s' peer "its MB" ratio cpu bytes
printf '\n'
for format in "${formats[@]}"; do
    model=$(model_for "$format")
    : >"$work/rounds" && : >"$work/cpu" && : >"$work/memory"
    same=same
    for ((round = 0; round < rounds; round++)); do
        a=$(ours "$model" "$format" --imatrix "$model.imatrix") b="0 0 0"
        if [ -n "${LLAMA_CPP:-}" ]; then
            b=$(peer "$model" "$format")
            cmp -s "$work/ours.gguf" "$work/peer.gguf" || same=DIFFER
        fi
        read -ra a <<<"$a" && read -ra b <<<"$b"
        echo "${a[0]} ${b[0]}" >>"$work/rounds"
        echo "${a[1]} ${b[1]}" >>"$work/cpu"
        echo "${a[2]} ${b[2]}" >>"$work/memory"
    done
    read -r seconds_a seconds_b ratio < <(medians <"$work/rounds")
    read -r _ _ cpu < <(medians <"$work/cpu")
    printf '%-9s %-6s %8s %8s' "$format" "$(basename "$model" .gguf)" "$seconds_a" "$(median_of 0 <"$work/memory")"
    [ -z "${LLAMA_CPP:-}" ] || printf ' %8s %8s %8s %8s  %s' "$seconds_b" "$(median_of 1 <"$work/memory")" "$ratio" "$cpu" "$same"
    printf '\n'
done

[ "${COPIES:-1}" != 0 ] || exit 0
printf '\nspeed as a share of a plain copy of %s (cp; then cp and sync): the same input read, as much or less written\n' "$(basename "$large")"
for format in q8_0 q4_0 bf16; do
    : >"$work/plain" && : >"$work/synced"
    for ((round = 0; round < 2 * rounds; round++)); do
        a=$(ours "$large" "$format") b=$(copy "$large")
        echo "${a%% *} ${b%% *}" >>"$work/plain"
        a=$(ours "$large" "$format") b=$(copy_to_disk "$large")
        echo "${a%% *} ${b%% *}" >>"$work/synced"
    done
    read -r seconds_a seconds_b ratio < <(medians <"$work/plain")
    printf '%-9s nibble %s s, cp %s s: %s' "$format" "$seconds_a" "$seconds_b" "$ratio"
    read -r seconds_a seconds_b ratio < <(medians <"$work/synced")
    printf ';   nibble %s s, cp and sync %s s: %s\n' "$seconds_a" "$seconds_b" "$ratio"
done
