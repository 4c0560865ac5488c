"""What is looked at before a node is started: each thing with a verdict, and what to do about it (``pd-appliance check``).

``machine.py``, ``software.py`` and ``model.py`` only look; ``movers.py`` proves the way of KV between engines by moving some.
"""
