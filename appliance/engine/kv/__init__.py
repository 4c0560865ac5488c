"""KV hand-off between engines: a vLLM KV connector over memory that one engine exports and others map.

The facade is ``connector.py``; ``scheduler.py`` is its half in EngineCore (who may pull what), ``worker.py`` its half beside the
memory (the copying). ``lease.py`` says whose blocks are held, ``memory.py`` what vLLM's KV memory is, ``layout.py`` where a block's bytes
lie, ``routes.py`` which of them a rank copies from which rank of a peer, ``handshake.py`` how an engine learns of a peer's memory,
``transport.py`` what a kind of memory must be able to do.
"""
