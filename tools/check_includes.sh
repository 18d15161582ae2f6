#!/usr/bin/env bash
# Includes point downwards only (docs/design.md), and file names are unique.
set -euo pipefail
cd "$(dirname "$0")/.."
awk '
BEGIN {
    n = split("base cpu format kernel op file text arch model quant eval study cli", rooms, " ")
    for (i = 1; i <= n; i++) rank[rooms[i]] = i
    rank["eval"] = rank["quant"]  # side by side: neither sees the other
    # where the public headers belong; base.h and json.h, cpu.h, ...
    public["base"] = public["json"] = "base"
    public["cpu"] = "cpu"; public["format"] = "format"; public["gguf"] = "file"; public["text"] = "text"
    public["model"] = "model"; public["quant"] = "quant"; public["eval"] = "eval"; public["study"] = "study"
}
FNR == 1 { split(FILENAME, part, "/"); room = part[2] }
/^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, quoted, "\""); path = quoted[2]
    split(path, piece, "/")
    if (room == "cli") {
        if (path ~ /^(base|cpu|format|kernel|op|file|text|arch|model|quant|eval|study)\//) bad("the program uses public headers only")
        next
    }
    if (piece[1] == "nibble") { stem = piece[2]; sub(/\.h$/, "", stem); to = public[stem] } else to = piece[1]
    if (!(to in rank)) next  # a file beside it, such as formats.def
    if (to != room && rank[to] >= rank[room]) bad(room " must not see " to)
}
function bad(why) { printf "%s:%d: %s (%s)\n", FILENAME, FNR, $0, why; failed = 1 }
END { exit failed }
' $(find src -name '*.[ch]')
duplicates=$(find src tests bench -type f \( -name '*.c' -o -name '*.h' \) -printf '%f\n' | sort | uniq -d)
if [ -n "$duplicates" ]; then
    echo "file names that are not unique: $duplicates"
    exit 1
fi
