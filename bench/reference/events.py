"""Publishing log lines on redis-py: encode, PUBLISH, and wait for the answer, under a lock.

A connection that has failed is tried again by the next line, which waits for it: up to two seconds
for the connection, and as long for an answer.
"""

import threading
from typing import Any

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CHANNEL = "codeworm:logs"
LIMIT_SECONDS = 2.0


class EventPublisher:
    def __init__(self, url: str) -> None:
        # redis-py's own three retries would make it wait four times as long.
        self._redis = redis.Redis.from_url(
            url,
            socket_connect_timeout=LIMIT_SECONDS,
            socket_timeout=LIMIT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._lock = threading.Lock()
        self._is_up = self._ping()

    def publish_log(self, event_dict: dict[str, Any]) -> None:
        if not self._is_up:
            self._is_up = self._ping()
            if not self._is_up:
                return
        try:
            payload = orjson.dumps(event_dict, default=str)
            with self._lock:
                self._redis.publish(CHANNEL, payload)
        except (redis.RedisError, TypeError):
            self._is_up = False

    def close(self) -> None:
        self._redis.close()

    def _ping(self) -> bool:
        try:
            return bool(self._redis.ping())
        except redis.RedisError:
            return False
