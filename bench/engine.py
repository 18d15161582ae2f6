#!/usr/bin/env python3
"""Speed of the engine beside its peers: prompt and generation, format by format, interleaved, as ratios.

usage: bench/engine.py BUILD_DIR [--model FILE | --shape ARCH:SHAPE] [--formats q4_k,...] [-p 512] [-n 64] [--depth 0]
                       [--rounds 5] [--threads 2]

LLAMA_CPP=DIR and IK_LLAMA=DIR name folders with the peers' llama-bench; a peer without one is left out.
Every round runs each engine once on the same file: nibble, llama.cpp (flash attention on), ik_llama.cpp as it is and with
run-time repacking, of which the better counts. Printed are medians of tokens per second and of the ratios per round.
Prints, never judges: figures depend on the machine.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

FORMATS = "q4_0 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs iq3_s iq3_xxs mxfp4 bf16".split()


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def nibble(binary, model, arguments):
    text = output_of([binary, "bench", model, "--json", "-q", "-r", "1", "-p", str(arguments.p), "-n", str(arguments.n),
                      "-t", str(arguments.threads), "--depth", str(arguments.depth)])
    if text is None:
        sys.exit(f"nibble bench failed on {model}")
    document = json.loads(text)
    speeds = {result["test"][:2]: result["tokens_per_s"] for result in document["results"]}
    shares = {result["test"][:2]: (result["bound_by"], result["of_ceiling"]) for result in document["results"]}
    return speeds, shares


def llama_bench(folder, model, arguments, extra):
    command = [os.path.join(folder, "llama-bench"), "-m", model, "-o", "json", "-r", "1", "-p", str(arguments.p), "-n",
               str(arguments.n), "-t", str(arguments.threads), *extra]
    if arguments.depth:
        command += ["-d", str(arguments.depth)]
    text = output_of(command)
    if not text:
        return {}
    try:
        results = json.loads(text[text.index("["):])
    except ValueError:
        return {}
    return {("pp" if result["n_prompt"] else "tg"): result["avg_ts"] for result in results}


def better(first, second):
    return {test: max(first.get(test, 0), second.get(test, 0)) for test in {*first, *second}}


def measure(binary, model, peers, arguments):
    """Rounds of {engine: {test: tokens per second}}, and nibble's shares of the ceilings."""
    rounds, shares = [], []
    for _ in range(arguments.rounds):
        speeds, share = nibble(binary, model, arguments)
        shares.append(share)
        one = {"nibble": speeds}
        if "llama.cpp" in peers:
            one["llama.cpp"] = llama_bench(peers["llama.cpp"], model, arguments, ["-fa", "1"])
        if "ik" in peers and not arguments.depth:
            plain = llama_bench(peers["ik"], model, arguments, ["-fa", "1"])
            repacked = llama_bench(peers["ik"], model, arguments, ["-fa", "1", "-rtr", "1"])
            one["ik"] = better(plain, repacked)
        rounds.append(one)
    return rounds, shares


def median(values):
    values = [value for value in values if value]
    return statistics.median(values) if values else float("nan")


def print_rows(name, rounds, shares):
    for test in ("pp", "tg"):
        speeds = {engine: median([one[engine].get(test) for one in rounds]) for engine in rounds[0]}
        if speeds["nibble"] != speeds["nibble"]:
            continue
        cells = [f"{name:8}", test, f"{speeds['nibble']:9.1f}"]
        for engine in ("llama.cpp", "ik"):
            if engine not in speeds:
                continue
            ratio = median([one["nibble"][test] / one[engine][test] for one in rounds if one[engine].get(test)])
            cells += [f"{speeds[engine]:9.1f}", f"{ratio:6.2f}"]
        bound, share = shares[-1][test]
        cells.append(f"{bound} {100 * (share or float('nan')):.0f}%")
        print(" | ".join(cells), flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build")
    parser.add_argument("--model")
    parser.add_argument("--shape", default="llama:8b,layers=3,vocab=32000")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    binary = os.path.join(arguments.build, "nibble")
    peers = {name: os.environ[variable] for name, variable in (("llama.cpp", "LLAMA_CPP"), ("ik", "IK_LLAMA"))
             if os.environ.get(variable)}
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.model
        if not source:
            source = os.path.join(folder, "model.gguf")
            subprocess.run([binary, "random", arguments.shape, "-o", source, "-q"], check=True)
        print(" | ".join(["format", "test", "nibble t/s", *(f"{name} t/s | ratio" for name in peers), "bound by"]))
        for name in arguments.formats.split(","):
            model = source
            if name != "bf16":
                model = os.path.join(folder, name + ".gguf")
                subprocess.run([binary, "quantize", source, "--to", name, "--pure", "--no-error", "--force", "-q", "-o",
                                model], check=True)
            print_rows(name, *measure(binary, model, peers, arguments))
            if model != source:
                os.remove(model)


main()
