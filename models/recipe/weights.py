"""Read the weights of a package with this recipe's network (the embedded one has it), to train on from them.

CTranslate2 writes model.bin and reads it, but does not hand its weights out again.
Source of the format: CTranslate2 4, ``python/ctranslate2/specs/model_spec.py``, ``_serialize``.
"""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import torch
from torch import Tensor

from models.recipe.network import Network, Shape

FORMAT: Final = 6
TYPES: Final = (np.float32, np.int8, np.int16, np.int32, np.float16)
_OUTPUTS: Final = ("self_attention.linear.1.", "ffn.linear_1.")  # what an encoder layer adds to what passes through it


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """All variables of a model.bin by name. Raises ``ValueError`` for another format."""
    with path.open("rb") as file:
        (version,) = struct.unpack("<I", file.read(4))
        if version != FORMAT:
            raise ValueError(f"{path} has the format {version}: only {FORMAT} can be read")
        _name(file)
        _, count = struct.unpack("<II", file.read(8))
        variables = dict(_variable(file) for _ in range(count))
        (aliases,) = struct.unpack("<I", file.read(4))  # what is alike is there once, as in a layer just grown
        for _ in range(aliases):
            alias, name = _name(file), _name(file)
            variables |= {alias + end: variables[name + end] for end in ("", "_scale") if name + end in variables}
        return variables


def _name(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length)[:-1].decode()


def _variable(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _name(file)
    (rank,) = struct.unpack("<B", file.read(1))
    dims = struct.unpack(f"<{rank}I", file.read(4 * rank))
    kind, size = struct.unpack("<BI", file.read(5))
    return name, np.frombuffer(file.read(size), TYPES[kind]).reshape(dims)


def read_network(path: Path, dropout: float) -> Network:
    """The network in a CTranslate2 folder, its int8 weights made float. Raises ``ValueError`` for another kind."""
    variables = read_variables(path / "model.bin")
    network = Network(_shape(variables), dropout)
    state = {name: _floats(variables, name) for name in network.state_dict()}
    network.load_state_dict(state)
    return network


def grown(network: Network, encoder_layers: int, dropout: float) -> Network:
    """The same function with more encoder layers: behind each old one copies of it, which are silent at first.

    Both outputs of a copy are zero, so it adds nothing; its inner weights are of use as soon as training raises these.
    Raises ``ValueError`` for fewer layers than there are.

    Sources: Chen et al. 2016, "Net2Net" (growing without a change of the function); Li et al. 2020, "Shallow-to-Deep
    Training for Neural Machine Translation" (new layers begin as copies).
    """
    before = network.shape.encoder_layers
    if encoder_layers < before:
        raise ValueError(f"the package has {before} encoder layers: it cannot begin with {encoder_layers}")
    deeper = Network(replace(network.shape, encoder_layers=encoder_layers), dropout)
    origins = [at * before // encoder_layers for at in range(encoder_layers)]
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("encoder.layer.")}
    for at, origin in enumerate(origins):
        layer = network.encoder.layer[origin].state_dict()
        if at and origins[at - 1] == origin:
            layer |= {name: torch.zeros_like(layer[name]) for name in layer if name.startswith(_OUTPUTS)}
        state |= {f"encoder.layer.{at}.{name}": value for name, value in layer.items()}
    deeper.load_state_dict(state)
    return deeper


def _shape(variables: dict[str, np.ndarray]) -> Shape:
    try:
        vocabulary, dim = variables["decoder/embeddings/weight"].shape
        layers = [len([name for name in variables if re.fullmatch(rf"{side}/layer_\d+/ffn/linear_0/weight", name)])
                  for side in ("encoder", "decoder")]  # fmt: skip
        ffn = variables["encoder/layer_0/ffn/linear_0/weight"].shape[0]
        return Shape(layers[0], layers[1], dim, ffn, int(variables["encoder/num_heads"]), vocabulary)
    except KeyError as error:
        raise ValueError(f"the package has another kind of network: there is no {error}") from error


def _floats(variables: dict[str, np.ndarray], name: str) -> Tensor:
    key = re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")
    if key not in variables:
        raise ValueError(f"the package has another kind of network: there is no {key}")
    value = variables[key].astype(np.float32)
    if variables[key].dtype == np.int8:
        value /= variables[f"{key}_scale"].reshape(-1, 1)
    return torch.from_numpy(value.copy())
