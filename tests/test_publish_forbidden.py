"""A publisher whose user may not publish on the channel, and then may."""

from collections.abc import Callable
from typing import Any

import pytest

import fanwire
from tests.redis_server import RedisServer


@pytest.mark.xfail(
    strict=True,
    reason="publish.lua notes key, version and milestone before the PUBLISH that is refused",
)
@pytest.mark.parametrize("options", [{"idempotency_key": "k"}, {"version": 7}], ids=str)
async def test_what_was_refused_is_published_when_it_is_sent_again(
    make_redis: Callable[..., RedisServer], options: dict[str, Any]
) -> None:
    rules = "allcommands allkeys resetchannels"
    server = make_redis(password="right", acl_user="app", acl_rules=rules)
    publisher = fanwire.UploadProgressPublisher(server.url, strict=True, history=fanwire.History())
    message = {"action": "upload_completed"}
    try:
        with pytest.raises(fanwire.PublishError, match=r"can't publish|NOPERM"):
            await publisher.publish_progress("u", message, **options)
        server.client.acl_setuser("app", enabled=True, channels=["*"])
        receipt = await publisher.publish_progress("u", message, receipt=True, **options)
        assert receipt.status == "published"
        assert server.client.hget("fanwire:{u}:meta", "m") == b"2"
    finally:
        await publisher.stop()
