"""Training to a package, where torch is installed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dolmetsch.packages import open_package
from models.recipe import stream
from models.recipe.__main__ import main
from models.recipe.pairs import Pair
from tests.embedded import GERMAN
from tests.recipe_pairs import CODES, PAIR, SOME


@pytest.fixture
def rooms() -> SimpleNamespace:
    """The modules that need torch."""
    torch = pytest.importorskip("torch", reason="torch is in models/recipe/requirements.txt, which no node needs")
    from models.recipe import export, network, train, training, weights

    torch.set_num_threads(1)
    return SimpleNamespace(torch=torch, export=export, network=network, train=train, training=training, weights=weights)


def begin(rooms: SimpleNamespace, folder: Path) -> tuple[Any, stream.Stream]:
    """A tiny run with the embedded package's pieces, in ``folder``."""
    pieces = GERMAN / "sentencepiece.model"
    processor = stream.open_pieces(pieces)
    rooms.torch.manual_seed(3)
    shape = replace(rooms.train.SHAPES["tiny"], vocabulary=processor.get_piece_size())
    batches = rooms.training.held_out_batches(SOME[:5], processor, 400)
    folder.mkdir(exist_ok=True)
    run = rooms.training.Run(rooms.network.Network(shape, 0.1), rooms.train.SETTINGS["tiny"], folder, batches)
    rooms.torch.rand(len(list(folder.iterdir())) + 1)  # others draw from the same source of chance
    return run, stream.Stream(SOME, pieces, CODES, batch_tokens=300, seed=1)


def test_a_resumed_run_ends_with_the_same_numbers(rooms: SimpleNamespace, tmp_path: Path) -> None:
    straight, batches = begin(rooms, tmp_path / "straight")
    straight.train(batches, minutes=1, steps=30)
    begin(rooms, tmp_path / "broken")[0].train(batches, minutes=1, steps=30, until=20)
    resumed, batches = begin(rooms, tmp_path / "broken")
    assert resumed.progress.step == 20
    resumed.train(batches, minutes=1, steps=30)
    one, other = straight.network.state_dict(), resumed.network.state_dict()
    assert all(rooms.torch.equal(one[name], other[name]) for name in one)
    assert straight.progress.losses == resumed.progress.losses
    assert straight.progress.held_out == resumed.progress.held_out
    assert straight.progress.held_out[-1][1] < straight.progress.held_out[0][1]
    averages = [run.best_average() for run in (straight, resumed)]
    assert all(rooms.torch.equal(averages[0][0][name], averages[1][0][name]) for name in one)


def test_dropout_drops_its_share_and_keeps_the_sum(rooms: SimpleNamespace) -> None:
    rooms.torch.manual_seed(1)
    x = rooms.torch.ones(300, 1001, dtype=rooms.torch.bfloat16, requires_grad=True)
    thin = rooms.network.dropout(x, 0.3, training=True)
    assert thin.dtype == x.dtype and thin.unique().numel() == 2
    assert abs(float((thin == 0).float().mean()) - 0.3) < 0.005
    assert abs(float(thin.detach().float().mean()) - 1) < 0.01
    thin.sum().backward()
    assert rooms.torch.equal(x.grad, thin), "the gradient is dropped where the value was"
    assert rooms.network.dropout(x, 0.3, training=False) is x and rooms.network.dropout(x, 0.0, training=True) is x


def test_padding_has_no_part_in_the_loss(rooms: SimpleNamespace) -> None:
    network = rooms.network.Network(replace(rooms.train.SHAPES["tiny"], vocabulary=50)).eval()
    rows = [([7, 8, 9, 2], [1, 5, 2]), ([4, 2], [1, 9, 8, 7, 6, 2])]
    with rooms.torch.no_grad():
        alone = [float(network.loss([source], [target], 0.1)) for source, target in rows]
        together = float(network.loss([source for source, _ in rows], [target for _, target in rows], 0.1))
    assert together == pytest.approx(sum(alone), rel=1e-5)


def test_a_batch_in_parts_teaches_what_it_teaches_as_a_whole(rooms: SimpleNamespace, tmp_path: Path) -> None:
    made = []
    for parts in (1, 3):
        rooms.torch.set_num_threads(parts)
        settings = replace(rooms.train.SETTINGS["tiny"], dropout=0.0, bf16=False, seed=2**40)
        rooms.torch.manual_seed(3)
        network = rooms.network.Network(replace(rooms.train.SHAPES["tiny"], vocabulary=4000))
        (tmp_path / str(parts)).mkdir()
        run = rooms.training.Run(network, settings, tmp_path / str(parts), [])
        pieces = GERMAN / "sentencepiece.model"
        run.train(stream.Stream(SOME, pieces, CODES, batch_tokens=300, seed=1), minutes=1, steps=1)
        made.append(([parameter.grad for parameter in network.parameters()], run.progress))
    rooms.torch.set_num_threads(1)
    (slopes, alone), (others, together) = made
    assert all(rooms.torch.allclose(one, other, atol=1e-6) for one, other in zip(slopes, others, strict=True))
    assert alone.tokens == together.tokens and alone.place == together.place
    batch = stream.Batch([[5, 2]] * 2, [[1, 2]] * 2)
    assert [len(part.sources) for part in rooms.training.split(batch, 3)] == [1, 1]


def test_a_mix_lies_between_its_two(rooms: SimpleNamespace) -> None:
    start, trained = ({"w": rooms.torch.tensor([value])} for value in (0.0, 8.0))
    assert [float(rooms.train.mix(start, trained, keep)["w"]) for keep in (0.0, 0.25, 1.0)] == [8.0, 6.0, 0.0]


def test_a_grown_network_says_what_the_old_one_says_and_learns_in_all_its_layers(rooms: SimpleNamespace) -> None:
    rooms.torch.manual_seed(1)
    network = rooms.network.Network(replace(rooms.train.SHAPES["tiny"], encoder_layers=2, vocabulary=50)).eval()
    grown = rooms.weights.grown(network, 5, 0.0).eval()
    assert grown.shape == replace(network.shape, encoder_layers=5)
    rows = [[7, 8, 9, 2], [4, 2]], [[1, 5, 2], [1, 9, 8, 2]]
    loss = grown.loss(*rows, 0.1)
    assert float(loss) == float(network.loss(*rows, 0.1))
    loss.backward()
    assert all(
        layer.ffn.linear_1.weight.grad.any() and layer.self_attention.linear[1].weight.grad.any()
        for layer in grown.encoder.layer
    )
    with pytest.raises(ValueError, match="has 5 encoder layers: it cannot begin with 2"):
        rooms.weights.grown(grown, 2, 0.0)


def test_time_alone_ends_a_run(rooms: SimpleNamespace, tmp_path: Path) -> None:
    run, batches = begin(rooms, tmp_path)
    run.train(batches, minutes=0.01)
    assert run.progress.plan.done(run.progress.step) and 0 < run.progress.spent_s < 5


def test_ctranslate2_says_what_the_network_says(rooms: SimpleNamespace, tmp_path: Path) -> None:
    processor = stream.open_pieces(GERMAN / "sentencepiece.model")
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    network = rooms.weights.read_network(GERMAN / "model", 0.0)
    rooms.export.export(network.state_dict(), network.shape, pieces, tmp_path / "float", None)
    sources = [source for source, _ in stream.encode([PAIR, *SOME[:7], Pair("Ja!", "Yes!")], processor)]
    assert rooms.export.agreement(network, pieces, tmp_path / "float", sources) == 1.0
    again = rooms.weights.read_network(tmp_path / "float", 0.0).state_dict()
    assert all(rooms.torch.equal(weight, again[name]) for name, weight in network.state_dict().items())


def test_options_that_cannot_be_are_refused_in_one_sentence(rooms: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in SOME))
    pairs, folder = str(tmp_path / "pairs.tsv"), str(tmp_path / "work")
    command = ["train", "--corpus", pairs, "--validation", pairs, "--work", folder, "--out", folder]
    for more, said in (
        (["--encoder-layers", "4"], "say which, with --start"),
        (["--dropout", "1"], "--dropout is a share"),
        (["--start", str(GERMAN), "--encoder-layers", "0"], "it cannot begin with 0"),
    ):
        with pytest.raises(SystemExit, match=said):
            main([*command, *more])


def test_the_command_makes_a_deeper_package_that_says_the_same_where_all_is_kept(
    rooms: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is in models/recipe/requirements.txt")
    for name, some in (("pairs.tsv", SOME), ("validation.tsv", [PAIR, Pair("Ich bin 17.", "I'm 17.")])):
        (tmp_path / name).write_text("".join(f"{source}\t{target}\n" for source, target in some))
    settings = []
    monkeypatch.setattr(rooms.train, "Run", lambda *given: settings.append(given[1]) or rooms.training.Run(*given))
    before = rooms.weights.read_network(GERMAN / "model", 0.0).eval()
    layers = before.shape.encoder_layers + 1
    main([
        "train", "--corpus", str(tmp_path / "pairs.tsv"), "--validation", str(tmp_path / "validation.tsv"),
        "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--start", str(GERMAN), "--keep", "1",
        "--encoder-layers", str(layers), "--dropout", "0.3", "--size", "small", "--steps", "1", "--threads", "1",
    ])  # fmt: skip
    assert [one.dropout for one in settings] == [0.3]
    deeper = rooms.weights.read_network(tmp_path / "translate-de_en-1_1" / "model", 0.0).eval()
    assert deeper.shape.encoder_layers == layers
    rows = [source for source, _ in stream.encode(SOME[:5], stream.open_pieces(GERMAN / "sentencepiece.model"))]
    assert deeper.greedy(rows) == before.greedy(rows)


def test_one_command_makes_a_package_of_another_route(
    rooms: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is in models/recipe/requirements.txt")
    for name, some in (
        ("mine.tsv", SOME[1:]),
        ("few.tsv", SOME[:1]),
        ("validation.tsv", [PAIR, Pair("Guten Morgen", "Good morning")]),
    ):
        (tmp_path / name).write_text("".join(f"{source}\t{target}\n" for source, target in some))
    places = [
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
        "--validation",
        str(tmp_path / "validation.tsv"),
    ]
    command = [
        "train",
        "--corpus",
        str(tmp_path / "mine.tsv"),
        "--phrases",
        str(tmp_path / "few.tsv"),
        *places,
        "--size",
        "tiny",
        "--steps",
        "12",
        "--threads",
        "1",
    ]
    streams = []
    monkeypatch.setattr(rooms.train, "Stream", lambda *a, **k: streams.append(stream.Stream(*a, **k)) or streams[-1])
    main([*command, "--reverse", "--from", "fr", "--to", "en"])
    few = Pair(SOME[0].target, SOME[0].source)
    (used,) = streams
    assert [used.pairs[at] for at in used.often].count(few) == stream.PHRASED
    package = open_package(tmp_path / "out" / "translate-en_fr-1_1")
    assert (package.from_name, package.to_name) == ("English", "French")
    text = (package.path / "README.md").read_text()
    assert "mine.tsv: write its origin" in text and "few.tsv: write its origin" in text
    assert "| two in one message |" in text and "12 steps" in text
    assert "</svg>" in (tmp_path / "out" / "translate-en_fr-1_1-loss.svg").read_text()
    shutil.rmtree(tmp_path / "out")
    main([*command, "--reverse", "--from", "fr", "--to", "en"])  # nothing is left to train: it only packs again
    assert (tmp_path / "out" / "translate-en_fr-1_1.argosmodel").exists()
