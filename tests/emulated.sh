# The kernel check where it was not built to run: on processors that lack the higher levels, on ARM, and as compilers make
# it without optimization. Short runs; what is not installed is said and skipped. With NIBBLE_MATRIX (make test-all) every
# compiler builds it for every level; else the unoptimized build has the portable level alone.
. "$(dirname "$0")/lib.sh"
check=$(dirname "$nibble")/tests/test_kernel_check
export NIBBLE_CHECK_BLOCKS=${NIBBLE_CHECK_BLOCKS:-700}

# run NAME LEVELS command...: the check passes and says that exactly these levels run
run() {
  local name=$1 levels=$2
  shift 2
  last="$*"
  checks=$((checks + 1))
  "$@" >"$out" 2>"$err" || { fail "the kernel check failed: $(tail -3 "$out")"; return; }
  local seen
  seen=$(sed -n '1s/.*levels: \(.*\); chosen.*/\1/p' "$out" | sed 's/ [a-z0-9_]* (does not run here)//g')
  equals "$seen" "$levels" "levels that run on $name"
}
