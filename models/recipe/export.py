"""From weights to the files that CTranslate2 loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
from ctranslate2.specs import TransformerSpec
from torch import Tensor

from models.recipe.network import Network, Shape, positions
from models.recipe.pieces import BOS, EOS, UNK


def export(
    state: dict[str, Tensor], shape: Shape, pieces: Sequence[str], folder: Path, quantization: str | None
) -> None:
    """Write ``folder`` (model.bin, config.json, shared_vocabulary.json). ``quantization`` None keeps float32."""
    spec = TransformerSpec.from_config((shape.encoder_layers, shape.decoder_layers), shape.heads, pre_norm=True)
    for name, weight in state.items():
        _put(spec, name, weight)
    embedding = state["decoder.embeddings.weight"]
    spec.encoder.embeddings[0].weight = embedding.numpy()
    spec.decoder.projection.weight = embedding.numpy()
    for side in (spec.encoder, spec.decoder):
        side.position_encodings.encodings = positions(shape.dim).numpy()
    spec.config.add_source_eos = True
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = (pieces[at] for at in (UNK, BOS, EOS))
    spec.config.decoder_start_token = pieces[BOS]
    spec.register_source_vocabulary(list(pieces))
    spec.register_target_vocabulary(list(pieces))
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


def _put(spec: Any, name: str, weight: Tensor) -> None:
    """Set the variable that ``name`` leads to: "decoder.layer.0.ffn.linear_1.bias"."""
    *path, last = name.split(".")
    for step in path:
        spec = spec[int(step)] if step.isdigit() else getattr(spec, step)
    setattr(spec, last, weight.numpy())


def agreement(network: Network, pieces: Sequence[str], folder: Path, sources: Sequence[Sequence[int]]) -> float:
    """The share of ``sources`` (ids with the end mark) for which CTranslate2 says, greedily, what the network says."""
    network.eval()
    translator = ctranslate2.Translator(str(folder), device="cpu", inter_threads=1, intra_threads=1)
    tokens = [[pieces[number] for number in source[:-1]] for source in sources]
    results = translator.translate_batch(tokens, beam_size=1, max_decoding_length=100)
    theirs = [result.hypotheses[0] for result in results]
    ours = [[pieces[number] for number in row] for row in network.greedy(sources)]
    return sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(sources)
