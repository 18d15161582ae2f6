# weights, diff and random from the outside: what they print, their documents, their refusals.
. "$(dirname "$0")/lib.sh"
command -v jq >/dev/null || skip_all "jq reads the documents"
cd "$work" || exit 1

# --- random ---
tiny=llama:layers=2,embd=256,ff=512,heads=4,kv=2,vocab=500,ctx=64
expect 0 random $tiny -o a.gguf --seed 3 -t 1; stdout '^wrote +a.gguf'
expect 0 random $tiny -o b.gguf --seed 3 -t 3
cmp -s a.gguf b.gguf || fail "the number of threads shows in the file"
expect 0 random $tiny -o c.gguf --seed 4 --json; json
equals "$(field .schema)" nibble.random/1 schema
equals "$(field .bytes)" "$(stat -c %s c.gguf)" bytes
cmp -s a.gguf c.gguf && fail "the seed does not show in the file"
expect 2 random $tiny -o a.gguf; stderr 'exists'; stderr 'force'
expect 2 random $tiny; stderr '-o'
expect 2 random $tiny -o -
expect 2 random nope -o x.gguf; stderr 'llama, qwen2, qwen3'
expect 2 random llama:huge -o x.gguf; stderr '8b'
expect 2 random llama:embd=0 -o x.gguf; stderr 'embd is 0, outside 1'
expect 2 random llama:heads=3 -o x.gguf
expect 2 random llama --type q4_0 -o x.gguf
expect 4 random llama:layers=512,embd=1048576,ff=16777216 -o x.gguf; stderr 'space'
expect 4 random llama -o no/such/folder/x.gguf
absent x.gguf; absent x.gguf.partial
echo 1 2 499 >ids
expect 0 logits a.gguf --ids ids -o logits.f32
equals "$(stat -c %s logits.f32)" 6000 "bytes of logits"
expect 0 inspect a.gguf; stdout '2 layers, hidden 256, FFN 512'
expect 3 generate a.gguf -p Hi; stderr 'no vocabulary'
expect 3 tokenize a.gguf Hi
expect 0 inspect a.gguf --check
expect 0 quantize a.gguf --to q4_0 -o a4.gguf

# --- weights ---
expect 0 weights demo; stdout '^role '; stdout '^ffn_down '; stdout 'row [0-9]+, column [0-9]+'; stdout '█'
[ "$(wc -l <"$out")" -le 24 ] || fail "more than 24 lines"
LC_ALL=C expect 0 weights demo; stdout '#'
LC_ALL=C grep -q '[^ -~]' "$out" && fail "not ASCII in the C locale"
expect 0 weights demo -v --tensor 'blk.0.*norm'; stdout 'blk.0.attn_norm.weight'
expect 0 weights a.gguf c.gguf --by whole; stdout '^a '; stdout '^c '
expect 0 weights a.gguf a4.gguf --json; json
equals "$(field .schema)" nibble.weights/1 schema
equals "$(field '[.weights[].model]|unique|join(" ")')" "a.gguf a4.gguf" models
equals "$(field '[.weights[]|select(.role=="ffn_up" and .model=="a.gguf")|.n,.n_tensors]|@csv')" 262144,2 "weights of a role"
equals "$(field '[.weights[]|(.histogram.counts|add)==.n]|all')" true "sum of every histogram"
equals "$(field '.weights[0].histogram|(.edges|length)-(.counts|length)')" 1 edges
equals "$(field '.weights[0].top[0]|.row*256+.column==.index')" true position
equals "$(field '.weights[0].channels|length')" 16 channels
expect 0 weights demo --by whole --json; cp "$out" whole
expect 0 inspect demo --weights --json
equals "$(jq -c '.weights[0]|[.n,.mean,.kurtosis,.top]' whole)" "$(field '.weights[0]|[.n,.mean,.kurtosis,.top]|tojson')" "weights of inspect"
expect 2 weights demo --tensor 'no_such'; stderr 'no tensor matches'
expect 2 weights demo --tensor '('
expect 2 weights demo --by layer
expect 2 weights
expect 4 weights missing.gguf

# --- diff ---
expect 0 diff a.gguf a4.gguf; stdout '^tensor '; stdout '^whole'; stdout '16/16'
expect 0 diff a.gguf a4.gguf --json; json
equals "$(field .schema)" nibble.diff/1 schema
equals "$(field '.tensors|length')" 21 tensors
equals "$(field '[.tensors[].rel_rmse]|.==(sort|reverse)')" true order
equals "$(field '.whole|.rel_rmse>0.01 and .rel_rmse<0.2 and .cosine>0.98')" true "error of 4 bits"
equals "$(field '[.tensors[]|select(.type_b=="q4_0")|.codes_used_b]|unique|join(" ")')" 1 "codes of q4_0"
equals "$(field '.tensors[]|select(.name=="output_norm.weight")|.rel_rmse')" 0 "a copied tensor"
expect 0 diff a.gguf b.gguf; stdout '21 of them identical'
expect 0 diff a.gguf a4.gguf --tensor ffn_down -v; stdout 'blk.1.ffn_down'
grep -q attn "$out" && fail "--tensor lets others through"
expect 0 random ${tiny/kv=2/kv=2,tied=1} -o tied.gguf --seed 3
expect 0 diff a.gguf tied.gguf; stdout 'only in A: output.weight, bf16'
expect 2 diff a.gguf demo; stderr 'token_embd.weight'; stderr 'hint: '
expect 2 diff a.gguf a.gguf --tensor nothing
expect 2 diff a.gguf
expect 4 diff a.gguf missing.gguf
expect 3 diff a.gguf ids
expect 3 weights ids
finish
