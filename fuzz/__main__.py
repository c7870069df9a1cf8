"""``python -m fuzz TARGET``: look for an input that breaks it. ``python -m fuzz storm``: a broker under a storm."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Final

from fuzz.run import guided, plain
from fuzz.target import NAMES, load

PLAIN: Final = 20_000  # mutants that are tried where there is no atheris


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Looks for input that breaks dolmetsch.")
    parser.add_argument("target", choices=[*NAMES, "storm"], help="what to attack")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="so long, with atheris (default 60)")
    parser.add_argument("--plain", type=int, metavar="N", help="N fixed mutants instead, without atheris")
    parser.add_argument("--number", type=int, default=0, metavar="N", help="with --plain: which ones (default 0)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="only this input")
    parser.add_argument("--property", action="store_true", help="say what must hold, and end")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="of storm (default 10)")
    parser.add_argument("--keys", action="store_true", help="storm: against a broker with keys")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """0: nothing found; else atheris' exit status, or the number of problems. A bad input ends it with a traceback."""
    arguments = _arguments(argv)
    if arguments.target == "storm":
        from fuzz.storm.storm import storm

        report = storm(arguments.minutes * 60, keys=arguments.keys)
        print(report)
        return len(report.problems)
    if arguments.property:
        print(load(arguments.target).property)
    elif arguments.replay is not None:
        data = arguments.replay.read_bytes()
        load(arguments.target).attempt(data)
        print(f"{arguments.target}: {len(data)} bytes do no harm")
    elif arguments.plain is not None or importlib.util.find_spec("atheris") is None:
        count = plain(load(arguments.target), arguments.plain or PLAIN, arguments.number)
        print(f"{arguments.target}: {count} mutants do no harm (coverage-guided: pip install -r fuzz/requirements.txt)")
    else:
        return guided(arguments.target, arguments.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
