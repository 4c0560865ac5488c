"""What can be done about a bottleneck while the node serves: orders, what they are to bring, and what they brought.

``catalogue.py`` has an order in words, as an API call, and its way back. ``trial.py`` is what an order brought. ``apply.py`` is the one
path for the API, the command line and the page.
"""
