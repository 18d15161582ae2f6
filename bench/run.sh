#!/usr/bin/env bash
# usage: bench/run.sh BUILD_DIR
# What the issue of speed comes down to: the whole study, then the part that llama.cpp's tools also do (quantize, perplexity,
# KL divergence, speed of the seven default levels), each as wall seconds. With LLAMA_CPP=DIR (a folder with llama-quantize,
# llama-perplexity and llama-bench) the peer does the same in turn. Prints, never judges: numbers depend on the machine.
set -euo pipefail
build=$1
nibble=$build/nibble
demo=models/demo
levels=(q8_0 q6_k q4_k q4_1 q4_0 q3_k q2_k)
threads=${THREADS:-$(nproc)}
rounds=${ROUNDS:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

seconds() { # seconds COMMAND...: wall time of a command whose output nobody reads
    local begin end
    begin=$(date +%s.%N)
    "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    end=$(date +%s.%N)
    awk -v a="$begin" -v b="$end" 'BEGIN { printf "%.2f", b - a }'
}
ours() {
    for level in "${levels[@]}"; do "$nibble" quantize demo --to "$level" -o "$work/n-$level.gguf" --force -q -t "$threads"; done
    "$nibble" eval demo $(printf "$work/n-%s.gguf " "${levels[@]}") -q -t "$threads" --text "$demo/eval.txt"
    "$nibble" bench demo $(printf "$work/n-%s.gguf " "${levels[@]}") -q -t "$threads"
}
peer() {
    local model=$demo/nibble-demo.bf16.gguf
    for level in "${levels[@]}"; do "$LLAMA_CPP/llama-quantize" "$model" "$work/p-$level.gguf" "$level" "$threads"; done
    "$LLAMA_CPP/llama-perplexity" -m "$model" -f "$demo/eval.txt" -c 512 -t "$threads" --kl-divergence-base "$work/base.kld"
    for level in "${levels[@]}"; do
        "$LLAMA_CPP/llama-perplexity" -m "$work/p-$level.gguf" -c 512 -t "$threads" --kl-divergence-base "$work/base.kld" --kl-divergence
    done
    for level in "${levels[@]}"; do "$LLAMA_CPP/llama-bench" -m "$work/p-$level.gguf" -t "$threads"; done
}

echo "threads: $threads"
for ((round = 1; round <= rounds; round++)); do
    printf 'round %d: study %s s' "$round" "$(seconds "$nibble" study demo -o "$work/study" --force -q -t "$threads")"
    printf ', the part llama.cpp does %s s' "$(seconds ours)"
    if [ -n "${LLAMA_CPP:-}" ]; then printf ', llama.cpp %s s (and a %s byte file)' "$(seconds peer)" "$(stat -c %s "$work/base.kld")"; fi
    printf '\n'
done
"$nibble" study demo -o "$work/study" --force -q -t "$threads" --json | jq -r '"peak memory beyond mapped files: \(.peak_anonymous_bytes / 1e6 | round) MB"'
