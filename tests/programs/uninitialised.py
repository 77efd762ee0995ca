# ruff: noqa: T201 (what a program prints is what its test looks at)
"""What the module functions say before and after initialisation, in a process that is new."""

import asyncio

import fanwire
from tests.connections import RecordingConnection
from tests.deadlines import until


def complaint(get: object) -> str:
    try:
        get()  # type: ignore[operator]
    except RuntimeError as error:
        return str(error)
    return "nothing"


async def main() -> None:
    # A publisher may be up before there is a manager; what arrives meanwhile is for nobody.
    publisher = fanwire.init_publisher("memory://", max_message_bytes=50)
    assert fanwire.get_publisher() is publisher
    await publisher.start()
    await publisher.publish_to_user("ada", "too early")
    manager = fanwire.init_manager(max_queued_messages=7)
    assert fanwire.get_manager() is manager
    connection = RecordingConnection()
    await manager.connect("ada", connection)
    await publisher.publish_to_user("ada", "in time")
    await until(lambda: connection.texts)
    print(*connection.texts)
    try:
        await publisher.publish_to_user("ada", "x" * 50)
    except ValueError:
        print("the options arrived")
    await publisher.stop()


print(complaint(fanwire.get_manager))
print(complaint(fanwire.get_publisher))
asyncio.run(main())
