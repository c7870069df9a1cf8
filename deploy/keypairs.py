#!/usr/bin/env python3
"""The key pairs of all hosts, on the control machine. Standard input: a JSON list of {role, name, path}.

    keypairs.py FOLDER              make those that are missing
    keypairs.py FOLDER look         make none
    keypairs.py FOLDER next         make a successor of each, beside it (--broker: of the broker's)
    keypairs.py FOLDER switch HOST  HOST's successors take their places, the old ones stay beside them (or broker's)
    keypairs.py FOLDER finish       remove the old ones

Prints a JSON object: ``changed``, whether files were; ``broker``, its public key; ``allow``, the broker's allow-list.
That has successors and old ones too, so that it is right at every moment of a rotation, however often that is cut off.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from dolmetsch.errors import KeyFileError
    from dolmetsch.keys import SUFFIX, pair_at
except ModuleNotFoundError as error:
    sys.exit(f"keypairs: there is no {error.name}: pip install -r deploy/requirements.txt")

BROKER: Final = f"broker{SUFFIX}"
UNKNOWN: Final = "not-made-yet"


def successor(path: Path) -> Path:
    """Where the pair lies that will replace the one at ``path``."""
    return path.with_name(path.name.removesuffix(SUFFIX) + f".next{SUFFIX}")


def ancestor(path: Path) -> Path:
    """Where the pair lies that the one at ``path`` has replaced."""
    return path.with_name(path.name.removesuffix(SUFFIX) + f".old{SUFFIX}")


def make(paths: list[Path]) -> bool:
    """Make the pairs that are missing; whether there were any."""
    missing = [path for path in paths if not path.exists()]
    for path in missing:
        pair_at(path, make=True)
    return bool(missing)


def switch(paths: list[Path]) -> bool:
    """Put successors in their places; whether there were any."""
    ready = [path for path in paths if successor(path).exists()]
    for path in ready:
        path.rename(ancestor(path))
        successor(path).rename(path)
    return bool(ready)


def finish(paths: list[Path]) -> bool:
    """Remove what was replaced; whether there was anything."""
    old = [ancestor(path) for path in paths if ancestor(path).exists()]
    for path in old:
        path.unlink()
    return bool(old)


def public(path: Path) -> str:
    """The public key of the pair at ``path``."""
    return pair_at(path, make=False).public.decode() if path.exists() else UNKNOWN


def allow_list(grants: list[dict[str, str]]) -> str:
    """A line for each key that may come in."""
    lines = ["# Made by the playbooks, from the keys on the control machine: ROLE NAME PUBLICKEY"]
    for grant in sorted(grants, key=lambda one: (one["name"], one["role"])):
        path = Path(grant["path"])
        for one in (path, successor(path), ancestor(path)):
            if one.exists():
                lines.append(f"{grant['role']} {grant['name']} {public(one)}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Do one step, and print what is."""
    parser = argparse.ArgumentParser(description="The key pairs of all hosts, on the control machine.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("step", nargs="?", default="make", choices=("make", "look", "next", "switch", "finish"))
    parser.add_argument("host", nargs="?", help="whose keys to switch")
    parser.add_argument("--broker", action="store_true", help="next: of the broker's key, and of no other")
    arguments = parser.parse_args()
    grants = json.load(sys.stdin)
    broker, clients = arguments.folder / BROKER, [Path(grant["path"]) for grant in grants]
    try:
        match arguments.step:
            case "make":
                changed = make([broker, *clients])
            case "look":
                changed = not all(path.exists() for path in (broker, *clients))
            case "next":
                of = [broker] if arguments.broker else clients
                # One whose old pair is still beside it was switched before the rotation was cut off.
                changed = make([successor(path) for path in of if not ancestor(path).exists()])
            case "switch":
                of = [path for path in clients if path.parent.name == arguments.host]
                changed = switch([broker] if arguments.host == "broker" else of)
            case _:
                changed = finish([broker, *clients])
        print(json.dumps({"changed": changed, "broker": public(broker), "allow": allow_list(grants)}))
    except KeyFileError as error:
        print(f"keypairs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
