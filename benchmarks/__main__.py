"""`make bench`: every benchmark in its quick form; figures go to benchmarks/results/."""

from __future__ import annotations

import sys

from . import reuse_quality

if __name__ == "__main__":
    sys.exit(reuse_quality.main(sys.argv[1:]))
