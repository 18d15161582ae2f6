#!/usr/bin/env python3
"""usage: seeds.py DIR: small inputs to begin fuzzing with, in DIR/blocks and DIR/imatrix."""
import os
import struct
import sys

def put(folder, name, data):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)

def blocks(folder):
    for index in range(160):  # formats; the number is taken modulo theirs
        for flags in range(4):
            floats = struct.pack("<8f", *((-1) ** i * 0.1 * (i + 1) for i in range(8)))
            data = floats if flags & 2 else bytes((37 * i + index) & 0x3B for i in range(97))
            put(folder, f"{index}-{flags}", struct.pack("<HBB", index, index % 5, flags) + data)

def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data

def tensor(name, shape, offset):
    return text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, offset)

def gguf(entries):
    """entries: (name, columns, matrices); sums of squares and counts, as llama-imatrix writes them."""
    meta = (text("general.type") + struct.pack("<I", 8) + text("imatrix")
            + text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("calibration.txt")
            + text("imatrix.chunk_count") + struct.pack("<II", 4, 3)
            + text("imatrix.chunk_size") + struct.pack("<II", 4, 512))
    heads, payload = b"", b""
    for name, columns, matrices in entries:
        for suffix, shape in ((".in_sum2", (columns, matrices)), (".counts", (1, matrices))):
            heads += tensor(name + suffix, shape, len(payload))
            data = struct.pack(f"<{shape[0] * shape[1]}f", *(1 + i % 7 for i in range(shape[0] * shape[1])))
            payload += data + bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2 * len(entries), 4) + meta + heads
    return head + bytes(-len(head) % 32) + payload

def legacy(entries):
    data = struct.pack("<i", len(entries))
    for name, columns, matrices in entries:
        n = columns * matrices
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, n)
        data += struct.pack(f"<{n}f", *(1 + i % 7 for i in range(n)))
    return data + struct.pack("<i", 3) + struct.pack("<i", 8) + b"text.txt"

def imatrix(folder):
    entries = [("blk.0.ffn_down.weight", 32, 1), ("blk.0.ffn_up_exps.weight", 4, 2), ("output.weight", 1, 1)]
    for n in range(len(entries) + 1):
        put(folder, f"gguf-{n}", gguf(entries[:n]))
        put(folder, f"legacy-{n}", legacy(entries[:n]))
    put(folder, "rules", b"# as llama-quantize reads them\nblk\\.[0-3]\\.ffn_.*=q6_k\n  role:attn_q=q8_0 output=q4_K\n")

blocks(os.path.join(sys.argv[1], "blocks"))
imatrix(os.path.join(sys.argv[1], "imatrix"))
