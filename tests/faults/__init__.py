"""The fault suite: is anything lost, and is somebody not told?

``python -m tests.faults`` runs it for a while, ``tests/test_faults.py`` in a short form. A run
follows a plan that is drawn from a seed: 8 uploads, 40 watchers with real WebSockets at 2 instances
of an app, and faults between fanwire and a real redis-server.

clock.py       the time of a run
plan.py        what a run is to do, drawn from its seed
world.py       redis-server, proxy and instances; they live over many runs
proxy.py       cuts, stalls, delays and truncates the connections to redis-server
injecting.py   makes the faults of a plan happen
instance.py    an instance of the app, a process of its own
publishing.py  the writers, who publish
watcher.py     the clients, who record all that they get
record.py      what is recorded of a run
verdict.py     which rules were broken
history.py     what happened, as text for people
run.py         one run, from its plan to its verdict
tally.py       what all runs together came to
"""
