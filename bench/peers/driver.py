"""What the drivers of all peers share: rounds asked for on standard input, figures on standard output."""

import json
import sys
import time

TEXT = "Guten Morgen, wie geht es dir heute? Das ist ein Satz Nummer {}."


def serve(run):
    """For each line with a count: run(texts) gives the answers, in any order; print how long it took."""
    print(json.dumps({"ready": True}), flush=True)
    for number, line in enumerate(sys.stdin):
        texts = [TEXT.format(f"{number}.{n}") for n in range(int(line))]
        started = time.perf_counter()
        answers = run(texts)
        seconds = time.perf_counter() - started
        right = sorted(answers) == sorted(texts)
        print(json.dumps({"seconds": seconds, "answers": len(answers), "right": right}), flush=True)
