"""tools/tally.py testlog.json: prints the output of failing tests, and as the last line "PASSED FAILED". Status 1: no tests ran.

Skipped tests count as neither. An unexpected success is a failure.
"""
import json
import sys

GOOD = {"OK", "EXPECTEDFAIL"}
NEITHER = {"SKIP"}


def main(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            results = [json.loads(line) for line in f if line.strip()]
    except FileNotFoundError:
        results = []
    if not results:
        return 1
    bad = [r for r in results if r["result"] not in GOOD | NEITHER]
    for r in bad:
        print(f"-- {r['name']}: {r['result']} (after {r.get('duration', 0):.1f} s)")
        for stream in ("stdout", "stderr"):
            lines = (r.get(stream) or "").splitlines()
            if len(lines) > 60:
                lines = [f"({len(lines) - 60} lines left out)"] + lines[-60:]
            for line in lines:
                print("   ", line)
    print(sum(r["result"] in GOOD for r in results), len(bad))
    return 0


sys.exit(main(sys.argv[1]))
