#!/usr/bin/env python3
"""The dispatch policy by simulation: the real scheduler in virtual time, against other choices of the node.

    python bench/simulate.py [--quick] [--times N] [--seed N] [--plots]

4, 40 and 400 Pis of mixed speed, some of which throttle, crash or cannot be reached for a while; Poisson and bursty
load, heavy-tailed lengths, one tenant that floods. Earliest finish is the scheduler as it is; least loaded, round robin
and random differ from it in the chosen node only, and are given the same jobs and the same troubles. Reported are
interactive latency, the part of the children's time in use, Jain's fairness index between tenants, and for closed
batches the makespan over the least possible. No cache, and nothing is refused. What is assumed of nodes and people
stands in bench/policy/.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own
    from dolmetsch.bootstrap import in_venv

    in_venv()
    from bench.policy.program import main

    main(__doc__)
