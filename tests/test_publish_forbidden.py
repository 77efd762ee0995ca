"""A publisher whose user may not publish on the channel, and then may."""

from collections.abc import Callable
from typing import Any

import pytest

import fanwire
from tests.deadlines import until
from tests.redis_server import RedisServer


@pytest.mark.parametrize("options", [{"idempotency_key": "k"}, {"version": 7}], ids=str)
async def test_what_was_refused_is_published_when_it_is_sent_again(
    make_redis: Callable[..., RedisServer], options: dict[str, Any]
) -> None:
    rules = "allcommands allkeys resetchannels"
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    publisher = fanwire.UploadProgressPublisher(server.url, strict=True, history=fanwire.History())
    message = {"action": "upload_completed"}
    try:
        with pytest.raises(fanwire.PublishError, match=r"can't publish|NOPERM|No permissions"):
            await publisher.publish_progress("u", message, **options)
        left = [server.client.pttl(f"fanwire:{{u}}:{kind}") for kind in ("meta", "log")]
        assert all(milliseconds > 0 for milliseconds in left), "what is left expires"
        server.client.acl_setuser("app", enabled=True, channels=["*"])
        receipt = await publisher.publish_progress("u", message, receipt=True, **options)
        assert receipt.status == "published"
        assert server.client.hget("fanwire:{u}:meta", "m") == b"2"
    finally:
        await publisher.stop()


async def test_what_is_refused_of_one_upload_is_no_outage_for_others(
    make_redis: Callable[..., RedisServer],
) -> None:
    rules = "allcommands allkeys resetchannels &upload:open"
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    publisher = fanwire.UploadProgressPublisher(server.url, history=fanwire.History())
    try:
        await publisher.publish_progress("open", {"n": 0})
        for number in range(500):
            assert publisher.publish_nowait("forbidden", {"n": number})
        receipt = await publisher.publish_progress("open", {"n": 1}, receipt=True)
        assert receipt.status == "published"
        await until(lambda: not publisher.stats()["pending_messages"], "all are answered")
        assert publisher.stats()["publish_failed"] == 500
        assert publisher.stats()["outages"] == 0
    finally:
        await publisher.stop()
