"""``make bench-peers``: this appliance and its peers under the same load, on one machine, in turn (``docs/benchmarks.md``)."""
