# The grid family and the plain floats from the command line: listed, written, read back, searched, studied as a map.
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1
expect 0 formats; stdout '; q2a\.\.q8a zero point;'; stdout '^ +f8_e4m3 '
[ "$(wc -l <"$out")" -le 24 ] || fail "more than 24 lines"
[ "$(awk '{ if (length($0) > 100) print }' "$out" | wc -l)" -eq 0 ] || fail "wider than 100 columns"
expect 0 formats q5m_128 f4_e2m1_64; stdout '^q5m_128 +5\.25 +128 +84 +1312956503 +integer'; stdout '^f4_e2m1_64 +4\.25 +64 +34 '
for format in q3m_256 f4_e2m1_ieee_128 F8_E4M3; do
  expect 0 quantize demo --to $format -o $format.gguf -q
  expect 0 inspect $format.gguf --json; stdout 'nibble.grid.version'; grep -q 'general.file_type' "$out" && fail "a file type"
done
expect 0 quantize demo --to q3a --pure -o plain.gguf --json
if command -v jq >/dev/null; then
  plain=$(field '[.tensors[].rel_rmse // 0] | add')
  expect 0 quantize demo --to q3a --pure -o searched.gguf --grid-search --json
  searched=$(field '[.tensors[].rel_rmse // 0] | add')
  awk "BEGIN { exit !($searched < 0.98 * $plain) }" || fail "the search gains nothing: $searched, $plain"
fi
if [ "$(uname -m)" = x86_64 ]; then
  NIBBLE_CPU=portable expect 0 quantize demo --to q3m_256 -o portable.gguf -q
  cmp -s q3m_256.gguf portable.gguf || fail "other bytes at the lowest level"
fi
expect 0 quantize demo --to grid --pure -o all/; stdout '84 files'; stdout '^q8m_256 +.* all/nibble-demo-q8m_256.gguf$'
equals "$(ls all | wc -l)" 84 "files of the whole grid"
cmp -s all/nibble-demo-q3a.gguf plain.gguf || fail "one of many has other bytes than one alone"
limit=300
expect 0 study demo --to grid --pure --chunks 1 -o map
stdout '84 levels are in the report'; [ -s map/map.svg ] || fail "no map"
[ "$(grep -c '<tr' map/report.html)" -ge 85 ] || fail "the report does not list all levels"
finish
