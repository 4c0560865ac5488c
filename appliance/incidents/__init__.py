"""Incidents: spells in which something held the node back; opened, closed, kept with what was seen around them, and told of.

They see snapshots and nothing else. ``changes.py`` says what is not as it was, ``tracker.py`` what is an incident, ``frames.py`` what is
kept of snapshots (all three pure). ``store.py`` keeps it over ``database.py``, ``hooks.py`` tells the owner's command and webhook,
``bundle.py`` makes one file of an incident, ``moments.py`` finds what was seen at one moment, and ``replay.py`` runs it
through the diagnoser. ``keeper.py`` holds all of it together.
"""
