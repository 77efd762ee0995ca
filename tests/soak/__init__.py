"""An app under load for a long time: ``python -m tests.soak --seconds 600``, or ``make soak``.

One redis-server, one uvicorn process, browsers that come, reconnect and leave, and faults now and
then. What must not grow is sampled, and what must arrive is counted.
"""
