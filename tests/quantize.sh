# quantize and eval: files, names, refusals, documents.
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

expect 0 quantize demo --to q4_0 --dry-run; stdout 'q4_0'; stdout 'q6_k'; absent nibble-demo-q4_0.gguf
planned=$("$nibble" quantize demo --to q4_0 --dry-run --json | jq .bytes_out 2>/dev/null)
expect 0 quantize demo --to Q4_0; stdout '^quantized .*bpw'; stdout 'nibble-demo-q4_0.gguf'
[ "$(wc -l <"$out")" -le 5 ] || fail "more than five lines"
[ -z "$planned" ] || equals "$(stat -c %s nibble-demo-q4_0.gguf)" "$planned" "size as planned"
absent nibble-demo-q4_0.gguf.partial
expect 2 quantize demo --to q4_0; stderr 'exists'; stderr 'force'
expect 0 quantize demo --to q4_0 --force -t 1 -o again.gguf
cmp -s again.gguf nibble-demo-q4_0.gguf || fail "the bytes depend on the threads"
expect 0 quantize demo --to q4_0 --cpu portable -o portable.gguf
cmp -s portable.gguf nibble-demo-q4_0.gguf || fail "the bytes depend on the level"
expect 0 quantize demo --to q4_0 --pure -o pure.gguf
[ "$(stat -c %s pure.gguf)" -lt "$(stat -c %s again.gguf)" ] || fail "--pure changes nothing"
expect 0 quantize demo --to q8_0,q2_k -o out/; [ -f out/nibble-demo-q8_0.gguf ] && [ -f out/nibble-demo-q2_k.gguf ] || fail "no two files"
expect 2 quantize demo --to q8_0,q2_k -o one.gguf
cp "$demo" Model-BF16.gguf
expect 0 quantize Model-BF16.gguf --to q8_0 --json; json; [ -f Model-q8_0.gguf ] || fail "Model-q8_0.gguf is not there"
if command -v jq >/dev/null; then
  equals "$(field '.schema, .n_tensors, (.tensors | length)' | xargs)" "nibble.quantize/1 68 68" "the document"
  equals "$(field '.bytes_out')" "$(stat -c %s Model-q8_0.gguf)" "bytes_out"
fi
ln -s Model-BF16.gguf link.gguf; cp Model-BF16.gguf before
expect 2 quantize Model-BF16.gguf --to q8_0 -o link.gguf --force; stderr 'input'
cmp -s Model-BF16.gguf before || fail "the input was changed"
expect 2 quantize demo --to q4_0 -o /dev/null --force; [ -c /dev/null ] || fail "/dev/null is no device any more"
expect 2 quantize demo --to q4_o; stderr 'hint: did you mean q4_'
expect 2 quantize demo --to q4_0,; stderr '^error: '
expect 2 quantize demo --to q4_0,q4_0; stderr 'twice'
expect 2 quantize demo; stderr -- '--to'
expect 0 quantize demo --to article --dry-run --json -o sets/; json; equals "$(grep -c '"dry_run"' "$out")" 6 "members of the article's set"
expect 2 quantize demo --to grid,q4a --dry-run; stderr 'q4a is in the list twice'
expect 2 quantize demo --to grid -o one.gguf; stderr 'folder'
expect 0 quantize demo --to q8_0 --no-provenance -o plain.gguf
if command -v jq >/dev/null; then
  expect 0 inspect plain.gguf --json; equals "$(field '[.metadata | keys[] | select(startswith("nibble."))] | length')" 0 "nibble's own metadata"
fi

# --- quantized twice ---
expect 0 quantize plain.gguf --to q4_0 -o twice.gguf; stderr 'quantized already \(q8_0\)'
expect 0 quantize plain.gguf --to q8_0 -o copied.gguf; no_stderr

# --- several at once, split, resumed ---
expect 2 quantize demo --to q8_0,q8_0 -o twice/; stderr 'twice'
expect 0 quantize demo --to q4_0 --split-size 1M -o cut.gguf; stdout 'cut-00001-of-0000[0-9].gguf and [0-9] more'; absent cut.gguf
expect 0 quantize cut-00001-of-0000?.gguf --to q4_0 -o joined.gguf --no-provenance
expect 0 quantize demo --to q4_0 -o straight.gguf --no-provenance
cmp -s joined.gguf straight.gguf || fail "split and joined again it is another file"
expect 2 inspect cut-00002-of-0000?.gguf; stderr 'the first'
expect 2 quantize demo --to q4_0 -o straight.gguf --resume; stderr 'exists'; absent straight.gguf.journal
"$nibble" quantize demo --to q3_k -o slow.gguf >/dev/null 2>&1 &
sleep 0.1; kill -9 $! 2>/dev/null; wait $! 2>/dev/null
if [ -f slow.gguf.journal ]; then
  expect 2 quantize demo --to q4_k -o slow.gguf --resume; stderr 'another recipe'
fi
[ -f slow.gguf ] && [ ! -f slow.gguf.journal ] || expect 0 quantize demo --to q3_k -o slow.gguf --resume
rm -f whole.gguf; expect 0 quantize demo --to q3_k -o whole.gguf
cmp -s slow.gguf whole.gguf || fail "resumed it is another file"
absent slow.gguf.partial; absent slow.gguf.journal
"$nibble" quantize demo --to q3_k -o stopped.gguf >/dev/null 2>&1 &
sleep 0.1; kill -INT $! 2>/dev/null; wait $! 2>/dev/null; absent stopped.gguf.partial; absent stopped.gguf.journal

# --- no space left: here a limit on the size of files ---
(ulimit -f 1000; expect 4 quantize demo --to q4_0 -o full.gguf; stderr 'cannot write'; exit $failures) || failures=$((failures + 1))
absent full.gguf; absent full.gguf.partial; absent full.gguf.journal

# --- eval ---
expect 0 eval demo nibble-demo-q4_0.gguf out/nibble-demo-q2_k.gguf --chunks 3 --json -o result.json; json; cmp -s "$out" result.json || fail "-o and stdout differ"
if command -v jq >/dev/null; then
  equals "$(field '.schema, .n_chunks, .ctx, (.models | length)' | xargs)" "nibble.eval/1 3 512 2" "the document"
  equals "$(field '.models[0].kld.mean < .models[1].kld.mean and .models[0].kld.mean > 0')" true "2 bits are further away than 4"
  equals "$(field '.reference.ppl > 1 and .reference.ppl < 2')" true "perplexity of the reference"
fi
head -c 12000 "$root/models/demo/eval.txt" >text.txt
expect 0 eval demo nibble-demo-q4_0.gguf --text text.txt --ctx 128 --chunks 4; stdout 'same top'; stdout '±'; no_stderr
expect 0 eval demo --text text.txt --chunks 2; stdout 'reference'
head -n 20 "$root/models/demo/choice.jsonl" >few.jsonl
expect 0 eval demo nibble-demo-q4_0.gguf --text text.txt --chunks 2 --choice few.jsonl -v; stdout '20 questions'; stdout 'McNemar'
finish
