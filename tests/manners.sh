# The program's manners: options, help, exit codes, streams, signals.
. "$(dirname "$0")/lib.sh"

# --- help ---
expect 0; stdout 'usage: nibble COMMAND'; no_stderr
lines=$(wc -l <"$out"); [ "$lines" -le 24 ] || fail "the overview has $lines lines"
commands="study inspect formats quantize eval bench logits chat generate tokenize cpu help man completion"
for command in $commands; do
  expect 0 "$command" -h; stdout "^nibble $command"; no_stderr
  lines=$(wc -l <"$out"); [ "$lines" -le 24 ] || fail "-h has $lines lines"
  [ "$(awk '{ if (length($0) > 100) print }' "$out" | wc -l)" -eq 0 ] || fail "-h is wider than 100 columns"
  expect 0 "$command" --help; stdout 'examples'; stdout 'exit codes'
  expect 0 help "$command"; stdout "nibble $command"
  expect 0 man "$command"; stdout "^.TH NIBBLE"
done
expect 0 --version; stdout '^nibble [0-9]+\.[0-9]+\.[0-9]+$'
expect 0 man; stdout 'SH EXIT STATUS'
for shell in bash zsh fish; do expect 0 completion $shell; stdout quantize; done
expect 2 completion tcsh; stderr '^  hint:'
"$nibble" completion bash >"$work/completion"; bash -n "$work/completion" || fail "the bash completion does not parse"
words=$(bash -c '. "$0"; COMP_WORDS=(nibble qua); COMP_CWORD=1; _nibble; echo "${COMPREPLY[*]}"' "$work/completion")
equals "$words" quantize "completion of qua"
words=$(bash -c '. "$0"; COMP_WORDS=(nibble eval --col al); COMP_CWORD=3; COMP_WORDS[2]=--color; _nibble; echo "${COMPREPLY[*]}"' "$work/completion")
equals "$words" always "completion of --color al"

# --- mistakes on the command line ---
expect 2 quantise demo; stderr '^error: '; stderr 'did you mean nibble quantize\?'; no_stdout
expect 2 --quantize
expect 2 formats --jsn; stderr 'did you mean --json\?'
expect 2 formats -z; stderr '^  hint: nibble formats -h'
expect 2 formats --json=1; stderr 'takes no value'
expect 2 eval; stderr 'usage: nibble eval'
expect 2 inspect demo demo
expect 2 eval demo --ctx; stderr 'needs a value'
expect 2 eval demo --ctx 12x; stderr 'will not do'
expect 2 eval demo --ctx=-4
expect 2 bench demo -r 0
expect 2 cpu --color sometimes; stderr 'auto\|always\|never'
expect 2 cpu -t 0; stderr 'at least 1'
expect 2 cpu --cpu nonsense; stderr '^error: '
NIBBLE_CPU=nonsense expect 2 formats
expect 0 cpu --no-measure -t 10000; stderr '^warning: .*10000'; stdout 'threads'
expect 0 cpu --no-measure -t1; stdout '1 threads in use'
expect 0 --help

# Options before and after words, joined and apart, undone, ended by --.
expect 0 tokenize --pieces demo -- --hello; stdout '^[0-9]+'
expect 0 tokenize demo Hello --pieces --no-pieces; stdout '^[0-9 ]+$'
expect 0 cpu --no-measure --cpu=portable; stdout 'portable \(in use\)'
NIBBLE_CPU=portable expect 0 cpu --no-measure; stdout 'portable \(in use\)'
expect 0 generate demo -p=Once -n3 --temp=0
expect 0 generate -qvn 2 -p Once demo

# --- errors as JSON ---
expect 3 inspect models/demo/README.md --json; json; stderr '^error: '; stderr '^  in: '
if command -v jq >/dev/null; then
  equals "$(field .error.code)" 3 "error.code"
  equals "$(field '.error | has("message") and has("file") and has("offset") and has("field") and has("hint")')" true "members"
fi
[ "$(wc -l <"$err")" -le 3 ] || fail "an error has more than three lines"
expect 2 formats --json --nonsense; json
expect 2 nonsense --json; json
expect 4 inspect "$work/nothing.gguf" --json; json

# --- results as JSON ---
for line in "inspect demo" "formats" "cpu --no-measure" "tokenize demo hello" "tokenize demo --pieces hello"; do
  # shellcheck disable=SC2086
  expect 0 $line --json; json; stdout '"schema"'
done
expect 0 formats -o "$work/formats.json" -q; stdout '^q4_k'
out=$work/formats.json json
expect 2 formats -o "$work/formats.json"; stderr '^  hint: --force'
expect 0 formats -o "$work/formats.json" --force

# --- streams ---
if [ -e /dev/full ]; then
  last='formats > /dev/full'
  "$nibble" formats >/dev/full 2>"$err"; equals $? 4 'exit code of a full disk'; stderr 'No space left'
  "$nibble" formats --json >/dev/full 2>"$err"; equals $? 4 'exit code of a full disk, JSON'
fi
last='inspect | head'
"$nibble" inspect demo -v 2>"$err" | head -n 1 >/dev/null; equals "${PIPESTATUS[0]}" 0 'exit code after a closed pipe'; no_stderr
"$nibble" generate demo -p Once -n 64 2>"$err" | head -c 4 >/dev/null; equals "${PIPESTATUS[0]}" 0 'exit code after a closed pipe, text'; no_stderr

# --- colours and progress ---
expect 0 formats --color always; stdout $'\033\\[1m'
expect 0 formats --color auto; grep -q $'\033' "$out" && fail "colours in a pipe"
expect 0 quantize demo --to q4_0 -o "$work/p.gguf" --progress always; stderr 'quantize'
expect 0 quantize demo --to q4_0 -o "$work/p.gguf" --force --progress json
if command -v jq >/dev/null; then
  checks=$((checks + 1))
  [ "$(jq -s 'map(select(.event == "progress")) | length' <"$err")" -gt 0 ] || fail "no progress events"
fi
expect 0 quantize demo --to q4_0 -o "$work/p.gguf" --force; no_stderr

# --- interruption: the flag first, then at once ---
last='eval, interrupted'
"$nibble" eval demo >"$out" 2>"$err" & pid=$!
sleep 1; kill -INT $pid; wait $pid; equals $? 130 'exit code of an interrupted eval'; stderr '^error: '
last='study, interrupted'
(cd "$work" && exec "$nibble" study demo --to q4_0 -q) >"$out" 2>"$err" & pid=$!
sleep 2; kill -TERM $pid; wait $pid; equals $? 130 'exit code of an interrupted study'
[ -z "$(find "$work" -name 'nibble-study*')" ] || fail "an interrupted study left $(find "$work" -name 'nibble-study*' | head -1)"

# --- a terminal ---
if script -qec true /dev/null </dev/null >/dev/null 2>&1; then
  echo 1 2 3 >"$work/ids"
  last='logits on a terminal'
  script -qec "'$nibble' logits demo --ids '$work/ids'" /dev/null </dev/null >"$out" 2>&1
  equals $? 2 'exit code of binary on a terminal'; stdout 'not for a terminal'
  last='colours on a terminal'
  script -qec "TERM=xterm '$nibble' formats q4_k" /dev/null </dev/null >"$out" 2>&1; stdout $'\033\\[1m'
  script -qec "TERM=xterm NO_COLOR=1 '$nibble' formats q4_k" /dev/null </dev/null >"$out" 2>&1
  grep -q $'\033\\[1m' "$out" && fail "colours in spite of NO_COLOR"
else
  skip "no script(1) or no pseudo-terminals: terminals are not tested"
fi
finish
