"""The judge is judged: hand-written sequences, each of which breaks one rule or none."""

from collections.abc import Callable

import pytest

from tests.faults import history
from tests.faults.record import (
    Event,
    Got,
    Kind,
    Ledger,
    Loss,
    Opened,
    Position,
    Resynced,
    View,
)
from tests.faults.verdict import Rule, Verdict, judge

UPLOAD = "u"
A, B = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
KINDS = {"p": Kind.PROGRESS, "n": Kind.NOTE, "c": Kind.COMPLETED, "f": Kind.FAILED}

Watcher = Callable[..., View]


class Scene:
    """An upload of one letter for each message, and what watchers saw of it.

    ``p`` is progress, ``n`` a note, ``c`` and ``f`` the end. All of it is accepted, and the offsets
    are those of the order.
    """

    def __init__(
        self, letters: str, *, recorded: bool = True, history_was_lost: bool = False
    ) -> None:
        lost = [Loss(0.0, frozenset([UPLOAD]), frozenset())] if history_was_lost else []
        self.ledger = Ledger(recorded=recorded, losses=lost)
        self.views: list[View] = []
        for letter in letters:
            self.ledger.publish(UPLOAD, "w", KINDS[letter]).accepted = True

    def uid(self, number: int, writer: str = "w") -> str:
        return f"{UPLOAD}/{writer}/{number}"

    def got(self, *numbers: int, epoch: str | None = A) -> list[Event]:
        """Messages by their numbers, at the offsets of the same numbers."""
        return [
            Got(0.0, self.uid(number), Position(epoch, number) if epoch else None)
            for number in numbers
        ]

    def at(self, number: int, offset: int, epoch: str = A, writer: str = "w") -> Got:
        return Got(0.0, self.uid(number, writer), Position(epoch, offset))

    def watched(self, *events: Event | list[Event]) -> "Scene":
        flat = [one for part in events for one in (part if isinstance(part, list) else [part])]
        self.views.append(View(f"watcher {len(self.views)}", UPLOAD, [ANEW, *flat]))
        return self

    def verdict(self) -> Verdict:
        return judge(self.views, self.ledger)

    @property
    def broken(self) -> list[Rule]:
        """Each rule that was broken, once for each time."""
        return [violation.rule for violation in self.verdict().violations]


ANEW = Opened(0.0, "first", None)
RESYNC = Resynced(0.0)


def resumed(offset: int, epoch: str = A) -> Opened:
    return Opened(0.0, "second", Position(epoch, offset))


# What must be accepted


def test_everything_in_order() -> None:
    scene = Scene("ppnpnc")
    verdict = scene.watched(scene.got(1, 2, 3, 4, 5, 6)).verdict()
    assert (verdict.violations, verdict.delivered, verdict.lost) == ([], 6, 0)


def test_progress_may_be_overwritten_by_newer_progress() -> None:
    scene = Scene("pppnppc")
    verdict = scene.watched(scene.got(3, 4, 6, 7)).watched(scene.got(1, 3, 4, 6, 7)).verdict()
    assert verdict.violations == []
    assert verdict.overwritten == 3  # 5 twice and 2; what came before the first was not owed


def test_who_comes_late_is_owed_what_follows() -> None:
    scene = Scene("pnpnnc")
    assert scene.watched(scene.got(3, 4, 5, 6)).watched(scene.got(6)).broken == []


def test_who_resumes_goes_on() -> None:
    scene = Scene("pnpnc")
    assert scene.watched(scene.got(1, 2), resumed(2), scene.got(3, 4, 5)).broken == []


def test_after_a_resync_everything_may_come_again() -> None:
    scene = Scene("pnpnc")
    seen = (scene.got(1, 2, 3), RESYNC, scene.got(3, 4, 5))
    verdict = scene.watched(*seen).verdict()
    assert (verdict.violations, verdict.resyncs) == ([], 1)


def test_who_begins_anew_is_owed_the_current_state() -> None:
    scene = Scene("pnpnc")
    assert scene.watched(scene.got(1, 2, 3), ANEW, scene.got(3, 4, 5)).broken == []


def test_a_resync_excuses_what_was_before_the_current_state() -> None:
    scene = Scene("pnnpc")
    assert scene.watched(scene.got(1), RESYNC, scene.got(4, 5)).broken == []


def test_a_new_epoch_may_have_what_the_old_one_had() -> None:
    scene = Scene("pnpc", history_was_lost=True)
    again: list[Event] = [scene.at(2, 1, B), scene.at(3, 2, B), scene.at(4, 3, B)]
    assert scene.watched(scene.got(1, 2), RESYNC, again).broken == []


def test_of_a_history_that_was_lost_then_there_is_no_current_state() -> None:
    scene = Scene("pnnpc", history_was_lost=True)
    new: list[Event] = [scene.at(4, 1, B), scene.at(5, 2, B)]
    assert scene.watched(scene.got(1), RESYNC, scene.got(2, 3), RESYNC, new).broken == []
    other = Scene("pnnpc", history_was_lost=True)
    late: list[Event] = [other.at(3, 3, B), other.at(4, 4, B), other.at(5, 5, B)]
    assert other.watched(other.got(1), RESYNC, late).broken == [Rule.STARTS_AT_MILESTONE]


def test_without_a_history_numbers_alone_count() -> None:
    scene = Scene("pnpc", recorded=False)
    assert scene.watched(scene.got(1, 2, 3, 4, epoch=None)).broken == []
    lossy = Scene("pnpc", recorded=False)
    assert lossy.watched(lossy.got(1, 3, 4, epoch=None)).broken == [Rule.NOTHING_MISSING]


def test_what_was_not_accepted_may_be_missing() -> None:
    scene = Scene("pnpc")
    scene.ledger.messages[scene.uid(2)].accepted = False
    seen = [scene.at(1, 1), scene.at(3, 2), scene.at(4, 3)]
    assert scene.watched(*seen).broken == []


def test_what_a_publisher_admits_to_have_given_up_may_be_missing_at_everybody() -> None:
    scene = Scene("pnnpc")
    scene.ledger.excused["w"] = 1
    seen = [scene.at(1, 1), scene.at(3, 2), scene.at(4, 3), scene.at(5, 4)]
    assert scene.watched(*seen).watched(*seen).broken == []
    more = Scene("pnnpc")
    more.ledger.excused["w"] = 1
    seen = [more.at(1, 1), more.at(4, 2), more.at(5, 3)]
    assert more.watched(*seen).broken == [Rule.NOTHING_MISSING]


# What must not


BREAKS: list[tuple[str, str, list[int], list[Rule]]] = [
    ("it ends without the final message", "pnc", [1, 2], [Rule.ENDS_FINAL]),
    ("it gets nothing at all", "pnc", [], [Rule.ENDS_FINAL]),
    ("a note is missing", "pnpnc", [1, 3, 4, 5], [Rule.NOTHING_MISSING]),
    ("two are missing", "pnnpc", [1, 4, 5], [Rule.NOTHING_MISSING] * 2),
    ("progress before a note is missing", "ppnc", [1, 3, 4], [Rule.NOTHING_MISSING]),
    ("progress before the end is missing", "pnpc", [1, 2, 4], [Rule.NOTHING_MISSING]),
    ("a note comes twice", "pnpc", [1, 2, 2, 3, 4], [Rule.NOTHING_TWICE]),
    ("the end comes twice", "pc", [1, 2, 2], [Rule.NOTHING_TWICE]),
    ("it begins in the middle", "pnnc", [3, 4], [Rule.STARTS_AT_MILESTONE]),
]


@pytest.mark.parametrize(
    ("letters", "seen", "rules"), [case[1:] for case in BREAKS], ids=[case[0] for case in BREAKS]
)
def test_a_broken_rule_is_found(letters: str, seen: list[int], rules: list[Rule]) -> None:
    scene = Scene(letters)
    assert scene.watched(scene.got(*seen)).broken == rules


def test_what_nobody_saw_is_missing_too() -> None:
    """Lost by the publisher: other messages have its offset."""
    scene = Scene("pnpc")
    assert scene.watched(scene.at(1, 1), scene.at(3, 2), scene.at(4, 3)).broken == [
        Rule.NOTHING_MISSING
    ]


def test_an_offset_that_nobody_saw_is_missing_unless_it_may_have_been_progress() -> None:
    scene = Scene("pnc")
    seen = [scene.at(1, 1), scene.at(2, 3), scene.at(3, 4)]
    assert scene.watched(*seen).broken == [Rule.NOTHING_MISSING]
    other = Scene("ppc")
    seen = [other.at(1, 1), other.at(2, 3), other.at(3, 4)]
    assert other.watched(*seen).broken == []


def test_the_last_progress_of_a_row_that_nobody_saw_is_missing() -> None:
    scene = Scene("ppnc")
    seen = [scene.at(1, 1), scene.at(3, 2), scene.at(4, 3)]
    assert scene.watched(*seen).broken == [Rule.NOTHING_MISSING]


def test_what_is_missing_is_found_where_others_have_it() -> None:
    scene = Scene("pnpc")
    verdict = scene.watched(scene.got(1, 2, 3, 4)).watched(scene.got(1, 3, 4)).verdict()
    (violation,) = verdict.violations
    assert (violation.rule, violation.view.watcher) == (Rule.NOTHING_MISSING, "watcher 1")
    assert scene.uid(2) in violation.detail
    assert verdict.lost == 1


def test_offsets_that_do_not_increase() -> None:
    scene = Scene("pppc")
    seen = [scene.at(1, 2), scene.at(2, 1), scene.at(3, 3), scene.at(4, 4)]
    assert scene.watched(*seen).broken == [Rule.OFFSETS_INCREASE]


def test_order_that_is_not_that_of_publishing() -> None:
    scene = Scene("pppc")
    seen = [scene.at(2, 1), scene.at(1, 2), scene.at(3, 3), scene.at(4, 4)]
    assert scene.watched(*seen).broken == [Rule.IN_ORDER]


def test_who_resumes_must_not_get_what_it_had() -> None:
    scene = Scene("pnpc")
    seen = (scene.got(1, 2), resumed(2), scene.got(2, 3, 4))
    assert scene.watched(*seen).broken == [Rule.NOTHING_TWICE]


def test_who_resumes_must_not_miss_anything() -> None:
    scene = Scene("pnnpc")
    seen = (scene.got(1, 2), resumed(2), scene.got(4, 5))
    assert scene.watched(*seen).broken == [Rule.NOTHING_MISSING]


def test_a_new_epoch_must_be_told() -> None:
    scene = Scene("pnpc", history_was_lost=True)
    seen = (scene.got(1, 2), scene.at(3, 1, B), scene.at(4, 2, B))
    assert scene.watched(*seen).broken == [Rule.EPOCH_CHANGE_IS_TOLD]


def test_a_resync_must_be_followed_by_the_current_state() -> None:
    scene = Scene("pnnc")
    seen = (scene.got(1, 2), RESYNC, scene.got(3, 4))
    assert scene.watched(*seen).broken == [Rule.STARTS_AT_MILESTONE]


def test_after_a_resync_the_end_is_owed_again() -> None:
    scene = Scene("pc")
    assert scene.watched(scene.got(1, 2), RESYNC).broken == [Rule.ENDS_FINAL]


def test_nothing_comes_after_the_end() -> None:
    scene = Scene("pcn")
    assert scene.watched(scene.got(1, 2, 3)).broken == [Rule.ENDS_FINAL]


def test_what_was_refused_must_not_come() -> None:
    scene = Scene("ppc")
    scene.ledger.messages[scene.uid(2)].forbidden = True
    assert scene.watched(scene.got(1, 2, 3)).broken == [Rule.ONLY_PUBLISHED]


def test_what_nobody_published_must_not_come() -> None:
    scene = Scene("pc")
    stranger = Got(0.0, "other/w/1", Position(A, 1))
    assert scene.watched(stranger, scene.got(1, 2)).broken == [Rule.ONLY_PUBLISHED]


def test_with_a_history_every_message_has_a_position() -> None:
    scene = Scene("pc")
    assert Rule.ONLY_PUBLISHED in scene.watched(scene.got(1, 2, epoch=None)).broken


def test_a_message_that_the_broker_took_twice() -> None:
    """Each watcher saw it once; together they saw it at two offsets."""
    scene = Scene("pppc")
    scene.watched(scene.at(1, 1), scene.at(2, 2), scene.at(3, 4), scene.at(4, 5))
    scene.watched(scene.at(1, 1), scene.at(2, 3), scene.at(3, 4), scene.at(4, 5))
    assert scene.broken == [Rule.NUMBERED_ONCE]


def test_an_offset_that_two_messages_have() -> None:
    scene = Scene("pppc")
    scene.watched(scene.at(2, 2), scene.at(3, 3), scene.at(4, 4))
    scene.watched(scene.at(1, 2), scene.at(3, 3), scene.at(4, 4))
    assert scene.broken == [Rule.NUMBERED_ONCE]


# Two writers


def two_writers() -> Scene:
    """``w`` publishes progress and the end, at odd offsets and 6; ``v`` notes at 2 and 4."""
    scene = Scene("ppp")
    for _ in range(2):
        scene.ledger.publish(UPLOAD, "v", Kind.NOTE).accepted = True
    scene.ledger.publish(UPLOAD, "w", Kind.COMPLETED).accepted = True
    return scene


def test_two_writers() -> None:
    scene = two_writers()
    progress = [scene.at(1, 1), scene.at(2, 3), scene.at(3, 5), scene.at(4, 6)]
    notes = [scene.at(1, 2, writer="v"), scene.at(2, 4, writer="v")]
    everything = sorted([*progress, *notes], key=lambda got: got.position or Position(A, 0))
    assert scene.watched(*everything).broken == []
    without_last = [got for got in everything if got is not notes[1]]
    assert scene.watched(*without_last).broken == [Rule.NOTHING_MISSING]


def test_a_note_of_another_writer_that_never_got_an_offset() -> None:
    scene = two_writers()
    seen = [scene.at(1, 1), scene.at(1, 2, writer="v"), scene.at(2, 3), scene.at(3, 4)]
    assert scene.watched(*seen, scene.at(4, 5)).broken == [Rule.NOTHING_MISSING]


def test_progress_of_one_writer_may_be_overwritten_by_another() -> None:
    scene = Scene("pp")
    scene.ledger.publish(UPLOAD, "v", Kind.PROGRESS).accepted = True
    scene.ledger.publish(UPLOAD, "w", Kind.COMPLETED).accepted = True
    seen = [scene.at(1, 1), scene.at(1, 3, writer="v"), scene.at(3, 4)]
    assert scene.watched(*seen).broken == []


# What people are shown


def test_the_history_of_a_watcher_can_be_read() -> None:
    scene = Scene("pnc")
    scene.watched(scene.got(1, 2), resumed(2), RESYNC, scene.got(1, 2, 3))
    (view,) = scene.views
    told = history.seen(view, scene.ledger, at=2)
    assert told.splitlines() == [
        "what watcher 0 of u saw:",
        "    0.000 s  subscribes at first, anew",
        "    0.000 s  aaaaaa:1  u/w/1  upload_progress",
        ">   0.000 s  aaaaaa:2  u/w/2  upload_note",
        "    0.000 s  subscribes at second, since aaaaaa:2",
        "    0.000 s  resync",
        "    0.000 s  aaaaaa:1  u/w/1  upload_progress",
        "    0.000 s  aaaaaa:2  u/w/2  upload_note",
        "    0.000 s  aaaaaa:3  u/w/3  upload_completed",
    ]
    told = history.published(UPLOAD, scene.ledger, scene.views)
    assert "u/w/2  upload_note, accepted, seen at aaaaaa:2" in told
