"""The order of an upload's messages when Redis refuses one part of a batch and takes the next."""

import re
from functools import partial
from typing import Any

import pytest

import fanwire
from tests.broker_proxy import broker_proxy
from tests.conftest import PublisherFactory
from tests.deadlines import until
from tests.histories import note
from tests.redis_server import RedisServer
from tests.test_publish_outage import Heard

CALL = re.compile(rb"(EVALSHA\r\n\$40\r\n)[0-9a-f]{40}")
REFUSES = "return {err = 'OOM command not allowed when used memory > maxmemory.'}"


class Spoiler:
    """Makes the first calls of a script that pass through a proxy calls of another one."""

    def __init__(self, script: str, calls: int) -> None:
        self._script, self._left = script.encode(), calls
        self.spoilt = self.spared = 0

    def __call__(self, asked: bytes) -> bytes:
        def another(call: re.Match[bytes]) -> bytes:
            if self._left == 0:
                self.spared += 1
                return call[0]
            self._left -= 1
            self.spoilt += 1
            return call[1] + self._script

        return CALL.sub(another, asked)


@pytest.mark.parametrize("refusal", ["forgotten", "refused"])
@pytest.mark.parametrize("keyed", [False, True])
async def test_nothing_overtakes_what_was_refused(
    own_redis: RedisServer, make_publisher: PublisherFactory, refusal: str, keyed: bool
) -> None:
    heard = Heard(own_redis)
    refuses = own_redis.client.script_load(REFUSES) if refusal == "refused" else "0" * 40
    async with broker_proxy(own_redis) as proxy:
        publisher = make_publisher(proxy.url, history=fanwire.History(), publish_timeout_seconds=20)
        await publisher.publish_progress("u", note(0))
        proxy.hold_answers()
        assert publisher.publish_nowait("u", note(1))
        length = partial(own_redis.client.xlen, "fanwire:{u}:log")
        await until(lambda: length() == 2, "one is under way, so that the others share a batch")
        assert publisher.publish_nowait("v", note(1))
        for number in range(2, 100):
            assert publisher.publish_nowait("u", note(number))
            assert publisher.publish_nowait("v", note(number))
        if keyed:
            assert publisher.publish_nowait("u", note(100), idempotency_key="last")
        proxy.alters = spoiler = Spoiler(refuses, calls=2)
        proxy.release_answers()
        messages = await heard.until(199 + keyed)
        await until(lambda: not publisher.stats()["pending_messages"], "all is published")
    assert spoiler.spoilt == 2 and spoiler.spared > 2, "some calls of the batch were not refused"
    for upload, first in (("u", 0), ("v", 1)):
        of_upload = [message for channel, message in messages if channel == f"upload:{upload}"]
        numbers = [message["number"] for message in of_upload]
        assert numbers == list(range(first, 100 + (keyed and upload == "u")))
        offsets = [message["_fanwire"]["offset"] for message in of_upload]
        assert offsets == list(range(1, len(offsets) + 1))
    assert publisher.stats()["publish_failed"] == 0
    await publisher.stop()


@pytest.mark.parametrize("options", [{"version": True}, {"idempotency_key": True}, {}], ids=str)
async def test_nothing_is_lost_where_nobody_knows_what_was_refused(
    own_redis: RedisServer, make_publisher: PublisherFactory, options: dict[str, bool]
) -> None:
    heard = Heard(own_redis)
    refuses = own_redis.client.script_load(REFUSES)
    async with broker_proxy(own_redis) as proxy:
        publisher = make_publisher(proxy.url, history=fanwire.History(), publish_timeout_seconds=3)
        await publisher.publish_progress("u", note(0))
        proxy.hold_answers()
        assert publisher.publish_nowait("u", note(1))
        length = partial(own_redis.client.xlen, "fanwire:{u}:log")
        await until(lambda: length() == 2, "one is under way, so that the others share a batch")
        for number in range(2, 100):
            of_its_own = {"version": number, "idempotency_key": f"key {number}"}
            chosen: Any = {name: of_its_own[name] for name in options}
            assert publisher.publish_nowait("u", note(number), **chosen)
        spoiler = Spoiler(refuses, calls=2)

        def alter(asked: bytes) -> bytes:
            proxy.hold_answers()  # to what is asked now, and before its fate is known
            return spoiler(asked)

        proxy.alters = alter
        proxy.release_answers()
        await until(lambda: spoiler.spoilt == 2, "two calls are spoilt")
        await until(lambda: publisher.stats()["outages"], "nobody knows what came of them")
        proxy.alters = lambda asked: asked
        proxy.release_answers()
        messages = await heard.until(100)
        await until(lambda: not publisher.stats()["pending_messages"], "all is published")
    assert spoiler.spoilt == 2
    assert [message["number"] for _, message in messages] == list(range(100))
    assert publisher.stats()["publish_failed"] == 0
    await publisher.stop()
