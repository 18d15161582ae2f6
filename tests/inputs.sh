# Broken inputs, each with its exit code and three lines that say what, where and what to do. Everything is made here from
# the built-in model.
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || skip_all "python3 makes the broken files"
cd "$work" || exit 1
echo 653 689 261 >ids
NIBBLE_BINARY=$nibble python3 - "$demo" <<'PY'
import struct, sys

data = open(sys.argv[1], "rb").read()

def save(name, content):
    open(name, "wb").write(content)

def tensor_fields(name):
    """Offsets of n_dims, the dimensions and the type of a tensor's description."""
    key = struct.pack("<Q", len(name)) + name
    at = data.index(key) + len(key)
    n_dims = struct.unpack_from("<I", data, at)[0]
    return at, at + 4, at + 4 + 8 * n_dims

def patched(at, new):
    return data[:at] + new + data[at + len(new):]

save("truncated.gguf", data[:len(data) // 2])
save("header.gguf", data[:2000])
save("empty.gguf", b"")
save("text.gguf", b"this is not a model\n" * 100)
save("unknown_arch.gguf", data.replace(b"qwen3.", b"qwexx.").replace(struct.pack("<Q", 5) + b"qwen3", struct.pack("<Q", 5) + b"qwexx"))
_, dims, kind = tensor_fields(b"blk.0.attn_q.weight")
save("removed_type.gguf", patched(kind, struct.pack("<I", 4)))
save("unknown_type.gguf", patched(kind, struct.pack("<I", 999)))
save("missing_tensor.gguf", data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
_, dims, _ = tensor_fields(b"blk.0.attn_k.weight")
save("wrong_shape.gguf", patched(dims, struct.pack("<QQ", 128, 256)))
save("no_tokenizer.gguf", data.replace(b"tokenizer.ggml.", b"tokenixer.ggml."))

# The payload of blk.0.attn_q.weight: NaN in bf16 in row 1, column 2.
n_kv_end = data.index(struct.pack("<Q", 19) + b"blk.0.attn_q.weight")
offset = struct.unpack_from("<Q", data, kind + 4)[0]
import subprocess, json, os
info = json.loads(subprocess.run([os.environ["NIBBLE_BINARY"], "inspect", sys.argv[1], "--json", "--tensor", "^blk.0.attn_q.weight$"],
                                 stdout=subprocess.PIPE, check=True).stdout)
at = info["tensors"][0]["offset"] + (256 + 2) * 2
save("nan.gguf", patched(at, b"\xc0\x7f"))
save("infinite.gguf", patched(at, b"\x80\xff"))
PY
[ -f infinite.gguf ] || fail "the broken files could not be made"

# --- broken models ---
for command in "inspect" "logits --ids ids -o o.f32" "quantize --to q4_0 -o o.gguf" "eval" "generate -p Once" "chat -p Hi" "bench -r 1 -p 8 -n 2" "tokenize x"; do
  read -r name rest <<<"$command"
  for file in truncated header empty text removed_type unknown_type; do
    # shellcheck disable=SC2086
    if [ "$name" = tokenize ]; then expect 3 tokenize $file.gguf x; else expect 3 "$name" $file.gguf $rest; fi
    stderr '^error: '; stderr "^  in: $file.gguf"; stderr '^  hint: '; no_stdout
  done
done
expect 0 inspect unknown_arch.gguf; stdout 'qwexx'; stdout 'ffn_down'
expect 7 logits unknown_arch.gguf --ids ids -o o.f32; stderr 'qwexx'
expect 0 quantize unknown_arch.gguf --to q8_0 -o q.gguf
expect 3 logits missing_tensor.gguf --ids ids -o o.f32; stderr 'attn_q'
expect 3 logits wrong_shape.gguf --ids ids -o o.f32; stderr 'attn_k'
expect 0 inspect missing_tensor.gguf; stderr '^warning: '
expect 3 tokenize no_tokenizer.gguf Hello; stderr 'tokenizer'
expect 3 generate no_tokenizer.gguf -p Hello; stderr 'hint'
expect 0 logits no_tokenizer.gguf --ids ids -o o.f32
for file in nan infinite; do
  expect 3 quantize $file.gguf --to q4_0 -o o.gguf; stderr 'attn_q'; absent o.gguf; absent o.gguf.partial
  expect 0 inspect $file.gguf --check; stderr '^warning: .*attn_q'
done
expect 3 study nan.gguf --to q4_0 --chunks 2 -o s; absent s
[ -z "$(find . -name '*.partial*' -o -name 's.*')" ] || fail "something was left behind"
expect 7 inspect hf:org/model; stderr '^  hint: '
expect 7 inspect .; stderr '^  hint: '
expect 4 inspect nothing.gguf; stderr 'No such file'
for command in "logits nothing.gguf --ids ids" "eval demo nothing.gguf" "study nothing.gguf"; do
  # shellcheck disable=SC2086
  expect 4 $command; stderr 'nothing.gguf'
done

# --- texts ---
: >empty.txt; echo Short. >short.txt; printf 'a\0b%.0s' {1..3000} >binary.txt
for file in empty short binary; do expect 3 eval demo --text $file.txt; stderr "^  in: $file.txt"; stderr '^  hint: '; done
expect 3 study demo --text short.txt -o s; absent s
expect 4 eval demo --text nothing.txt

# --- questions ---
head -n 3 "$root/models/demo/choice.jsonl" >broken.jsonl; echo '{"question": "no choices"' >>broken.jsonl
expect 3 eval demo --chunks 2 --choice broken.jsonl; stderr '4'
head -n 2 "$root/models/demo/choice.jsonl" >broken.jsonl; echo '{"question": "q", "choices": ["a", "b"], "answer": 7}' >>broken.jsonl
expect 3 eval demo --chunks 2 --choice broken.jsonl; stderr '3'
expect 3 eval demo --chunks 2 --choice empty.txt
expect 4 eval demo --chunks 2 --choice nothing.jsonl

# --- ids ---
echo '1 2 x3 4' >bad; expect 3 logits demo --ids bad -o o2.f32; stderr 'x3'; stderr 'bad @ 4'; absent o2.f32
echo '1 2 4096' >bad; expect 3 logits demo --ids bad -o o2.f32; stderr '4096'
echo '1 -2' >bad; expect 3 logits demo --ids bad -o o2.f32
echo '99999999999999999999999' >bad; expect 3 logits demo --ids bad -o o2.f32
expect 3 logits demo --ids empty.txt -o o2.f32; stderr 'no token ids'
expect 3 tokenize demo --detokenize '1 2 9999'

# --- outputs that cannot be ---
expect 4 quantize demo --to q4_0 -o missing/folder/o.gguf; stderr '^  in: '
expect 4 logits demo --ids ids -o missing/o.f32
if [ "$(id -u)" -ne 0 ]; then
  mkdir closed; chmod 500 closed
  expect 4 quantize demo --to q4_0 -o closed/o.gguf; stderr '[Pp]ermission'
  chmod 000 empty.gguf; expect 4 inspect empty.gguf; stderr '[Pp]ermission'
else
  skip "root may write anywhere: permissions are not tested"
fi
mkdir small
if mount -t tmpfs -o size=1m none small 2>/dev/null; then
  expect 4 quantize demo --to q8_0 -o small/o.gguf; stderr 'space'; [ -z "$(ls small)" ] || fail "left in small/: $(ls small)"
  yes 653 | head -n 200 >many; expect 4 logits demo --ids many -o small/o.f32; stderr 'space'; [ -z "$(ls small)" ] || fail "left in small/: $(ls small)"
  expect 4 study demo --to q8_0 --chunks 2 -n 4 -o small/s; [ -z "$(ls small)" ] || fail "left in small/: $(ls small)"
  umount small
else
  skip "no right to mount a small file system: a full disk is tested with /dev/full only"
fi
mkdir full; echo keep >full/file
expect 2 study demo --to q4_0 -o full; [ "$(cat full/file)" = keep ] || fail "the folder was touched"
expect 2 study demo --to q4_0 -o full --force; [ "$(cat full/file)" = keep ] || fail "a folder no study wrote was replaced"
finish
