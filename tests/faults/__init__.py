"""The fault suite: is anything lost, and is somebody not told?

``python -m tests.faults`` runs it for a while, ``tests/test_faults.py`` in a short form. A run
follows a plan that is drawn from a seed: 8 uploads, 40 watchers with real WebSockets at 2 instances
of an app, and faults between fanwire and a real redis-server. The app's user may do what
docs/recovery.md lists and nothing else. ``--memory`` is the same load in one process, over
``memory://``, where event loops that stand still are the only fault that there can be.

A seed keeps its meaning: kinds of faults that came later are drawn by a chance of their own, and
``--first-kinds-only`` leaves them out, and the second worker that publishes some uploads, too.

What is impossible is excused where docs/recovery.md says so (``verdict.Excuse``), and each excuse
is counted. So is what shows that faults did something: without refusals nothing would be proven.

clock.py       the time of a run
faults.py      the kinds of faults, and which of them a run has
plan.py        what a run is to do, drawn from its seed
world.py       redis-server, proxy and instances; they live over many runs
hosts.py       what an instance runs in: a process, or a thread of this one
proxy.py       cuts, stalls, delays and truncates the connections to redis-server
injecting.py   makes the faults of a plan happen
broker_faults.py  those of the broker, and what its operator does to it
instance.py    an instance of the app, a process of its own
publishing.py  the writers, who publish
watcher.py     the clients, who record all that they get
record.py      what is recorded of a run
verdict.py     which rules were broken
history.py     what happened, as text for people
run.py         one run, from its plan to its verdict
tally.py       what all runs together came to
"""
