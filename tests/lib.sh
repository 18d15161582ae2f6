# Shared by the scripts that test the program: bash SCRIPT path/to/nibble, from the project's root.
#
#   expect CODE nibble-arguments...   runs it; stdout in $out, stderr in $err; fails unless the exit code is CODE
#   stdout PATTERN / stderr PATTERN   an extended regular expression must match what the last run printed
#   no_stdout                         the last run printed nothing on stdout
#   json                              stdout of the last run is one JSON document
#   fail MESSAGE                      counts a failure
#   finish                            last line of a script: exit code 0 or 1
set -u
nibble=$(realpath "$1")
root=$PWD
shared=${NIBBLE_SHARED:-$root/../shared}
work=$(mktemp -d "${TMPDIR:-/tmp}/nibble-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
out=$work/stdout err=$work/stderr
demo=$root/models/demo/nibble-demo.bf16.gguf
failures=0 checks=0
last='(nothing)'
unset NIBBLE_CPU NO_COLOR
export LC_ALL=C.UTF-8

fail() {
  failures=$((failures + 1))
  echo "FAILED: $last"
  echo "  $1"
  sed 's/^/  stderr: /' "$err" 2>/dev/null | head -5
}
skip_all() { echo "skipped: $1"; exit 77; }
skip() { echo "skipped: $1"; }

expect() {
  local code=$1 got
  shift
  last="nibble $*"
  checks=$((checks + 1))
  timeout -k 5 "${limit:-${NIBBLE_TIME_LIMIT:-60}}" "$nibble" "$@" >"$out" 2>"$err" </dev/null
  got=$?
  [ "$got" -eq "$code" ] || fail "exit code $got instead of $code"
}
stdout() { checks=$((checks + 1)); grep -Eq -- "$1" "$out" || fail "stdout lacks: $1"; }
stderr() { checks=$((checks + 1)); grep -Eq -- "$1" "$err" || fail "stderr lacks: $1"; }
no_stdout() { checks=$((checks + 1)); [ ! -s "$out" ] || fail "stdout is not empty"; }
no_stderr() { checks=$((checks + 1)); [ ! -s "$err" ] || fail "stderr is not empty"; }
absent() { checks=$((checks + 1)); [ ! -e "$1" ] || fail "$1 is there"; }
json() {
  checks=$((checks + 1))
  if command -v jq >/dev/null; then jq -e . <"$out" >/dev/null 2>&1 || fail "stdout is not JSON"
  else python3 -m json.tool <"$out" >/dev/null 2>&1 || fail "stdout is not JSON"; fi
}
# The value of a jq expression over the last stdout; needs jq.
field() { jq -r "$1" <"$out" 2>/dev/null; }
equals() { checks=$((checks + 1)); [ "$1" = "$2" ] || fail "$3: \"$1\" instead of \"$2\""; }

finish() {
  echo "$checks checks, $failures failed"
  [ "$failures" -eq 0 ]
  exit
}
