"""The recipe without torch: what training may see, what chat looks like, packages and their scores."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolmetsch.packages import open_package
from models.recipe import augment, pairs, plot, stream
from models.recipe.__main__ import main
from models.recipe.evaluate import (
    CHAT,
    CLEAN,
    STRANGERS,
    Score,
    Scores,
    Translator,
    kept,
    perturbed,
    table,
    with_numbers,
    with_strangers,
)
from models.recipe.package import CREDITS, Facts, archive, card, credits_in, credits_of, write_package
from models.recipe.pairs import NearDuplicates, Pair, Tally, hold_out, is_useful, plain, read_pairs, select
from models.recipe.pieces import open_pieces, split_some, splits
from models.recipe.schedule import Plan
from models.recipe.shortlist import LISTED, is_byte, shortlist, write_shortlist
from tests.embedded import ENGLISH, GERMAN
from tests.recipe_pairs import CODES, PAIR, SOME

HOUSE = Path(__file__).parent.parent
CORPUS = Path(os.environ.get("DOLMETSCH_CORPUS", HOUSE.parent / "shared" / "corpus"))
PHRASES = HOUSE / "models" / "phrases"
FACTS = Facts(
    from_code="de",
    to_code="en",
    version="1.1",
    architecture="Small.",
    training="Short.",
    data="Little.",
    credits=("Us.",),
)
SCORES = Scores(
    model="de_en-1.1-0badcafe", beam=2, copies={CLEAN: Score(20.0, 40.0), CHAT: Score(15.0, 30.0)},
    kept={"numbers": 0.9}, tokens_per_s=3000, size_bytes=6_500_000, signatures=("b", "c"),
)  # fmt: skip


def rng() -> random.Random:
    return random.Random(1)


# --- pairs ------------------------------------------------------------------------------


def test_two_columns_are_read_plain_or_packed_in_either_direction(tmp_path: Path) -> None:
    text = "Hallo!\tHi.\tCC-BY 2.0\nohne Tabulator\nFeuer!\tFire!\n"
    (tmp_path / "a.tsv").write_text(text)
    with gzip.open(tmp_path / "a.tsv.gz", "wt") as file:
        file.write(text)
    assert read_pairs(tmp_path / "a.tsv") == [("Hallo!", "Hi."), ("Feuer!", "Fire!")]
    assert read_pairs(tmp_path / "a.tsv.gz", reverse=True) == [("Hi.", "Hallo!"), ("Fire!", "Feuer!")]


@pytest.mark.parametrize(
    ("pair", "useful"),
    [
        (PAIR, True),
        (Pair("Hi.", "Guten Tag, mein Herr."), True),
        (Pair("", "Hi."), False),
        (Pair("123", "123"), False),
        (Pair("Ja.", "This says a great deal more than yes."), False),
        (Pair("wort " * 61, "word " * 61), False),
        (Pair("x" * 401, "x" * 401), False),
    ],
)
def test_what_teaches_nothing_is_dropped(pair: Pair, useful: bool) -> None:
    assert is_useful(pair) is useful


def test_near_duplicates_of_the_validation_file_are_dropped_from_either_side() -> None:
    validation = [
        Pair("Der Zug um 10:15 Uhr fährt heute nicht nach Köln.", "The 10:15 train does not go to Cologne today.")
    ]
    kept = Pair("Der Hund schläft heute nicht.", "The dog does not sleep today.")
    dropped = [
        Pair("der zug um 11:30 uhr faehrt heute nicht nach koeln", "There is no train for us."),
        Pair("Der Zug um 10:15 Uhr fährt heute leider nicht nach Köln.", "There is no train for us."),
        Pair("Heute kommt für uns leider kein Zug.", "The 10:15 train doesn't go to Cologne today."),
    ]
    tally = Tally()
    assert list(select([*dropped, kept, kept, Pair("", "x")], validation, tally)) == [kept]
    assert tally.dropped["near-duplicates of the validation file"] == 3
    assert str(tally).startswith("6 pairs read, 1 kept; dropped: ")


@given(st.lists(st.text("abcä ", max_size=12), max_size=8), st.text("abcä ", max_size=12))
@settings(max_examples=150, deadline=None)
def test_the_index_finds_what_comparing_with_all_finds(sentences: list[str], sentence: str) -> None:
    mine = pairs.grams(plain(sentence))
    similar = [pairs.similarity(mine, pairs.grams(plain(other))) >= pairs.NEAR for other in sentences]
    assert (sentence in NearDuplicates(sentences)) == any(similar)


def test_training_shares_no_near_duplicate_with_the_validation_file() -> None:
    """Equal sentences are looked for in all of the corpus, similar ones in a part of it, each with each."""
    if not (CORPUS / "validation.tsv").exists():
        pytest.skip("the corpus is not in the repository; DOLMETSCH_CORPUS says where it is")
    validation = read_pairs(CORPUS / "validation.tsv")
    offered = read_pairs(CORPUS / "tatoeba.de-en.tsv.gz")
    suspects = {plain(text) for pair in validation for text in pair}
    equal = [pair for pair in offered if plain(pair.source) in suspects or plain(pair.target) in suspects]
    used = list(select([*offered[::24], *equal], validation, Tally()))
    assert len(used) > 5_000
    for side in (0, 1):
        theirs = {plain(pair[side]) for pair in validation}
        assert not theirs & {plain(pair[side]) for pair in used}
        sets = [pairs.grams(text) for text in sorted(theirs)[::30]]
        grams = [pairs.grams(plain(pair[side])) for pair in used]
        assert max(pairs.similarity(mine, other) for mine in grams for other in sets) < pairs.NEAR


def test_the_phrases_are_useful_pairs_and_those_kept_apart_are_not_near_to_any() -> None:
    validation = read_pairs(PHRASES / "validation.de-en.tsv")
    known = [pair for path in sorted(PHRASES.glob("phrases*.tsv")) for pair in read_pairs(path)]
    assert len(validation) > 500 and len(known) > 100_000
    tally = Tally()
    assert list(select(known, validation, tally)) == known, str(tally)
    assert all(is_useful(pair) and pair == Pair(*(" ".join(side.split()) for side in pair)) for pair in validation)


def test_no_sentence_is_both_held_out_and_trained_on() -> None:
    many = [Pair(f"s{n % 40}", f"t{n}") for n in range(200)]
    rest, held_out = hold_out(many, 5, rng())
    assert len(held_out) == 5 and not {p.source for p in rest} & {p.source for p in held_out}


# --- augmentation -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "source"),
    [
        (augment.lower_case, "weißt du, wo meine schlüssel sind?"),
        (augment.plain_umlauts, "Weisst du, wo meine Schluessel sind?"),
        (augment.drop_end, "Weißt du, wo meine Schlüssel sind"),
    ],
)
def test_careless_spelling_is_on_the_source_only(change: Any, source: str) -> None:
    assert change(PAIR, rng()) == (source, PAIR.target)


def test_a_typo_is_one_slip() -> None:
    made = {augment.typo(PAIR, random.Random(seed)).source for seed in range(50)}
    assert len(made) > 20 and all(abs(len(text) - len(PAIR.source)) <= 1 for text in made)
    assert augment.typo(Pair("12 :) 3", "x"), rng()) == ("12 :) 3", "x")


@pytest.mark.parametrize(
    ("before", "after", "english"),
    [
        ("Kannst du mir dein Buch geben?", "Können Sie mir Ihr Buch geben?", "Can you give me your book?"),
        ("Du hast recht.", "Sie haben recht.", "You're right."),
        ("Haben Sie Hunger?", "Hast du Hunger?", "Are you hungry?"),
        ("Sie haben Hunger.", "Sie haben Hunger.", "They are hungry."),
        ("Wenn du das liest, ruf an.", "Wenn du das liest, ruf an.", "When you read this, call."),
    ],
)
def test_du_becomes_sie_and_back_only_where_the_verb_is_known(before: str, after: str, english: str) -> None:
    assert augment.change_address(Pair(before, english), rng()) == (after, english)


def test_emoji_quotes_and_a_second_sentence_go_on_both_sides() -> None:
    with_emoji = augment.emoji(PAIR, rng())
    assert set(with_emoji.source) - set(PAIR.source) == set(with_emoji.target) - set(PAIR.target) != set()
    assert augment.join(PAIR, Pair("Ja!", "Yes!"), rng()).target == f"{PAIR.target} Yes!"
    quoted = {augment.quote(PAIR, random.Random(seed), CODES) for seed in range(20)}
    assert (f"„{PAIR.source}“", f"“{PAIR.target}”") in quoted and (f"> {PAIR.source}", f"> {PAIR.target}") in quoted


@pytest.mark.parametrize(
    ("change", "pair", "source", "target"),
    [
        (augment.new_names, Pair("Tom singt.", "Tom sings."), "{} singt.", "{} sings."),
        (augment.new_names, Pair("Mag Maria Eis?", "Does Mary like ice?"), "Mag {} Eis?", "Does {} like ice?"),
        (augment.new_numbers, Pair("Um 12:30 Uhr.", "At 12:30."), "Um {} Uhr.", "At {}."),
        (augment.new_word, Pair("Zum Hotel!", "To the hotel!"), "Zum {}!", "To the {}!"),
    ],
)
def test_what_is_to_be_copied_is_another_each_time(change: Any, pair: Pair, source: str, target: str) -> None:
    before, after = source.split("{}")
    changed = [change(pair, random.Random(seed)) for seed in range(60)]
    words = [made.source[len(before) : len(made.source) - len(after)] for made in changed]
    assert changed == [(source.format(word), target.format(word)) for word in words]
    assert len(set(words)) > 40


@pytest.mark.parametrize(
    ("change", "pair"),
    [
        (augment.new_names, Pair("Tom singt.", "He sings.")),
        (augment.new_numbers, Pair("Um 3 Uhr.", "At three.")),
        (augment.new_numbers, Pair("Es sind 1,5 Liter.", "It's 1.5 litres.")),
        (augment.new_word, Pair("Zur Musterstraße.", "To Musterstrasse.")),
    ],
)
def test_what_differs_between_the_sides_stays(change: Any, pair: Pair) -> None:
    assert {change(pair, random.Random(seed)) for seed in range(20)} == {pair}


@given(
    st.builds(Pair, st.text(max_size=40), st.text(max_size=40)), st.integers(0, 10**6), st.sampled_from(["de", "en"])
)
@settings(max_examples=150, deadline=None)
def test_augmentation_takes_any_text_and_depends_on_its_chance_only(pair: Pair, seed: int, code: str) -> None:
    one, other = (augment.augment(pair, PAIR, random.Random(seed), (code, "fr")) for _ in range(2))
    assert one == other


# --- the stream and the schedule --------------------------------------------------------


def test_batches_keep_to_their_size_and_lose_nothing() -> None:
    rows = [([5] * length, [1, *[6] * (length % 7), 2]) for length in range(1, 30)]
    batches = stream.pack(rows, 200)
    assert sorted(map(len, (row for batch in batches for row in batch.sources))) == list(range(1, 30))
    for sources, targets in batches:
        width = stream.even(max(map(len, sources))) + stream.even(max(map(len, targets)) - 1)
        assert width * len(sources) <= 200 or len(sources) <= stream.ROWS


def test_few_shapes_of_batches_come_up() -> None:
    chance = rng()
    rows = [([5] * chance.randint(1, 30), [1, *[6] * chance.randint(1, 30), 2]) for _ in range(10_000)]
    batches = stream.pack(rows, 1000)
    assert all(len(sources) % stream.ROWS == 0 for sources, _ in batches[:-1])
    wide = {len(sources) * stream.even(max(map(len, sources))) for sources, _ in batches}
    assert len(wide) < len(batches) / 10


def test_the_stream_goes_on_from_any_place_as_it_would_have() -> None:
    made = stream.Stream(SOME, GERMAN / "sentencepiece.model", CODES, batch_tokens=200, seed=1)
    source = made.batches(stream.Place())
    first = [next(source) for _ in range(40)]  # more than one epoch
    again = made.batches(first[24][0])
    assert [next(again) for _ in range(15)] == first[25:]
    assert first[-1][0].shard > 0


def test_what_the_corpus_has_little_of_comes_up_more_often() -> None:
    short = [Pair(f"Tom {word}.", f"Tom {word}.") for word in ("singt", "weint", "geht", "schläft")]
    scarce = [Pair("Ich bin 17.", "I'm 17."), Pair("ja " * 10, "yes " * 10), Pair("ja " * 24, "yes " * 24)]
    long = [Pair("ja " * 30, "yes " * 30)]
    made = stream.Stream(
        [*short, *scarce, *long], GERMAN / "sentencepiece.model", CODES, batch_tokens=200, seed=1, phrases={short[0]}
    )
    assert sum(len(batch.sources) for batch in made.shard(0)) == stream.PHRASED + 3 + 3 * stream.OFTEN + 1


def test_pieces_are_cut_in_two_and_say_the_same() -> None:
    processor = open_pieces(GERMAN / "sentencepiece.model")
    row = processor.encode("Meine Krankenversicherung zahlt das.")
    pairs = splits(processor)
    made = [split_some(row, pairs, 0.5, random.Random(seed)) for seed in range(20)]
    assert {processor.decode(one) for one in made} == {processor.decode(row)}
    assert max(map(len, made)) > len(row) and len({*map(tuple, made)}) > 5
    assert split_some(row, pairs, 0.0, random.Random(1)) == row


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    plan = Plan(peak=1.0, warmup=10).of(100)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:70] == [1.0] * 61 and 0 < rates[99] < 0.02
    assert rates[70:] == sorted(rates[70:], reverse=True) and not plan.done(99) and plan.done(100)


def test_the_clock_decides_when_the_rate_falls_and_nothing_else() -> None:
    plan = Plan(peak=1.0, warmup=10)
    assert plan.told(100, spent_s=300, minutes=10) == plan
    falling = plan.told(140, spent_s=420, minutes=10)
    assert (falling.fall_from, falling.steps) == (140, 200)
    assert falling.told(150, spent_s=500, minutes=10) == falling
    assert falling.told(160, spent_s=661, minutes=10).done(160)  # the machine became much slower


# --- the shortlist ----------------------------------------------------------------------


def test_a_piece_may_become_what_its_translations_are_made_of() -> None:
    rows = [({"▁der", "▁Hund"}, {"▁the", "▁dog"}), ({"▁die", "▁Katze"}, {"▁the", "▁cat"})] * 20
    rows += [({"▁der", "▁Wiebke"}, {"▁the", "▁Sven"})]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    found = shortlist(rows, bytes_)
    assert found["▁Hund"] == ["▁Hund", "▁dog"]  # "the" says nothing about a dog
    assert found["▁Wiebke"][0] == "▁Wiebke"
    assert found[""][:3] == ["▁the", "▁cat", "▁dog"]
    assert len(found["<0xF0>"]) == 129 and found["<0x5E>"] == ["<0x5E>", "▁"]
    assert all(len(candidates) <= LISTED + 1 for piece, candidates in found.items() if piece and not is_byte(piece))


def test_the_shortlist_is_a_file_that_ctranslate2_reads(tmp_path: Path) -> None:
    processor = stream.open_pieces(GERMAN / "sentencepiece.model")
    write_shortlist(tmp_path, SOME, processor, "de")
    first, *others = (tmp_path / "vmap.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("\t") and all(line.count("\t") == 1 for line in others)
    once = (tmp_path / "vmap.txt").read_bytes()
    write_shortlist(tmp_path, SOME, processor, "de")
    assert (tmp_path / "vmap.txt").read_bytes() == once


# --- package and scores -----------------------------------------------------------------


def test_the_package_is_one_that_dolmetsch_opens(tmp_path: Path) -> None:
    path = write_package(tmp_path, GERMAN / "model", GERMAN / "sentencepiece.model", FACTS)
    (path / "README.md").write_text(card(FACTS, SCORES, [("Hallo!", "Hi!")]))
    package = open_package(path)
    assert (package.route, package.version, path.name) == ("de→en", "1.1", "translate-de_en-1_1")
    assert json.loads((path / "metadata.json").read_text())["from_name"] == "German"
    with zipfile.ZipFile(archive(path)) as zipped:
        assert f"{path.name}/model/model.bin" in zipped.namelist()


def test_the_card_gives_credit_and_figures() -> None:
    text = card(FACTS, SCORES, [("Hallo!", "Hi!")])
    assert "- Us." in text and "| clean | 20.0 / 40.0 |" in text and "| BLEU lost on chat | 25 % |" in text
    tatoeba, unknown = credits_of([Path("tatoeba.de-en.tsv.gz"), Path("mine.tsv")], [])
    assert "CC BY 2.0 FR" in tatoeba and unknown.startswith("mine.tsv: write its origin")
    assert credits_of([Path("mine.tsv")], ["Mine."]) == ("Mine.",)


def test_credit_is_passed_on_with_the_weights(tmp_path: Path) -> None:
    tatoeba, europarl, *_ = credits_in(GERMAN)
    assert "tatoeba.org" in tatoeba and "CC BY 2.0 FR" in tatoeba and "Europarl: Philipp Koehn" in europarl
    assert "write here" in credits_in(tmp_path)[0]
    (tmp_path / "README.md").write_text(card(replace(FACTS, credits=(CREDITS["tatoeba"], europarl)), None, []))
    assert credits_in(tmp_path) == (CREDITS["tatoeba"], europarl)  # however often it is passed on


def test_perturbed_copies_are_always_the_same_and_keep_their_references() -> None:
    copies = perturbed(SOME)
    assert copies == perturbed(SOME) and copies[CLEAN] == SOME
    assert copies[CHAT][0] == ("tom hat 2 aepfel gekauft", SOME[0].target)
    assert [pair.target for pair in copies["typos"]] == [pair.target for pair in SOME]
    assert len(copies["two in one message"]) == len(SOME) // 2


def test_a_package_is_asked_as_dolmetsch_asks_it() -> None:
    translator = Translator(open_package(GERMAN))
    assert translator.translate(["Guten Morgen.", "", "Ich habe Hunger."]) == ["Good morning.", "", "I'm hungry."]
    assert translator.tokens_per_s(["Guten Morgen"] * 3) > 0


def test_unknown_names_and_numbers_are_looked_for_in_translations() -> None:
    strange = with_strangers([PAIR, Pair("Tom weint.", "Tom is crying."), Pair("Tom, Tom!", "Tom, Tom!")])
    assert strange == [(f"{STRANGERS[0]} weint.", STRANGERS[0])]
    known = {*augment.NAMES_M, *augment.NAMES_F}
    for path in PHRASES.glob("phrases*.tsv"):
        known.update(re.findall(r"[\w.]+", path.read_text(encoding="utf-8")))
    assert not {*STRANGERS} & known
    numbers = with_numbers([Pair("Um 10:15 Uhr am 3.", "On the 3rd at 10:15."), Pair("2013 und 13.", "2013, thirteen")])
    assert numbers == [("Um 10:15 Uhr am 3.", "10:15"), ("Um 10:15 Uhr am 3.", "3"), ("2013 und 13.", "2013")]
    outputs: Any = SimpleNamespace(translate=lambda sources: ["In 2013.", "On the 3rd.", "Merkel's.", "Mercer's."])
    assert kept(outputs, [("", "13"), ("", "3"), ("", "Merkel"), ("", "Merkel")]) == 0.5


def test_scores_stand_side_by_side() -> None:
    other = replace(SCORES, model="other", copies={CLEAN: Score(10.0, 20.0), CHAT: Score(9.0, 1.0)})
    assert "| clean | 20.0 / 40.0 | 10.0 / 20.0 |" in table([SCORES, other])
    assert "| numbers that are kept | 90 % | 90 % |" in table([SCORES, other])


def test_the_evaluate_command_scores_a_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is in models/recipe/requirements.txt")
    (tmp_path / "v.tsv").write_text("Guten Morgen.\tGood morning.\nIch bin 17.\tI'm 17.\n")
    main(["evaluate", str(GERMAN), "--validation", str(tmp_path / "v.tsv")])
    (scores,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["kept"] == {"numbers": 1.0}, "there are no names"
    assert scores["copies"]["clean"]["chrf"] == 100 and "chrf" not in scores["signatures"][0]


def test_the_diversify_command_says_everything_in_other_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm", reason="tqdm is in models/recipe/requirements.txt")
    known = [PAIR, Pair("Guten Morgen.", "Morning!"), Pair("123", "456")]
    (tmp_path / "c.tsv").write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in known))
    out = tmp_path / "more.tsv.gz"
    main(["diversify", str(GERMAN), str(ENGLISH), "--corpus", str(tmp_path / "c.tsv"), "--out", str(out)])
    found = read_pairs(out)
    assert capsys.readouterr().out == f"{out}: {len(found)} pairs out of 2\n"
    assert Pair("Guten Morgen.", "Good morning.") in found and not set(found) & set(known)
    assert any(pair.target == "Morning!" for pair in found)


def test_a_validation_file_without_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.tsv").write_text("one column\n")
    with pytest.raises(SystemExit, match="has no pairs"):
        main(["evaluate", str(GERMAN), "--validation", str(tmp_path / "v.tsv")])


def test_the_plot_names_its_lines() -> None:
    assert plot.smooth([(1, 2.0), (2, 4.0)]) == [(1, 2.0), (2, 3.0)]
    picture = plot.svg("a < b", {"one": [(1, 5.0), (20, 2.0)], "none": []})
    assert "a &lt; b" in picture and ">one</text>" in picture and ">20 steps</text>" in picture
