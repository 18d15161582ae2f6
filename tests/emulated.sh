# The kernel check on processors that this machine is not, in short: those without the higher levels of x86-64, and ARM,
# for which tests/standalone is cross-compiled. An instruction that the processor lacks ends a check.
. "$(dirname "$0")/lib.sh"
export NIBBLE_CHECK_BLOCKS=0
unset NIBBLE_SHARED

# run LEVELS command...: the check passes, and says that exactly these levels run
run() {
  local levels=$1 seen
  shift
  last="$*"
  checks=$((checks + 1))
  timeout -k 5 400 "$@" >"$out" 2>"$err" || fail "the check failed: $(tail -n 3 "$out")"
  seen=$(sed -n '1s/.*levels: \(.*\); chosen.*/\1/p' "$out" | sed 's/ *[a-z0-9_]* (does not run here)//g')
  [ -z "$levels" ] || equals "$seen" "$levels" "levels that run"
}

built=$(dirname "$nibble")
if ! command -v qemu-x86_64 >/dev/null; then
  skip "no qemu-x86_64: lower levels of x86-64"
elif [ "$(uname -m)" = x86_64 ]; then
  run "portable" qemu-x86_64 -cpu Nehalem "$built/tests/test_kernel_check"
  run "portable avx2" qemu-x86_64 -cpu max,-avx512f "$built/tests/test_kernel_check"
fi

if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
  skip "no qemu-aarch64 or no aarch64-linux-gnu-gcc: levels of ARM"
else
  last="building for aarch64" arm=$built/aarch64
  if cmake -S tests/standalone -B "$arm" -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS=-O1 >"$out" 2>"$err" &&
    cmake --build "$arm" -j "$(nproc)" >>"$out" 2>>"$err"; then
    run "portable neon" qemu-aarch64 -cpu cortex-a57 "$arm/test_kernel_check"
    run "portable neon neon_dotprod neon_i8mm" qemu-aarch64 -cpu max "$arm/test_kernel_check"
    # Attention and large groups are left to tools/check_compilers.sh.
    NIBBLE_ONLY="test_levels test_dp4 test_exp test_norm test_elements test_rope test_logits test_embedding test_not_finite test_threads" \
      run "" qemu-aarch64 -cpu max "$arm/test_kernels"
  else
    fail "$(grep -E 'error|Error' "$out" | head -n 3)"
  fi
fi
finish
