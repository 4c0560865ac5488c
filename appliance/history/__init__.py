"""How the node was: each snapshot reduced to a sample, and samples kept at several resolutions.

``samples`` is what is kept, ``resolutions`` how finely and for how long (both pure), ``database`` the SQLite file, ``keeper`` what
follows the snapshots and answers.
"""
