"""A few pairs for the recipe's tests."""

from __future__ import annotations

from models.recipe.pairs import Pair

CODES = ("de", "en")
PAIR = Pair("Weißt du, wo meine Schlüssel sind?", "Do you know where my keys are?")
SOME = [
    Pair(f"{name} hat {count} {thing[0]} gekauft.", f"{name} bought {count} {thing[1]}.")
    for name in ("Tom", "Anna", "Peter", "Lena")
    for count in (2, 3, 17, 40)
    for thing in (("Äpfel", "apples"), ("Bücher", "books"), ("Hüte", "hats"), ("Stühle", "chairs"))
]
