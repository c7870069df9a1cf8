"""One process that translates for bench/processes.py, in whichever environment the engine it is to measure lives.

It reads a line of JSON (a ``spec``), gets ready, and says "ready". Then it answers each line "go" with the seconds that
all texts took and the tokens of their translations, and the line "texts" with the translations that were made last.

``spec["kind"]``: limit (CTranslate2 alone), engine (dolmetsch's) or argos (argostranslate's). ``spec["cores"]``: those
of this process.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

Said = Sequence[str | list[str]]  # a translation for each text, or its tokens
Translate = Callable[[list[str]], Said]

WARM_UP = 50  # texts
WINDOW_JOBS = 256  # as ``dolmetsch.handout`` hands them to a child; not imported, which argos' environment could not


def limit(spec: dict[str, Any]) -> Translate:
    """Sentences to tokens, one call for all, a thread for each core."""
    import ctranslate2
    import sentencepiece

    folder = Path(spec["package"])
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))
    intra = spec.get("intra_threads", 1)
    translator = ctranslate2.Translator(
        str(folder / "model"),
        inter_threads=len(spec["cores"]) // intra,
        intra_threads=intra,
        compute_type=spec["compute_type"],
    )
    options = {"beam_size": spec["beam_size"], "use_vmap": True, **spec.get("options", {})}
    if spec["sorted"]:
        options |= {"max_batch_size": spec["batch_tokens"], "batch_type": "tokens"}
    rows: dict[int, list[list[str]]] = {}  # by how many texts; tokenised beforehand: the limit is that of decoding

    def translate(texts: list[str]) -> list[list[str]]:
        tokens = rows.get(len(texts)) or rows.setdefault(len(texts), tokenizer.encode(texts, out_type=str))
        if spec["sorted"]:
            outputs = translator.translate_batch(tokens, **options)  # the library sorts them
        else:
            outputs = []
            for batch in as_they_come(tokens, spec["batch_tokens"]):
                outputs += translator.translate_batch(batch, **options)
        return [output.hypotheses[0] for output in outputs]

    translate(spec["texts"])
    return translate


def as_they_come(rows: Sequence[list[str]], most: int) -> list[list[list[str]]]:
    """``rows`` in batches of ``most`` tokens, padding counted, in the order given."""
    batches: list[list[list[str]]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row))
        if not batches or longest * (len(batches[-1]) + 1) > most:
            batches.append([])
            longest = len(row)
        batches[-1].append(row)
    return batches


def engine(spec: dict[str, Any]) -> Translate:
    """dolmetsch's engine as a child drives it, one core."""
    from dolmetsch.config import EngineConfig
    from dolmetsch.engine import ArgosEngine
    from dolmetsch.packages import open_package
    from dolmetsch.worker import steady_heap

    names = ("beam_size", "batch_tokens", "compute_type")
    with steady_heap():
        one = ArgosEngine([open_package(Path(spec["package"]))], EngineConfig(**{name: spec[name] for name in names}))
        one.warm()

    def translate(texts: list[str]) -> list[str]:
        outcomes: dict[bytes, str] = {}
        for at in range(0, len(texts), WINDOW_JOBS):
            for number, text in enumerate(texts[at : at + WINDOW_JOBS], at):
                one.submit(number.to_bytes(4, "big"), "de→en", [text])
            while batch := one.next_batch():
                for outcome in one.finish(batch, one.run(batch)):
                    if outcome.texts is None:
                        raise SystemExit(f"a text failed: {outcome.code}")
                    outcomes[outcome.key] = outcome.texts[0]
        return [outcomes[number.to_bytes(4, "big")] for number in range(len(texts))]

    return translate


def argos(spec: dict[str, Any]) -> Translate:
    """``argostranslate.translate.translate``, a call for each text, with ``spec["split"]`` in place of its splitter.

    Its own downloads a model when it is first used; this is quicker than any splitter.
    """
    home = tempfile.TemporaryDirectory(prefix="argos-")
    packages = Path(home.name) / "packages"  # a folder that holds nothing else
    packages.mkdir()
    (packages / Path(spec["package"]).name).symlink_to(spec["package"])
    os.environ |= {"ARGOS_PACKAGES_DIR": str(packages), "HOME": home.name}
    import argostranslate.translate
    from argostranslate.sbd import MiniSBDSentencizer

    MiniSBDSentencizer.split_sentences = lambda _, text: spec["split"].get(text, [text])

    def translate(texts: list[str]) -> list[str]:
        assert home.name  # kept until the process ends
        return [argostranslate.translate.translate(text, "de", "en") for text in texts]

    return translate


def main() -> None:
    """Serve until the end of the input."""
    spec = json.loads(sys.stdin.readline())
    if spec["kind"] != "argos":
        os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, spec["cores"])
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(Path(spec["package"]) / "sentencepiece.model"))
    translate = {"limit": limit, "engine": engine, "argos": argos}[spec["kind"]](spec)
    translate(spec["texts"][:WARM_UP])
    print("ready", flush=True)
    texts: list[str] = []
    for line in sys.stdin:
        if line.strip() == "texts":
            print(json.dumps(texts), flush=True)
            continue
        started = time.perf_counter()
        said = translate(spec["texts"])
        seconds = time.perf_counter() - started
        texts = [one if isinstance(one, str) else tokenizer.decode(one) for one in said]
        tokens = sum(len(row) for row in tokenizer.encode(texts))
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
