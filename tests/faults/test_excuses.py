"""What the judge excuses, and that it excuses nothing else."""

import pytest

from tests.faults.record import Event, Kind, Loss, Position, Resynced, View
from tests.faults.test_verdict import ANEW, RESYNC, UPLOAD, A, B, Scene
from tests.faults.verdict import Excuse, Rule


def excused(scene: Scene) -> dict[Excuse, int]:
    return {excuse: n for excuse, n in scene.verdict().excused.items() if n}


def test_the_state_of_a_lost_log_may_lack_its_beginning() -> None:
    scene = Scene("pnnpc")
    scene.ledger.lost_logs[UPLOAD].append(Position(A, 2))
    scene.watched(scene.got(3, 4, 5))
    assert (scene.broken, excused(scene)) == ([], {Excuse.LOG_LOST: 1})


@pytest.mark.parametrize("end", [Position(A, 1), Position(A, 3), Position(B, 2)])
def test_but_only_what_was_in_it(end: Position) -> None:
    scene = Scene("pnnpc")
    scene.ledger.lost_logs[UPLOAD].append(end)
    scene.watched(scene.got(1, 2, 3, 4, 5)).watched(scene.got(3, 4, 5))
    assert (scene.broken, excused(scene)) == ([Rule.STARTS_AT_MILESTONE], {})


def test_who_subscribes_while_nothing_can_be_read_begins_in_the_middle() -> None:
    scene = Scene("pnnpc")
    scene.ledger.unreadable.append((0.0, 1.0))
    scene.watched(scene.got(2, 3, 4, 5))
    assert (scene.broken, excused(scene)) == ([], {Excuse.UNREADABLE: 1})
    later = Scene("pnnpc")
    later.ledger.unreadable.append((1.0, 2.0))
    later.watched(later.got(2, 3, 4, 5))
    assert (later.broken, excused(later)) == ([Rule.STARTS_AT_MILESTONE], {})


def test_an_offset_is_used_up_where_publishing_was_refused() -> None:
    scene = Scene("pnc")
    scene.ledger.uses_up_offsets = True
    scene.watched(scene.at(1, 1), scene.at(2, 3), scene.at(3, 4))
    assert (scene.broken, excused(scene)) == ([], {Excuse.OFFSET_USED_UP: 1})
    known = Scene("pnpc")
    known.ledger.uses_up_offsets = True
    known.watched(known.got(1, 2, 3, 4)).watched(known.got(1, 3, 4))
    assert known.broken == [Rule.NOTHING_MISSING]


def test_a_stale_message_may_come_where_what_had_its_version_was_given_up() -> None:
    scene = Scene("pppc")
    stale = scene.ledger.messages[scene.uid(3)]
    stale.forbidden, stale.stale_to = True, scene.uid(2)
    scene.ledger.messages[scene.uid(2)].accepted = False
    scene.watched(scene.at(1, 1), scene.at(3, 2), scene.at(4, 3))
    assert (scene.broken, excused(scene)) == ([], {Excuse.VERSION_GIVEN_UP: 1})
    scene.watched(scene.got(2))
    assert Rule.ONLY_PUBLISHED in scene.broken


def test_of_two_workers_either_may_have_given_up_a_message() -> None:
    scene = Scene("pnpc")
    scene.ledger.messages[scene.uid(2)].again = "v"
    scene.ledger.excused["v"] = 1
    scene.watched(scene.at(1, 1), scene.at(3, 2), scene.at(4, 3))
    assert (scene.broken, excused(scene)) == ([], {Excuse.GIVEN_UP: 1})


@pytest.mark.parametrize(("lost_at", "broken"), [(2.0, []), (0.5, [Rule.NOTHING_MISSING])])
def test_what_two_workers_published_before_a_loss_is_not_owed_after_it(
    lost_at: float, broken: list[Rule]
) -> None:
    scene = Scene("pnpc")
    for message in scene.ledger.messages.values():
        message.again, message.at = "v", 1.0
    scene.ledger.losses.append(Loss(lost_at, frozenset([UPLOAD]), frozenset()))
    scene.watched(scene.at(1, 1), RESYNC, scene.at(1, 1, B), scene.at(3, 2, B), scene.at(4, 3, B))
    assert scene.broken == broken


def steady(*events: Event | list[Event]) -> View:
    flat = [one for part in events for one in (part if isinstance(part, list) else [part])]
    return View("watcher", UPLOAD, [ANEW, *flat], steady=True)


def test_a_resync_has_a_reason() -> None:
    scene = Scene("pnpc")
    scene.ledger.resyncs_have_reasons = True
    scene.views.append(steady(scene.got(1, 2), RESYNC, scene.got(3, 4)))
    assert scene.broken == [Rule.RESYNC_HAS_REASON]
    scene.ledger.losses.append(Loss(0.0, frozenset([UPLOAD]), frozenset()))
    assert scene.broken == []


def test_who_had_nothing_may_be_resynced() -> None:
    scene = Scene("npc")
    scene.ledger.resyncs_have_reasons = True
    scene.views.append(steady(RESYNC, scene.got(2, 3)))
    assert (scene.broken, excused(scene)) == ([], {Excuse.NOTHING_KNOWN: 1})


def test_who_was_away_has_to_be_told() -> None:
    scene = Scene("pc")
    loss = Loss(1.0, frozenset([UPLOAD]), frozenset(["first"]))
    view = View("watcher", UPLOAD, [ANEW, *scene.got(1)])
    assert not loss.was_told(view)
    view.events.append(Resynced(1.5))
    assert loss.was_told(view)
    assert loss.was_told(View("watcher", UPLOAD, [ANEW])), "it had nothing"
    assert loss.was_told(View("watcher", "other", [ANEW, *scene.got(1)]))


def test_kinds_of_the_second_worker_are_judged_as_all_others() -> None:
    scene = Scene("pnc")
    message = scene.ledger.messages[scene.uid(2)]
    message.again = "v"
    assert message.kind is Kind.NOTE
    scene.watched(scene.got(1, 3))
    assert Rule.NOTHING_MISSING in scene.broken
