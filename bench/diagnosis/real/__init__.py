"""Faults of real vLLM engines on CPUs, injected from outside, and whether the diagnoser names them.

``cases.py`` says, from a seed, what is done to which engine and what is right to say of it; ``injections.py`` does it, to processes, cores
and traffic; ``traffic.py`` asks and keeps time; ``play.py`` plays cases on a node that serves all the while; ``run.py`` goes through all of
them. Verdicts come from ``/api/diagnosis``, as anybody's would; scored they are by the code that scores simulated nodes.
"""
