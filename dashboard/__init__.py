"""The dashboard: one page that shows the cluster as it is, now and over the last day. ``python -m dashboard``.

``collector`` listens to the broker, ``watch`` makes snapshots of what it hears, ``history`` keeps the last day, and
``app`` answers requests from these. Rooms of dolmetsch may be used here; none of them uses this package.
"""
