"""``python -m models.recipe train``, ``… evaluate``, ``… diversify`` and ``… shortlist``; ``--help`` says the rest."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(HOUSE))  # also when it is started from another folder

from models.recipe.pairs import Pair, read_pairs  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.command == "diversify":
        _diversify(options)
        return
    validation = read_pairs(options.validation, options.reverse)
    if not validation:
        raise SystemExit(f"{options.validation} has no pairs: two columns with a tab between them are expected")
    if options.command == "train":
        from models.recipe.train import train  # needs torch

        train(options, validation)
    elif options.command == "shortlist":
        _shortlist(options, validation)
    else:
        _evaluate(options.package, validation, options.beam)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.recipe", description="Make an Argos package, or score one.")
    commands = parser.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--validation", type=Path, required=True, help="pairs to score on; training never sees them")
    both.add_argument(
        "--reverse", action="store_true", help="the other direction: the files' second column to the first"
    )

    evaluate = commands.add_parser("evaluate", parents=[both], help="score packages side by side")
    evaluate.add_argument("package", type=Path, nargs="+", help="a package's folder")
    evaluate.add_argument("--beam", type=int, help="default: dolmetsch's")

    shortlist = commands.add_parser("shortlist", parents=[both], help="add one to a package, or count it anew")
    shortlist.add_argument("package", type=Path, help="a package's folder")
    shortlist.add_argument("--corpus", type=Path, nargs="+", required=True, help="the pairs it was trained on")

    diversify = commands.add_parser("diversify", help="more pairs out of a corpus, by packages for both directions")
    diversify.add_argument("there", type=Path, help="the folder of a package from the first column to the second")
    diversify.add_argument("back", type=Path, help="and of one back")
    diversify.add_argument("--corpus", type=Path, nargs="+", required=True, help="two-column files, plain or .gz")
    diversify.add_argument("--out", type=Path, required=True, help="the new corpus, .tsv.gz: train on both")

    train = commands.add_parser(
        "train", parents=[both], help="from parallel text to a package; goes on where it stopped"
    )
    train.add_argument("--corpus", type=Path, nargs="+", required=True, help="two-column files, plain or .gz")
    train.add_argument("--phrases", type=Path, nargs="+", default=[], help="such files, few pairs that come up often")
    train.add_argument("--work", type=Path, required=True, help="folder for checkpoints; the same again goes on")
    train.add_argument("--out", type=Path, required=True, help="folder for the package")
    train.add_argument("--from", dest="from_code", default="de", help="language of the files' first column")
    train.add_argument("--to", dest="to_code", default="en", help="language of their second")
    train.add_argument("--minutes", type=float, default=60, help="of training, over all resumptions (default 60)")
    train.add_argument("--steps", type=int, help="train for exactly so many steps instead")
    train.add_argument("--size", choices=["auto", "small", "large", "tiny"], default="auto",
                       help="auto: large with an accelerator, else small; tiny is for tests")  # fmt: skip
    train.add_argument(
        "--start", type=Path, help="begin with the weights of this package, the embedded one or one made here"
    )
    train.add_argument(
        "--encoder-layers", type=int, help="with --start: so many, the new ones silent at first (default: as it has)"
    )
    train.add_argument(
        "--keep", type=float, default=0.5, help="the share of --start's weights in the result (default 0.5)"
    )
    train.add_argument("--dropout", type=float, help="default: the size's; more where there are few pairs for the time")
    train.add_argument("--package-version", default="1.1")
    train.add_argument("--credit", action="append", default=[], help="attribution for the card; may be repeated")
    train.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all cores")
    train.add_argument("--seed", type=int, default=1)
    return parser


def _shortlist(options: argparse.Namespace, validation: Sequence[Pair]) -> None:
    from dolmetsch.packages import open_package
    from models.recipe.pairs import Tally, training_pairs
    from models.recipe.pieces import open_pieces
    from models.recipe.shortlist import write_shortlist

    package = open_package(options.package)
    pairs = training_pairs(options.corpus, validation, options.reverse, Tally())
    write_shortlist(package.model_path, pairs, open_pieces(package.tokenizer_path), package.from_code)
    print(open_package(options.package).model_version)


def _diversify(options: argparse.Namespace) -> None:
    from dolmetsch.packages import open_package
    from models.recipe.diversify import diversify, write
    from models.recipe.pairs import is_useful

    pairs = [pair for path in options.corpus for pair in read_pairs(path) if is_useful(pair)]
    count = write(options.out, diversify(pairs, open_package(options.there), open_package(options.back)))
    print(f"{options.out}: {count} pairs out of {len(pairs)}")


def _evaluate(paths: Sequence[Path], validation: Sequence[Pair], beam: int | None) -> None:
    from dolmetsch.packages import open_package
    from models.recipe.evaluate import evaluate, table

    scores = [evaluate(open_package(path), validation, beam) for path in paths]
    print(table(scores), *scores[0].signatures, sep="\n")
    print(json.dumps([asdict(one) for one in scores], ensure_ascii=False))


if __name__ == "__main__":
    main()
