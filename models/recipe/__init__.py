"""The recipe: from parallel text to a finished Argos package, in one command.

    python -m models.recipe train --corpus PAIRS.tsv.gz --validation VALIDATION.tsv --work FOLDER --out FOLDER

``pairs`` reads and filters, ``augment`` makes pairs look like chat, ``pieces`` is SentencePiece, ``stream`` makes
batches, ``schedule`` the learning rate, ``network`` is the Transformer, ``training`` the loop, ``export`` writes
CTranslate2, ``package`` the Argos package and its card, ``evaluate`` the scores, ``plot`` the picture of the loss.

torch is imported by ``network``, ``training``, ``export`` and ``weights`` only; none of this runs on a node.
"""
