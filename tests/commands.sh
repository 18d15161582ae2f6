# Every command on the built-in model: what it prints, and that the parts agree with each other.
. "$(dirname "$0")/lib.sh"
command -v jq >/dev/null || skip "no jq: members of documents are not looked at"
has_jq() { command -v jq >/dev/null; }

# --- inspect ---
expect 0 inspect demo; stdout '5.77 M parameters'; stdout 'qwen3'; stdout 'ffn_down'; stdout '4096 tokens'; no_stderr
[ "$(wc -l <"$out")" -le 24 ] || fail "more than 24 lines"
expect 0 inspect demo --tensor 'blk\.0\.attn_[qk]\.'; stdout '^blk.0.attn_q.weight +attn_q +bf16 +256 x 256'
equals "$(grep -c '^blk' "$out")" 2 'tensors that match'
expect 2 inspect demo --tensor '('; stderr 'extended regular expression'
expect 0 inspect demo --check --weights; stdout 'kurtosis'; stderr 'checked'
expect 0 inspect "$demo" --json
if has_jq; then
  equals "$(field '.schema')" nibble.inspect/1 schema
  equals "$(field '([.tensors[].bytes] | add) == ([.by_role[].bytes] | add)')" true "sums by tensor and by role"
  equals "$(field '.n_params')" 5771264 n_params
  equals "$(field '.tokenizer.n_vocab')" 4096 n_vocab
  equals "$(field '.metadata."tokenizer.ggml.tokens" | .type, .n, (.first | length)' | xargs)" "string 4096 4" "summary of an array"
  equals "$(field '.tensors[0] | has("name") and has("role") and has("layer") and has("type") and has("shape") and has("offset")')" true "members of a tensor"
  expect 0 inspect demo --json -v
  equals "$(field '.metadata."tokenizer.ggml.tokens" | length')" 4096 "the whole array with -v"
fi

# --- formats ---
expect 0 formats; for format in q8_0 q4_k q2_k bf16; do stdout "^$format "; done
[ "$(wc -l <"$out")" -le 24 ] || fail "more than 24 lines"
expect 0 formats q4_K; stdout '^q4_k +4.5 +256 +144 +12'
expect 2 formats q4_z; stderr 'did you mean'

# --- tokenize ---
text='Hello there, 123 friends!  <|im_end|>'
expect 0 tokenize demo "$text"; cp "$out" "$work/ids"
last='detokenize'
"$nibble" tokenize demo --detokenize -f "$work/ids" >"$out"; equals "$(cat "$out")" "$text" "there and back"
expect 0 tokenize demo --special "$text"; stdout '(^| )2$'
expect 0 tokenize demo --pieces "Hello there"; stdout $'^[0-9]+\t there$'
printf 'Hello there' >"$work/t.txt"
expect 0 tokenize demo -f "$work/t.txt"; cp "$out" "$work/a"
expect 0 tokenize demo 'Hello there'; cmp -s "$out" "$work/a" || fail "-f and TEXT differ"
"$nibble" tokenize demo <"$work/t.txt" | cmp -s - "$work/a" || fail "standard input and TEXT differ"
expect 2 tokenize demo Hello there; stderr 'quotes'
if has_jq && [ -f models/demo/golden.json ]; then
  last='golden.json'
  n=$(jq '.prompts | length' models/demo/golden.json)
  for ((i = 0; i < n; i++)); do
    jq -j ".prompts[$i].text" models/demo/golden.json >"$work/g.txt"
    expect 0 tokenize demo --special -f "$work/g.txt"
    equals "$(cat "$out")" "$(jq -r ".prompts[$i].tokens | join(\" \")" models/demo/golden.json)" "tokens of golden prompt $i"
  done
fi

# --- logits ---
echo '653 689 261 490' >"$work/ids"
expect 0 logits demo --ids "$work/ids" --exact -o "$work/l.f32"; stdout '4 tokens x 4096'
equals "$(stat -c %s "$work/l.f32")" $((4 * 4096 * 4)) "size of the logits"
"$nibble" logits demo --exact -t 1 --ids - <"$work/ids" | cmp -s - "$work/l.f32" || fail "stdout and file, or 1 and 2 threads, differ"
expect 2 logits demo --ids "$work/ids" -o "$work/l.f32"; stderr 'exists'
expect 2 logits demo --ids "$work/ids" -o "$work/ids" --force; stderr 'input'
expect 2 logits demo -o "$work/m.f32"; stderr -- '--ids'
expect 0 logits demo --ids "$work/ids" -o "$work/l.f32" --force --json; json
if command -v python3 >/dev/null && [ -f models/demo/golden_logits.f32 ]; then
  last='golden logits'
  python3 - "$work/ids" >"$work/n" <<'PY'
import json, sys
g = json.load(open("models/demo/golden.json"))["prompts"][0]
open(sys.argv[1], "w").write(" ".join(map(str, g["tokens"])))
PY
  expect 0 logits demo --ids "$work/ids" --exact -o "$work/l.f32" --force
  python3 - "$work/l.f32" >"$out" 2>"$err" <<'PY' || fail "logits are far from the golden ones"
import array, sys
got, want = array.array("f"), array.array("f")
data = open(sys.argv[1], "rb").read()
got.frombytes(data)
want.frombytes(open("models/demo/golden_logits.f32", "rb").read(len(data)))
worst = max(abs(a - b) for a, b in zip(got, want))
print("largest difference", worst)
sys.exit(0 if len(got) == len(want) and worst < 2e-3 else 1)
PY
fi

# --- generate and chat ---
expect 0 generate demo -p "Once upon a time" -n 12; cp "$out" "$work/g"
expect 0 generate demo -p "Once upon a time" -n 12 -t 1; cmp -s "$out" "$work/g" || fail "the text depends on the threads"
expect 0 generate demo -p "Once upon a time" --probs 3; stdout '^1 +" there" +[0-9.]+%'; equals "$(wc -l <"$out")" 4 'rows'
expect 0 generate demo demo -p "Once" --probs 2 --json; json
has_jq && equals "$(field '.models | length, (.[0].next | length)' | xargs)" "2 2" "models and next tokens"
expect 0 generate demo demo -p "Once" -n 3; equals "$(grep -c '^== demo' "$out")" 2 headings
expect 0 generate demo -p "Once" -n 8 --temp 1 --seed 3; cp "$out" "$work/g"
expect 0 generate demo -p "Once" -n 8 --temp 1 --seed 3; cmp -s "$out" "$work/g" || fail "the same seed gives another text"
expect 0 generate demo -p "Once upon a time" -n 12 --kv q8_0; cp "$out" "$work/g"
expect 0 generate demo -p "Once upon a time" -n 12 --kv q8_0 -t 1; cmp -s "$out" "$work/g" || fail "the text depends on the threads"
expect 2 generate demo -p "Once" --kv q4_0; stderr 'f16'
expect 0 inspect demo --json; f16=$(field .memory.kv_per_token)
expect 0 inspect demo --json --kv q8_0; equals "$(field .memory.kv_per_token)" $((f16 * 34 / 64)) 'bytes of a position in q8_0'
expect 0 random llama:layers=1,embd=80,ff=96,heads=2,vocab=64 -o "$work/odd.gguf" -q
expect 7 bench "$work/odd.gguf" -p 4 -n 0 -r 1 -q --kv q8_0; stderr '^error: .*heads'; stderr 'f16'
expect 0 eval demo --chunks 2 -q --kv q8_0 --json; equals "$(field .kv)" q8_0 'the cache of eval'
expect 2 generate demo; stderr 'no prompt'
expect 2 generate demo -p ''; stderr '^error: '
expect 0 chat demo -p "What is the capital of England?"; stdout '^The capital of England is London\.$'
expect 0 chat demo -p "What is the capital of England?" --json; json
has_jq && equals "$(field .text)" "The capital of England is London." text
last='chat, line by line'
printf 'What is the capital of England?\n/reset\nWhat is 7 + 5?\n/exit\nnever read\n' | "$nibble" chat demo >"$out" 2>"$err"
equals $? 0 'exit code'; equals "$(cat "$out")" $'The capital of England is London.\n7 + 5 = 12.' 'answers'

# --- bench ---
expect 0 bench demo -p 16 -n 4 -r 2 -q; stdout 'pp16'; stdout 'tg4'
expect 0 bench demo -p 16 -n 4 -r 1 -q --kv q8_0; stdout 'q8_0'
expect 0 bench demo -p 16 -n 0 -r 2 --json; json
has_jq && equals "$(field '.schema, (.results | length), (.results[0].runs | length)' | xargs)" "nibble.bench/1 1 2" results
expect 2 bench demo -p 0 -n 0
expect 0 bench demo -p 0 -n 2 -r 1 -t 1,2 --batch 1,3 --depth 0,8 --csv -q
equals "$(wc -l <"$out" | xargs)" 9 "a line for every combination"; stdout 'tg2 x3 @ d8,8,3,2,'
expect 0 bench demo -p 8 -n 2 -r 1 --to q4_0 --md -q; stdout '^\| demo-q4_0 \|'; stdout '^\|---\|---:\|'
equals "$(find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'nibble-bench-*' -newer "$out" | wc -l | xargs)" 0 "no folder is left"
for bad in "-t 0" "-t 1,x" "-t ," "--depth -1" "--batch 1,,2" "--batch 513" "--to nope" "--to q4_0,q4_0"; do
    expect 2 bench demo $bad -n 1
done
finish
