"""The simulated world: the pure cores, joined by a network, disks and clocks that one integer decides.

``python -m simulation --seeds 10000`` runs many worlds, ``python -m simulation --seed N --story`` tells one of them.
``world.py`` joins the rooms; ``witness.py``, ``watch.py``, ``lanewatch.py`` and ``touch.py`` say what must be true.
"""
