# Every hostile GGUF file against the exit code it has to give, without a signal, a hang, or much memory.
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || skip_all "python3 runs the files and measures the memory"
[ -f "$shared/data/badinput/gguf_expect.tsv" ] || skip_all "the hostile files are not there"
grep -q __asan_init "$nibble" && export NIBBLE_SLACK_MB=1024
last='hostile files' checks=1
python3 - "$nibble" "$shared/data/badinput" "$work" <<'PY' || fail "see above"
import csv, os, subprocess, sys, threading

nibble, folder, work = sys.argv[1:]
slack = int(os.environ.get("NIBBLE_SLACK_MB", "64")) << 20
ids = os.path.join(work, "ids")
open(ids, "w").write("1 2 3\n")
out = os.path.join(work, "out.f32")
failed = n = 0
for row in csv.DictReader(open(folder + "/gguf_expect.tsv"), delimiter="\t"):
    path = f"{folder}/gguf/{row['file']}"
    if "at model load" in row["proposed_expect"]:
        command = [nibble, "logits", path, "--ids", ids, "-o", out, "--force"]
    else:
        command = [nibble, "inspect", "--check", path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    timer = threading.Timer(20, process.kill)
    timer.start()
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    timer.cancel()
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    allowed = [int(c) for c in row["exit"].split(",")]
    limit = os.path.getsize(path) + slack
    problems = []
    if code not in allowed:
        problems.append(f"exit code {code}, expected {row['exit']}")
    if usage.ru_maxrss * 1024 > limit:
        problems.append(f"{usage.ru_maxrss >> 10} MB of memory")
    if code not in (0, -9) and not errors.startswith(("error: ", "warning: ")):
        problems.append("no error message")
    if any(ord(c) < 32 and c != "\n" for c in errors):
        problems.append("control characters in the message")
    n += 1
    if problems:
        failed += 1
        print(f"{row['file']}: {'; '.join(problems)}\n  {' '.join(command[1:2])}: {errors.strip()[:300]}")
print(f"{n} files, {failed} failed")
sys.exit(1 if failed or not n else 0)
PY
finish
