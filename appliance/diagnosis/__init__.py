"""What holds the node back: which engine, why, on what evidence, and what to do. Pure functions of snapshots.

``signs.py`` makes a few figures of a window of snapshots, ``causes.py`` has a test for each cause, ``judge.py`` asks them in the order in
which one explains the other, and ``verdicts.py`` keeps verdicts steady.
"""
