"""What holds the node back: which engine, why, on what evidence, and what to do. Pure functions of snapshots.

``readings.py`` makes a few figures (``signs.py``) of a window of snapshots (``gpus.py`` of what GPUs say), and ``impact.py`` tells whether
anybody is hurt (``bursts.py``: for long enough). ``gone.py``, ``starting.py``, ``frontends.py``, ``links.py``, ``stragglers.py``,
``crowded.py``, ``prompts.py``, ``uneven.py`` and ``layout.py`` have a test for each cause, which ``judge.py`` asks in the order in which
one explains the other; they speak in ``finding.py``. ``verdicts.py`` keeps verdicts steady (``lasting.py``: whether what was said is
still there), and ``advice.py`` has what to do.

``why.py`` and ``because.py`` are of single requests: where one's time went, and what held it up.
"""
