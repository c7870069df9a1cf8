"""The whole way: pairs, pieces, training, export, package, scores, card, plot."""

from __future__ import annotations

import argparse
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dolmetsch.packages import open_package
from models.recipe import plot
from models.recipe.evaluate import Scores, Translator, evaluate, table
from models.recipe.export import agreement, export
from models.recipe.network import Network, Shape
from models.recipe.package import Facts, archive, card, credits_in, credits_of, write_package
from models.recipe.pairs import Pair, Tally, hold_out, read_pairs, training_pairs
from models.recipe.pieces import make_pieces, open_pieces, vocabulary
from models.recipe.shortlist import write_shortlist
from models.recipe.stream import Stream, encode
from models.recipe.training import Run, Settings, held_out_batches
from models.recipe.weights import grown, read_network

HELD_OUT: Final = 500  # pairs the loss is watched on
CHECKED: Final = 100  # sentences that CTranslate2 and the network are compared on
EXAMPLES: Final = 6
START_PEAK: Final = 0.35  # of a size's highest rate, when the weights are not new to this route

# Vocabulary, and what it takes; the large one stays below 30 MB in int8.
SHAPES: Final = {
    "tiny": Shape(1, 1, 32, 64, 2, 400),
    "small": Shape(3, 2, 256, 1024, 4, 4000),
    "large": Shape(6, 3, 512, 1024, 8, 8000),
}
SETTINGS: Final = {
    "tiny": Settings(batch_tokens=400, peak=3e-3, warmup=10, save_every=10),
    "small": Settings(batch_tokens=4_000, peak=1.5e-3, warmup=300, save_every=100, dropout=0.2),
    "large": Settings(batch_tokens=16_000, peak=7e-4, warmup=2_000, save_every=500, dropout=0.25, helpers=4),
}


def train(options: argparse.Namespace, validation: Sequence[Pair]) -> Path:
    """What the command does; returns the package's folder."""
    if options.encoder_layers is not None and not options.start:
        raise SystemExit("--encoder-layers grows the network of a package: say which, with --start")
    if options.dropout is not None and not 0 <= options.dropout < 1:
        raise SystemExit("--dropout is a share: at least 0, and less than 1")
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    codes = (options.to_code, options.from_code) if options.reverse else (options.from_code, options.to_code)
    options.work.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    corpora = [*options.corpus, *options.phrases]
    pairs = training_pairs(corpora, validation, options.reverse, tally)
    phrases = {pair for path in options.phrases for pair in read_pairs(path, options.reverse)}
    print(tally, flush=True)
    pairs, held_out = hold_out(pairs, HELD_OUT, random.Random(f"held out {options.seed}"))
    size = options.size if options.size != "auto" else "large" if torch.cuda.is_available() else "small"
    pieces = _pieces(options, pairs, codes, SHAPES[size].vocabulary)

    run, settings = _run(options, size, pieces, codes, held_out)
    print(_describe(run.network.shape), f"on {run.network.positions.device}, from step {run.progress.step}", flush=True)
    stream = Stream(pairs, pieces, codes, batch_tokens=settings.batch_tokens, seed=options.seed, phrases=phrases)
    run.train(stream, minutes=options.minutes, steps=options.steps)

    facts = Facts(
        from_code=codes[0],
        to_code=codes[1],
        version=options.package_version,
        architecture=_describe(run.network.shape),
        training=_story(run, options, len(pairs)),
        data=f"{tally}.",
        credits=tuple(dict.fromkeys(credits_of(corpora, options.credit) + _inherited(options.start))),
    )
    return _finish(run, options, pieces, facts, pairs, held_out, validation)


def _inherited(start: Path | None) -> tuple[str, ...]:
    return credits_in(start) if start else ()


def _pieces(options: argparse.Namespace, pairs: Sequence[Pair], codes: tuple[str, str], size: int) -> Path:
    path: Path = options.work / "sentencepiece.model"
    if not path.exists():
        temporary = path.with_suffix(".part")
        if options.start:
            shutil.copyfile(options.start / "sentencepiece.model", temporary)
        else:
            make_pieces(pairs, codes, size, temporary, options.seed)
        temporary.rename(path)
    return path


def _run(
    options: argparse.Namespace, size: str, pieces: Path, codes: tuple[str, str], held_out: Sequence[Pair]
) -> tuple[Run, Settings]:
    processor = open_pieces(pieces)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = replace(SETTINGS[size], seed=options.seed, bf16=has_bf16(device))
    if options.dropout is not None:
        settings = replace(settings, dropout=options.dropout)
    torch.manual_seed(options.seed)
    if options.start:
        network = _begun(options, settings.dropout)
        if open_package(options.start).route == f"{codes[0]}→{codes[1]}":
            settings = replace(settings, peak=START_PEAK * settings.peak)
    else:
        shape = replace(SHAPES[size], vocabulary=processor.get_piece_size())
        network = Network(shape, settings.dropout)
    if network.shape.vocabulary != processor.get_piece_size():
        raise SystemExit(f"{options.start} has another vocabulary than its sentencepiece.model")
    batches = held_out_batches(held_out, processor, settings.batch_tokens)
    return Run(network.to(device), settings, options.work, batches), settings


def _begun(options: argparse.Namespace, dropout: float) -> Network:
    """What a run starts with. Raises ``SystemExit`` where the package cannot be that."""
    try:
        network = read_network(options.start / "model", dropout)
        return network if options.encoder_layers is None else grown(network, options.encoder_layers, dropout)
    except ValueError as error:
        raise SystemExit(f"{options.start}: {error}") from error


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is the faster: on accelerators, and on processors with instructions for it."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def _finish(
    run: Run,
    options: argparse.Namespace,
    pieces: Path,
    facts: Facts,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    validation: Sequence[Pair],
) -> Path:
    weights, averaged, loss = run.best_average()
    facts = replace(
        facts, training=f"{facts.training} The last {averaged} checkpoints averaged: loss {loss:.3f} on held-out pairs."
    )
    if options.start:
        weights = mix(_begun(options, 0.0).state_dict(), weights, options.keep)
        facts = replace(
            facts, training=f"{facts.training} {options.keep:.0%} of each weight is {options.start.name}'s."
        )
    processor = open_pieces(pieces)
    network = Network(run.network.shape)
    network.load_state_dict(weights)
    model = options.work / "model"
    export(weights, network.shape, vocabulary(processor), model, "int8")
    sources = [source for source, _ in encode(held_out[:CHECKED], processor)]
    same = agreement(network, vocabulary(processor), model, sources)
    print(f"CTranslate2 in int8 says what PyTorch says for {same:.0%} of {len(sources)} sentences, greedily")
    write_shortlist(model, pairs, processor, facts.from_code, options.seed)
    path = write_package(options.out, model, pieces, facts)
    return _score(path, run, facts, validation)


def mix(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Between two networks, one trained from the other: good at what each is good at.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
    """
    return {name: torch.lerp(weight, start[name], keep) for name, weight in trained.items()}


def _score(path: Path, run: Run, facts: Facts, validation: Sequence[Pair]) -> Path:
    package = open_package(path)
    scores: Scores = evaluate(package, validation)
    some = [pair.source for pair in validation[:EXAMPLES]]
    examples = list(zip(some, Translator(package).translate(some), strict=True))
    (path / "README.md").write_text(card(facts, scores, examples), encoding="utf-8")
    lines = {
        "training (smoothed targets, noise)": plot.smooth(run.progress.losses),
        "held-out pairs": run.progress.held_out,
    }
    path.with_name(f"{path.name}-loss.svg").write_text(plot.svg(f"{facts.name}: loss", lines), encoding="utf-8")
    print(table([scores]), *scores.signatures, sep="\n")
    print(f"{archive(path)} is {archive(path).stat().st_size / 1e6:.1f} MB")
    return path


def _describe(shape: Shape) -> str:
    parameters = sum(parameter.numel() for parameter in Network(shape).parameters()) / 1e6
    return (
        f"Pre-norm Transformer: {shape.encoder_layers} encoder and {shape.decoder_layers} decoder layers, "
        f"d = {shape.dim}, ffn = {shape.ffn}, {shape.heads} heads, tied embeddings, {shape.vocabulary} pieces: "
        f"{parameters:.1f} M parameters."
    )


def _story(run: Run, options: argparse.Namespace, pairs: int) -> str:
    progress: Any = run.progress
    start = f" from the weights of {options.start.name}" if options.start else ""
    return (
        f"Trained{start} on {pairs} pairs, with noise on the source: {progress.step} steps, "
        f"{progress.tokens / 1e6:.1f} M target tokens, {progress.spent_s / 60:.0f} minutes on "
        f"{'an accelerator' if torch.cuda.is_available() else f'{torch.get_num_threads()} CPU thread(s)'}."
    )
