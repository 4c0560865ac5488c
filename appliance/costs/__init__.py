"""What a step costs on a named GPU, by roofline: what the simulator runs on, and what the planner asks before anything was measured.

``gpus`` knows the GPUs, ``huggingface`` reads a model's ``config.json`` into a ``shape``, ``roofline`` says how long a step takes,
and ``closed`` what follows from that: rates, the batch that saturates, the time of a hand-off. ``memory`` says what a model takes of GPUs.
``docs/costs.md`` has the method, and how far it is off.
"""
