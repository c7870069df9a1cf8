"""Chat, as people write it: pure functions that make a clean pair look like a message.

Each takes a pair and a ``random.Random``, and gives back a pair. Noise goes on the source only, so that the model
learns to answer careless German with careful English; what is to be copied (numbers, names, emoji, quotes) goes on
both sides. A function that finds nothing to do gives the pair back as it is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Final

from models.recipe.pairs import Pair

UMLAUTS: Final = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"}
)  # fmt: skip
EMOJI: Final = (*"😀😂🤣😊😍😎😢😭😡👍👎🙏🎉🔥💯🤔🙄😴🍕☕🐱🐶🎮🚀✨", "❤️", ":)", ":D", ";)", "xD", "^^")
QUOTES: Final[Mapping[str, str]] = {"de": "„“", "en": "“”", "fr": "«»", "es": "«»", "it": "«»", "pl": "„”"}
NEIGHBOURS: Final[Mapping[str, str]] = {
    "a": "sqy", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "kö", "m": "n", "n": "bm", "o": "ip", "p": "oü", "q": "wa", "r": "et", "s": "ad", "t": "rz",
    "u": "zi", "v": "cb", "w": "qe", "x": "yc", "y": "xs", "z": "tu",
}  # fmt: skip

# The corpus is full of Tom and Mary: others take their place, so that a name is learnt as something to copy.
NAMES_M: Final = (
    "Tom", "John", "Peter", "Jim", "Bob", "Ken", "Lukas", "Jonas", "Finn", "Emre", "Mehmet", "Ali", "Oskar", "Felix",
    "Moritz", "Sven", "Kevin", "Dmitri", "Rahul", "Mateusz", "Pierre", "Diego",
)  # fmt: skip
NAMES_F: Final = (
    "Mary", "Maria", "Jane", "Anna", "Emily", "Alice", "Lena", "Mia", "Laura", "Aylin", "Fatma", "Ingrid", "Julia",
    "Sophie", "Svenja", "Olga", "Priya", "Kasia", "Camille", "Lucia", "Nele", "Wiebke",
)  # fmt: skip
# Made-up ones are of such parts: a few names are learnt by heart, and any other is then spelt like one of them.
ONSETS: Final = (
    *"bdfghjklmnprstvwxyz", "br", "ch", "dr", "fl", "gr", "kr", "ph", "sch", "sh", "sk", "st", "th", "tr", "zw", "",
)  # fmt: skip
NUCLEI: Final = (*"aeiou" * 3, "ai", "au", "ee", "ei", "ia", "ie", "io", "oo")  # no umlauts, which chat spells ae
CODAS: Final = (*"lmnrst", "ck", "ff", "ld", "ng", "rg", "rt", "sch", "tz", "x", *[""] * 25)
HANDLES: Final = ("{}97", "xX_{}_Xx", "{}42", "{}_tv", "Der{}", "{}katze", "TheReal{}", "{}.{}", "_{}", "{}{}", "{}3")

# Verbs as they stand beside "Sie", and beside "du".
VERBS: Final[Mapping[str, str]] = {
    "haben": "hast", "sind": "bist", "können": "kannst", "müssen": "musst", "wollen": "willst", "werden": "wirst",
    "wissen": "weißt", "möchten": "möchtest", "sollten": "solltest", "dürfen": "darfst", "mögen": "magst",
    "würden": "würdest", "könnten": "könntest", "hätten": "hättest", "wären": "wärst", "brauchen": "brauchst",
    "kommen": "kommst", "gehen": "gehst", "machen": "machst", "sehen": "siehst", "denken": "denkst",
    "glauben": "glaubst", "kennen": "kennst", "wohnen": "wohnst", "sprechen": "sprichst", "meinen": "meinst",
    "verstehen": "verstehst",
}  # fmt: skip
WORD: Final = re.compile(r"\b[^\W\d_]{4,}\b")
NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")
_FORMAL: Final = {familiar: formal for formal, familiar in VERBS.items()}
_DU: Final = "|".join(_FORMAL)
_SIE: Final = "|".join(VERBS)


# --- the source only --------------------------------------------------------------------


def lower_case(pair: Pair, rng: random.Random) -> Pair:
    return pair._replace(source=pair.source.lower())


def plain_umlauts(pair: Pair, rng: random.Random) -> Pair:
    """ae, oe, ue, ss, as from a keyboard without the letters."""
    return pair._replace(source=pair.source.translate(UMLAUTS))


def drop_end(pair: Pair, rng: random.Random) -> Pair:
    """Without the final punctuation; the target keeps its own."""
    return pair._replace(source=re.sub(r"(?<=\w)\s*[.!?…]+$", "", pair.source))


def typo(pair: Pair, rng: random.Random) -> Pair:
    """One slip of the finger inside a word of three letters or more: swapped, left out, doubled or the key beside."""
    text = pair.source
    spots = [match.start() + 1 for match in re.finditer(r"(?<=[^\W\d_])[^\W\d_]{2}", text)]
    if not spots:
        return pair
    at = rng.choice(spots)
    letter, before = text[at], text[:at]
    match rng.randrange(4):
        case 0:
            slipped = text[: at - 1] + letter + text[at - 1] + text[at + 1 :]
        case 1:
            slipped = before + text[at + 1 :]
        case 2:
            slipped = before + letter + text[at:]
        case _:
            slipped = before + rng.choice(NEIGHBOURS.get(letter, letter)) + text[at + 1 :]
    return pair._replace(source=slipped)


def change_address(pair: Pair, rng: random.Random) -> Pair:
    """German "du" to "Sie" or back, where the verb beside it is known and nothing else would have to change."""
    if re.search(r"\b[Dd]u\b", pair.source):
        return pair._replace(source=_to_sie(pair.source))
    if re.search(r"\byou\b", pair.target, re.I) and not re.search(r"\b(they|them|she|her)\b", pair.target, re.I):
        return pair._replace(source=_to_du(pair.source))
    return pair


def _to_sie(text: str) -> str:
    made = re.sub(rf"\b({_DU}) du\b", lambda m: f"{_FORMAL[m[1]]} Sie", text)
    made = re.sub(rf"\b({_DU}) du\b", lambda m: f"{_FORMAL[m[1].lower()].capitalize()} Sie", made, flags=re.I)
    made = re.sub(rf"\b[Dd]u ({_DU})\b", lambda m: f"Sie {_FORMAL[m[1]]}", made)
    if made == text or re.search(r"\b[Dd]u\b", made):
        return text  # a verb that is not in the table, or at the end of its clause
    made = re.sub(r"\b[Dd]ich\b", "Sie", re.sub(r"\b[Dd]ir\b", "Ihnen", made))
    return re.sub(r"\b[Dd]ein(e[nmrs]?)?\b", lambda m: f"Ihr{m[1] or ''}", made)


def _to_du(text: str) -> str:
    if len(re.findall(r"\bSie\b", text)) != 1:
        return text
    made = re.sub(rf"\b({_SIE}) Sie\b", lambda m: f"{VERBS[m[1]]} du", text)
    made = re.sub(rf"^({_SIE}) Sie\b", lambda m: f"{VERBS[m[1].lower()].capitalize()} du", made, flags=re.I)
    made = re.sub(rf"^Sie ({_SIE})\b", lambda m: f"Du {VERBS[m[1]]}", made)
    if made == text:
        return text
    made = re.sub(r"\bIhnen\b", "dir", made)
    return re.sub(r"\bIhr(e[nmrs]?)?\b", lambda m: f"dein{m[1] or ''}", made)


# --- both sides -------------------------------------------------------------------------


def emoji(pair: Pair, rng: random.Random) -> Pair:
    """One to three of the same at the end, or one at the start."""
    sign = rng.choice(EMOJI)
    if rng.random() < 0.15:
        return Pair(f"{sign} {pair.source}", f"{sign} {pair.target}")
    signs = sign * rng.choice((1, 1, 1, 2, 3)) if len(sign) == 1 else sign
    return Pair(f"{pair.source} {signs}", f"{pair.target} {signs}")


def join(pair: Pair, other: Pair, rng: random.Random) -> Pair:
    """Two sentences in one message; the source may have lost what stood between them."""
    first = drop_end(pair, rng) if rng.random() < 0.5 else pair
    between = rng.choice((" ", " ", ", ")) if first.source != pair.source else " "
    return Pair(first.source + between + other.source, f"{pair.target} {other.target}")


def new_numbers(pair: Pair, rng: random.Random) -> Pair:
    """Other digits for a number, a time or a version that stands once on both sides."""
    here, there = (NUMBER.findall(text) for text in pair)
    for number in dict.fromkeys(here):
        if here.count(number) == there.count(number) == 1:
            other = re.sub(r"\d", lambda _: str(rng.randrange(10)), number)
            if rng.random() < 0.3:
                other = made_up_number(rng)
            pair = Pair(*(re.sub(rf"(?<!\d){re.escape(number)}(?!\d)", other, text) for text in pair))
    return pair


def made_up_number(rng: random.Random) -> str:
    """Such as 2048, 17:45, 3.11.9 or 0.5."""
    parts = [str(rng.randrange(10 ** rng.choice((1, 1, 2, 2, 3, 4)))) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    return rng.choice((":", ".", ".", "-")).join(parts)


def made_up_name(rng: random.Random) -> str:
    """Of one to three syllables, some of them as a handle."""
    name = "".join(rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2, 3))))
    name = name.capitalize() if rng.random() < 0.8 else name
    return rng.choice(HANDLES).replace("{}", name) if rng.random() < 0.25 else name


def new_names(pair: Pair, rng: random.Random) -> Pair:
    """Another name, most of them made up, for one that stands on both sides (Maria may be Mary there)."""
    for names in (NAMES_M, NAMES_F):
        here, there = ([name for name in names if re.search(rf"\b{name}\b", text)] for text in pair)
        if len(here) == len(there) == 1 and (here == there or {*here, *there} == {"Mary", "Maria"}):
            other = made_up_name(rng) if rng.random() < 0.7 else rng.choice(names)
            pair = Pair(re.sub(rf"\b{here[0]}\b", other, pair.source), re.sub(rf"\b{there[0]}\b", other, pair.target))
    return pair


def new_word(pair: Pair, rng: random.Random) -> Pair:
    """A made-up name or number for a word that is written alike on both sides, but for its case: a place, a brand."""
    here, there = ([word.lower() for word in WORD.findall(text)] for text in pair)
    alike = [word for word in dict.fromkeys(here) if here.count(word) == there.count(word) == 1]
    if not alike:
        return pair
    word, other = rng.choice(alike), made_up_number(rng) if rng.random() < 0.3 else made_up_name(rng)
    return Pair(*(re.sub(rf"\b{word}\b", other, text, flags=re.I) for text in pair))


def quote(pair: Pair, rng: random.Random, codes: tuple[str, str]) -> Pair:
    """In the quotation marks of each language, in plain ones, or as Discord quotes a line."""
    match rng.randrange(3):
        case 0:
            marks = [QUOTES.get(code, '""') for code in codes]
        case 1:
            marks = ['""', '""']
        case _:
            return Pair(f"> {pair.source}", f"> {pair.target}")
    if any(mark in text for text in pair for mark in '"„“”«»'):
        return pair
    return Pair(*(f"{left}{text}{right}" for text, (left, right) in zip(pair, marks, strict=True)))


# --- all of it --------------------------------------------------------------------------


def augment(pair: Pair, other: Pair, rng: random.Random, codes: tuple[str, str]) -> Pair:
    """``pair`` as it might be written in chat; half of all pairs keep their careful spelling.

    ``other`` is what may be joined to it. The shares were set by hand, not tuned on the validation file.
    """
    german = codes[0] == "de"
    if rng.random() < 0.5:
        pair = new_names(new_numbers(pair, rng), rng)
    if rng.random() < 0.3:
        pair = new_word(pair, rng)
    if german and rng.random() < 0.15:
        pair = change_address(pair, rng)
    if rng.random() < 0.1:
        pair = join(pair, other, rng)
    if rng.random() < 0.03:
        pair = quote(pair, rng, codes)
    if rng.random() < 0.5:
        pair = careless(pair, rng, german)
    return emoji(pair, rng) if rng.random() < 0.04 else pair


def careless(pair: Pair, rng: random.Random, german: bool) -> Pair:
    """Some of the noise that goes on the source, each kind with a chance of its own."""
    if rng.random() < 0.7:
        pair = lower_case(pair, rng)
    if german and rng.random() < 0.6:
        pair = plain_umlauts(pair, rng)
    if rng.random() < 0.7:
        pair = drop_end(pair, rng)
    while rng.random() < 0.25:
        pair = typo(pair, rng)
    return pair
