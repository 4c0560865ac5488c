"""Which layout would serve the traffic best: every split of the node's engines and the aggregated one, predicted. Pure.

``split.py`` lists layouts, predicts each and chooses; ``pools.py`` says how engines that decode and engines that do both would fare,
``waiting.py`` how long prompts would wait. ``measured.py`` makes what these need of a snapshot and of what was learnt from steps.
"""
