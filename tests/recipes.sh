# quantize: importance matrices, overrides, recipe files.
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

# An importance matrix in the older format for every matrix of the demo's layers: columns of differing importance.
python3 - demo.dat one.dat <<'P' || skip_all "no python3"
import struct, sys
def entry(name, n):
    return struct.pack(f"<i{len(name)}sii{n}f", len(name), name.encode(), 1, n, *(1 + i * 37 % 101 for i in range(n)))
shapes = {"attn_q": 256, "attn_k": 256, "attn_v": 256, "attn_output": 256, "ffn_gate": 256, "ffn_up": 256, "ffn_down": 768}
entries = [entry(f"blk.{layer}.{stem}.weight", n) for layer in range(6) for stem, n in shapes.items()]
open(sys.argv[1], "wb").write(struct.pack("<i", len(entries)) + b"".join(entries) + struct.pack("<ii4s", 3, 4, b"text"))
open(sys.argv[2], "wb").write(struct.pack("<i", 1) + entry("blk.0.attn_q.weight", 256))
P

expect 0 quantize demo --to q4_k -o plain.gguf
expect 0 quantize demo --to q4_k --imatrix demo.dat -o weighed.gguf; no_stderr
cmp -s plain.gguf weighed.gguf && fail "the importance matrix changes nothing"
expect 0 inspect weighed.gguf --json; stdout '"quantize.imatrix.file": "demo.dat"'; stdout '"quantize.imatrix.dataset": "text"'
expect 0 quantize demo --to q4_k --imatrix demo.dat --json -o again.gguf; json; stdout '"imatrix": "demo.dat"'
cmp -s again.gguf weighed.gguf || fail "two runs differ"
expect 0 quantize demo --to q4_k --imatrix one.dat -o partly.gguf; stderr 'warning: blk.0.attn_k.weight: .*without importance'
expect 7 quantize demo --to q2_k_s -o none.gguf; stderr 'needs an importance matrix'; stderr 'hint: '; absent none.gguf
expect 0 quantize demo --to q2_k_s --imatrix demo.dat -o small.gguf
expect 7 quantize demo --to q2_k_s --imatrix one.dat -o none.gguf; stderr 'no entry that fits'; absent none.gguf
expect 3 quantize demo --to q4_k --imatrix "$demo" -o none.gguf; stderr 'not an importance matrix'
expect 3 quantize demo --to q4_k --imatrix "$root/tests/lib.sh" -o none.gguf; stderr 'not an importance matrix'
expect 4 quantize demo --to q4_k --imatrix absent.dat -o none.gguf; absent none.gguf

expect 0 quantize demo --to q4_k --dry-run --tensor 'ffn_(up|gate)=q5_k' --tensor FFN=q8_0 --role attn_v=q3_k --embedding-type f16
stdout 'embedding +f16'; stdout 'ffn_up +q5_k'; stdout 'ffn_gate +q5_k'; stdout 'ffn_down +q8_0'; stdout 'attn_v +q3_k'; stdout 'attn_q +q4_k'
printf '# rules\nattn=q6_k  role:ffn_down=q2_k\n' >rules
expect 0 quantize demo --to q4_k --dry-run --recipe rules --tensor attn_q=q8_0
stdout 'attn_q +q8_0'; stdout 'attn_k +q6_k'; stdout 'ffn_down +q2_k'; stdout 'ffn_up +q4_k'
expect 0 quantize demo --to q4_k --tensor nothing=q8_0 -o rule.gguf; stderr 'warning: no tensor fits nothing=q8_0'
cmp -s rule.gguf plain.gguf || fail "a rule that fits no tensor changes something"
expect 0 quantize demo --to q4_k --dry-run --role nothing=q8_0; stderr 'warning: no tensor fits nothing=q8_0'
expect 2 quantize demo --to q4_k --dry-run --tensor '(=q8_0'; stderr 'not a regular expression'
expect 2 quantize demo --to q4_k --dry-run --tensor attn; stderr 'REGEX=FORMAT'
expect 2 quantize demo --to q4_k --dry-run --role ffn_up=q4_k_m; stderr 'no format named'
expect 7 quantize demo --to q4_k --dry-run --tensor ffn_up=q8_1; stderr 'does not write'
printf 'attn=q6_k oops' >rules
expect 3 quantize demo --to q4_k --dry-run --recipe rules; stderr 'in: rules @ 10'
expect 4 quantize demo --to q4_k --dry-run --recipe absent
finish
