#!/usr/bin/env python3
"""Writes src/text/unicode_table.h: the major Unicode category of every code point from U+0080.

    pip install unicodedata2==15.1.0 && python3 src/text/unicode_table.py > src/text/unicode_table.h

The version is part of what tokenizers mean: a newer one would cut newly assigned letters differently than llama.cpp does.
"""
import unicodedata2

CLASSES = {"L": 1, "N": 2, "M": 3, "P": 4, "S": 5}  # enum nib_class in pretokenize.c; 0 is everything else
SPACE = 6
SPACES = {0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, *range(0x2000, 0x200B)}

entries, previous = [], None
for code_point in range(0x80, 0x110000):
    major = unicodedata2.category(chr(code_point))[0]
    kind = SPACE if code_point in SPACES else CLASSES.get(major, 0)
    if kind != previous:
        entries.append(code_point << 3 | kind)
        previous = kind

print(f"/* Major categories of Unicode {unicodedata2.unidata_version} from U+0080: (first code point << 3 | class) of each run,")
print(" * ascending. Written by unicode_table.py; do not edit. */")
print("/* clang-format off */")
print("static const uint32_t unicode_runs[] = {")
for i in range(0, len(entries), 12):
    print("    " + " ".join(f"0x{e:06x}," for e in entries[i:i + 12]))
print("};")
print("/* clang-format on */")
