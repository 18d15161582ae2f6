# nibble number: the bits of numbers, and the article's quantization.
. "$(dirname "$0")/lib.sh"
expect 0 number 1.5
stdout '^f32 +0 01111111 10000000000000000000000 +1\.5 +0 '; stdout '^f8_e4m3 +0 0111 100 +1\.5 +0 +1\.375 +1\.625$'
stdout '^f64 +0 01111111111 0x8000000000000 +1\.5 +0 +x-2\.2e-16 +x\+2\.2e-16$'; stdout '^f64 +64 .* 16\.0$'
stdout '^i8 +00000010 +2 +33%'; stdout '^f16 +16 +-65504 +65504'
[ "$(wc -l <"$out")" -le 24 ] || fail "more than 24 lines"
[ "$(awk '{ if (length($0) > 100) print }' "$out" | wc -l)" -eq 0 ] || fail "wider than 100 columns"
expect 0 number -0.89,0.16 -.5; stdout '^ -0\.89 '; stdout '^  -0\.5 '
expect 0 number 1e6 -v; stdout 'inf'
list=-0.89,0.16,0.08,-0.13,0.16,-0.54
expect 0 number $list --to q4s,q4a,f4_e2m1_ieee
stdout '^q4s +0\.12714285714285714 +- +- +4 of 15 +18\.0%$'; stdout '^q4a +0\.0[67][0-9]* +5 +- +5 of 16 +8\.5%$'
stdout '^ -0\.89 +-7 +-0\.89 +0 +-8 +-0\.91 '
if command -v jq >/dev/null; then
  expect 0 number $list --to q4s,q4a --json
  json
  equals "$(field '.schema')" nibble.number/1 schema
  equals "$(field '.quantized[0].codes | join(" ")')" "-7 1 1 -1 1 -4" "symmetric codes"
  equals "$(field '.quantized[1].codes | join(" ")')" "-8 7 6 3 7 -3" "asymmetric codes"
  equals "$(field '.quantized[1].zero')" 5 "zero point"
  expect 0 number $list --to q4s --outlier 10 --json
  equals "$(field '.quantized[0].codes_used <= 3')" true "codes that an outlier leaves"
  expect 0 number 3.141592653589793 --json
  equals "$(field '.numbers[0].stored[0] | .type, .bits, .exponent, .significand' | xargs)" \
    "f64 0 10000000000 1001001000011111101101010100010001000010110100011000 1024 2570638124657944" "pi in f64"
  expect 0 number nan --json; equals "$(field '.numbers[0].stored[] | select(.type == "f4_e2m1").value')" null "a NaN"
fi
expect 2 number; expect 2 number 1,,2; expect 2 number 1e999; stderr 'range'; expect 2 number 1x
expect 2 number 1 --to q9s; stderr 'q9s'; expect 2 number inf --to q4s
expect 7 number 1 --to q4_0; stderr '^  hint: '
expect 2 number 1,2,3 --to q4s --outlier x
expect 2 number $(seq -s, 1 33) --to q4s; stderr '32'
finish
