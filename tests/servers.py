"""The servers of brokers that tests run on. Each is run, stopped and asked in the same words."""

from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

AnyServer = RedisServer | PostgresServer
