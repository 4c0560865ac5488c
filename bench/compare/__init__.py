"""``make bench-compare``: this tree against an earlier commit, on one machine, in turn (``docs/benchmarks.md``)."""
