"""valkey-glide: a client in Rust, its messages fetched one by one."""

from urllib.parse import urlsplit

from contract import Contender
from glide import (  # type: ignore[import-not-found]
    GlideClient,
    GlideClientConfiguration,
    NodeAddress,
)
from listening import ListeningClient
from reference.manager import ConnectionManager

MODES = GlideClientConfiguration.PubSubChannelModes


class GlidePublisher(ListeningClient):
    def __init__(self, url: str, manager: ConnectionManager) -> None:
        super().__init__(manager)
        self._port = urlsplit(url).port

    async def open(self) -> None:
        # Its subscriptions are part of the configuration, so it is subscribed from the start.
        self._client = await GlideClient.create(
            GlideClientConfiguration(
                [NodeAddress("127.0.0.1", self._port)],
                pubsub_subscriptions=GlideClientConfiguration.PubSubSubscriptions(
                    {MODES.Pattern: {"upload:*", "user:*"}}, None, None
                ),
            )
        )

    async def close(self) -> None:
        await self._client.close()

    async def publish(self, channel: str, payload: str) -> None:
        await self._client.publish(payload, channel)

    async def listen(self, manager: ConnectionManager) -> None:
        client = self._client
        while True:
            message = await client.get_pubsub_message()
            while message is not None:
                await manager.forward(message.channel.decode(), message.message.decode())
                # What has arrived meanwhile costs no future this way: half the CPU.
                message = client.try_get_pubsub_message()


def build(url: str) -> Contender:
    manager = ConnectionManager()
    return Contender(manager, GlidePublisher(url, manager))
