"""Chaos: the real programs in network namespaces, a steady load, and faults that a seed draws; nothing may be lost.

Not part of the product; dolmetsch does not know it. ``python -m chaos`` runs it.
"""
