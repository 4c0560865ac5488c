"""Benchmarks: ``run`` compares the appliance with plain vLLM, ``load`` is the client that it and its users drive servers with."""
