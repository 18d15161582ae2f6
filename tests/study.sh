# The whole job, small: two levels of the built-in model, little text.
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1
limit=120
expect 0 study demo --to q8_0,q2_k --chunks 2 --choice none --prompt "What is 7 + 5?" -n 12
stdout '^level +size +bpw'; stdout '^q8_0'; stdout '^q2_k'; stdout 'report +nibble-study-demo/report.html'
stderr 'about .*of disk'
[ "$(wc -l <"$out")" -le 24 ] || fail "more than 24 lines"
[ "$(awk '{ if (length($0) > 100) print }' "$out" | wc -l)" -eq 0 ] || fail "wider than 100 columns"
for file in report.html report.json; do [ -s nibble-study-demo/$file ] || fail "$file is missing"; done
[ -z "$(find . -name '*.gguf')" ] || fail "quantized files were kept without --keep"
before=$(sha256sum nibble-study-demo/report.json)
expect 2 study demo --to q8_0; stderr 'exists'; stderr 'force'
equals "$(sha256sum nibble-study-demo/report.json)" "$before" "the first report"
expect 0 study demo --to q4_0 --chunks 2 --choice none --prompt Hello -n 4 --force --keep -o nibble-study-demo --json
json; [ -n "$(find nibble-study-demo -name '*.gguf')" ] || fail "--keep kept nothing"
if command -v jq >/dev/null; then
  equals "$(field '.schema')" nibble.study/1 schema
  equals "$(field '.talk | length')" 1 prompts
  equals "$(jq -r .schema nibble-study-demo/report.json)" nibble.study/1 "schema of report.json"
fi
expect 2 study demo --to q4_0,q4_9; stderr '^  hint: '
expect 2 study demo --tries 0
expect 2 study demo --budget soon; stderr '90s'
expect 7 study demo --to grid
expect 7 study hf:org/model
finish
