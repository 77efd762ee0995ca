"""The recorder when handlers do something with it themselves, and when they raise."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

import fanwire
from tests.deadlines import bounded, until
from tests.visitors import App, Session


@pytest.fixture
def app() -> App:
    return App()


# From inside a handler


async def test_a_handler_unsubscribes_itself_and_others(app: App) -> None:
    ada, ben, eve = (app.session(name) for name in ("ada", "ben", "eve"))

    async def leave(topic: str, message: Any) -> None:
        await app.pubsub.unsubscribe_topic("ada", "news")
        await app.pubsub.unsubscribe_all("ben")

    ada.react = leave
    for session in (ada, ben, eve):
        await session.subscribe("news")
    await app.pubsub.broadcast("news", 1)
    await app.pubsub.broadcast("news", 2)
    assert (len(ada.heard), ben.heard, len(eve.heard)) == (1, [], 2)


async def test_who_left_and_came_back_does_not_get_what_was_said_before(app: App) -> None:
    ada, ben, back = app.session("ada"), app.session("ben"), app.session("ben")

    async def replace_ben(topic: str, message: Any) -> None:
        await app.pubsub.unsubscribe_topic("ben", "news")
        await back.subscribe("news")

    ada.react = replace_ben
    await ada.subscribe("news")
    await ben.subscribe("news")
    await app.pubsub.broadcast("news", 1)
    assert (ben.heard, back.heard) == ([], [])


async def test_what_waits_goes_to_the_new_handler(app: App) -> None:
    ada, old, new = app.session("ada"), app.session("ben"), app.session("ben")
    ada.react = lambda topic, message: new.subscribe("news")
    await ada.subscribe("news")
    await old.subscribe("news")
    await app.pubsub.broadcast("news", 1)
    assert (old.heard, new.heard) == ([], [("news", 1)])


async def test_who_subscribes_meanwhile_hears_the_next_one(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")
    ada.react = lambda topic, message: ben.subscribe("news")
    await ada.subscribe("news")
    await app.pubsub.broadcast("news", 1)
    assert ben.heard == []
    await app.pubsub.broadcast("news", 2)
    assert ben.heard == [("news", 2)]


async def test_a_sessions_handlers_never_interleave(app: App) -> None:
    ada = app.session("ada")

    async def count_up(topic: str, message: Any) -> None:
        if message < 3:
            await app.pubsub.broadcast("news", message + 1)

    ada.react = count_up
    await ada.subscribe("news")
    await app.pubsub.broadcast("news", 1)
    assert app.log == [f"ada {does} {n}" for n in (1, 2, 3) for does in ("begins", "ends")]
    assert app.pubsub.broadcasts == [("news", 1), ("news", 2), ("news", 3)]


async def test_another_session_hears_at_once_what_a_handler_broadcasts(app: App) -> None:
    ada, ben, answers = app.session("ada"), app.session("ben"), list[str]()

    async def ask(topic: str, message: Any) -> None:
        await app.pubsub.broadcast("question", "how are you")
        assert answers == ["fine"]

    async def answer(topic: str, message: Any) -> None:
        answers.append("fine")

    ada.react = ask
    ben.react = answer
    await ada.subscribe("news")
    await ben.subscribe("question")
    await app.pubsub.broadcast("news", 1)
    assert app.log[1:3] == ["ben begins how are you", "ben ends how are you"]


async def test_each_session_hears_in_the_order_of_publication(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")

    async def pass_on(topic: str, message: Any) -> None:
        if topic == "news":
            await app.pubsub.broadcast("sport", message + 1)

    ada.react = pass_on
    await ada.subscribe("news", "sport")
    await ben.subscribe("news", "sport")
    await app.pubsub.broadcast("news", 1)
    assert ada.heard == ben.heard == [("news", 1), ("sport", 2)]


async def test_two_sessions_that_answer_each_other(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")

    async def strike(topic: str, message: Any) -> None:
        if message < 5_000:
            await app.pubsub.broadcast({"ping": "pong", "pong": "ping"}[topic], message + 1)

    ada.react = ben.react = strike
    await ada.subscribe("ping")
    await ben.subscribe("pong")
    await app.pubsub.broadcast("ping", 1)
    assert len(ada.heard) == len(ben.heard) == 2_500
    assert ben.heard[-1] == ("pong", 5_000)


async def test_a_handler_of_one_recorder_broadcasts_on_another() -> None:
    here, there = App(), App()
    ada, ben = here.session("ada"), there.session("ada")
    ada.react = lambda topic, message: there.pubsub.broadcast("news", 2)
    await ada.subscribe("news")
    await ben.subscribe("news")
    await here.pubsub.broadcast("news", 1)
    assert (ada.heard, ben.heard) == ([("news", 1)], [("news", 2)])


async def test_broadcasts_side_by_side(app: App) -> None:
    ada = app.session("ada")
    ada.react = lambda topic, message: asyncio.sleep(0)
    await ada.subscribe("news")
    await asyncio.gather(*(app.pubsub.broadcast("news", n) for n in range(3)))
    assert app.log == [f"ada {does} {n}" for n in range(3) for does in ("begins", "ends")]


def gated(session: Session) -> asyncio.Event:
    """The session's handler of 1 waits until the event is set; that of 2 fails."""
    gate = asyncio.Event()

    async def react(topic: str, message: Any) -> None:
        if message == 1:
            await gate.wait()
        if message == 2:
            raise ValueError("of 2")

    session.react = react
    return gate


async def test_a_broadcast_waits_for_a_session_that_another_task_keeps_busy(app: App) -> None:
    ada = app.session("ada")
    gate = gated(ada)
    await ada.subscribe("news")
    first = asyncio.create_task(app.pubsub.broadcast("news", 1))
    await until(lambda: ada.heard)
    second = asyncio.create_task(app.pubsub.broadcast("news", 2))
    await until(lambda: len(app.pubsub.broadcasts) == 2)
    assert not second.done() and ada.heard == [("news", 1)]
    gate.set()
    with pytest.raises(ValueError, match="of 2"):
        await bounded(second)
    await bounded(first)  # which has nothing to do with the other's error
    assert ada.heard == [("news", 1), ("news", 2)]


@pytest.mark.parametrize("ends", ["cancelled", "unsubscribed"])
async def test_who_waits_for_another_task_goes_on_when_that_ends(app: App, ends: str) -> None:
    ada = app.session("ada")
    gated(ada)
    await ada.subscribe("news")
    first = asyncio.create_task(app.pubsub.broadcast("news", 1))
    await until(lambda: ada.heard)
    second = asyncio.create_task(app.pubsub.broadcast("news", 3))
    await until(lambda: len(app.pubsub.broadcasts) == 2)
    if ends == "unsubscribed":
        await app.pubsub.unsubscribe_all("ada")
        await bounded(second)
    first.cancel()
    await bounded(asyncio.wait({first, second}))
    assert first.cancelled() and second.exception() is None
    assert [message for _, message in ada.heard] == ([1, 3] if ends == "cancelled" else [1])


async def test_a_broadcast_is_told_that_its_handler_was_cancelled_with_another(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")
    never = asyncio.Event()

    async def first_of_all(topic: str, message: Any) -> None:
        if message == 1:  # the other's message for ben is published before ben's lane is reached
            await app.pubsub.subscribe_topic("ben", "sport", ben.handle)
            await until(lambda: len(app.pubsub.broadcasts) == 2)
            await app.pubsub.broadcast("sport", 3)

    async def wait_for_ever(topic: str, message: Any) -> None:
        await never.wait()

    ada.react, ben.react = first_of_all, wait_for_ever
    await ada.subscribe("news", "sport")
    await ben.subscribe("weather")
    first = asyncio.create_task(app.pubsub.broadcast("news", 1))
    await until(lambda: ada.heard)
    second = asyncio.create_task(app.pubsub.broadcast("sport", 2))  # waits for ada
    await until(lambda: ben.heard)
    assert ben.heard == [("sport", 2)]  # in the first one's Task, for ada's message 3 is behind it
    first.cancel()
    with pytest.raises(RuntimeError, match="interrupted"):
        await bounded(second)
    assert first.cancelled()


async def test_handlers_of_two_tasks_that_broadcast_to_each_other_end(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")
    both = asyncio.Event()

    def tell(topic: str) -> fanwire.TopicHandler:
        async def react(_: str, message: Any) -> None:
            if message == 1:
                if ada.heard and ben.heard:
                    both.set()
                await both.wait()
                await app.pubsub.broadcast(topic, 2)

        return react

    ada.react, ben.react = tell("to ben"), tell("to ada")
    await ada.subscribe("to ada")
    await ben.subscribe("to ben")
    await bounded(
        asyncio.gather(app.pubsub.broadcast("to ada", 1), app.pubsub.broadcast("to ben", 1))
    )
    assert ada.heard == [("to ada", 1), ("to ada", 2)]
    assert ben.heard == [("to ben", 1), ("to ben", 2)]


# Handlers that raise


async def test_what_a_handler_raises_reaches_the_test_when_all_have_run(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")

    async def fail(topic: str, message: Any) -> None:
        raise KeyError("no such row")

    ada.react = fail
    await ada.subscribe("news")
    await ben.subscribe("news")
    with pytest.raises(KeyError, match="no such row"):
        await app.pubsub.broadcast("news", 1)
    assert ben.heard == [("news", 1)]
    assert app.pubsub.broadcasts == [("news", 1)]
    # The next broadcast has nothing of it left.
    await app.pubsub.unsubscribe_all("ada")
    await app.pubsub.broadcast("news", 2)


async def test_several_that_raise_come_as_a_group(app: App) -> None:
    for name, error in [("ada", KeyError("a")), ("ben", None), ("eve", ValueError("e"))]:
        session = app.session(name)

        async def fail(topic: str, message: Any, error: Exception | None = error) -> None:
            if error is not None:
                raise error

        session.react = fail
        await session.subscribe("news")
    with pytest.raises(ExceptionGroup, match="2 handlers") as raised:
        await app.pubsub.broadcast("news", 1)
    assert [type(error) for error in raised.value.exceptions] == [KeyError, ValueError]


async def test_inside_a_handler_broadcast_does_not_raise_what_others_raised(app: App) -> None:
    ada, ben = app.session("ada"), app.session("ben")

    async def pass_on(topic: str, message: Any) -> None:
        with suppress(ValueError):  # which would hide it from the test
            await app.pubsub.broadcast("sport", 2)

    async def fail(topic: str, message: Any) -> None:
        raise ValueError(message)

    ada.react = pass_on
    ben.react = fail
    await ada.subscribe("news")
    await ben.subscribe("sport")
    with pytest.raises(ValueError, match="2"):
        await app.pubsub.broadcast("news", 1)
    assert app.log[-1] == "ada ends 1"


async def test_a_failed_assertion_in_a_handler_fails_the_test(app: App) -> None:
    async def check(topic: str, message: Any) -> None:
        assert message == 2

    await app.pubsub.subscribe_topic("ada", "news", check)
    with pytest.raises(AssertionError):
        await app.pubsub.broadcast("news", 1)


async def test_a_cancelled_broadcast_leaves_nothing_behind(app: App) -> None:
    ada, ben, eve = (app.session(name) for name in ("ada", "ben", "eve"))

    async def fail(topic: str, message: Any) -> None:
        raise ValueError("first")

    async def wait(topic: str, message: Any) -> None:
        if message == 1:
            await asyncio.Event().wait()

    ada.react = fail
    ben.react = wait
    for session in (ada, ben, eve):
        await session.subscribe("news")
    broadcasting = asyncio.ensure_future(app.pubsub.broadcast("news", 1))
    await until(lambda: ben.heard)
    broadcasting.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await broadcasting
    assert "ValueError('first')" in raised.value.__notes__[0]
    await app.pubsub.unsubscribe_all("ada")
    await app.pubsub.broadcast("news", 2)
    assert (ben.heard[-1], eve.heard) == (("news", 2), [("news", 2)])


async def test_a_task_that_outlives_the_broadcast_delivers_by_itself(app: App) -> None:
    ada, ben, tasks = app.session("ada"), app.session("ben"), list[asyncio.Task[None]]()
    gate = asyncio.Event()

    async def later() -> None:
        await gate.wait()
        await app.pubsub.broadcast("sport", 2)

    async def fork(topic: str, message: Any) -> None:
        tasks.append(asyncio.create_task(later()))

    async def fail(topic: str, message: Any) -> None:
        raise ValueError("in the background")

    ada.react = fork
    ben.react = fail
    await ada.subscribe("news")
    await ben.subscribe("sport")
    await app.pubsub.broadcast("news", 1)
    gate.set()
    with pytest.raises(ValueError, match="in the background"):
        await tasks[0]
    assert ben.heard == [("sport", 2)]
