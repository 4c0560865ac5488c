"""Which layout would serve the traffic best: every split of the node's engines and the aggregated one, predicted. Pure.

``split.py`` lists layouts, predicts each and chooses; ``layouts.py`` is one of them at any rate. Of these, ``waiting.py`` says how long
prompts wait, ``pools.py`` how engines fare that decode, and that do both, and ``answers.py`` how answers do between others' prompts.
``node.py`` has what a plan rests on; ``measured.py`` makes it of snapshots and of what was learnt from steps.

Of GPUs that have no engines yet, ``placement.py`` lists layouts: ``cards.py`` says which GPUs belong together, ``room.py`` what fits on
them, ``seats.py`` what each engine gets, and ``choice.py`` which layout to take.
"""
