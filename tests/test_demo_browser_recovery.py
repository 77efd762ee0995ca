"""The demo's page when it comes late, is cut off, or hears that something was lost."""

import http.client
import json
from typing import Any

from playwright.sync_api import (
    BrowserContext,
    Page,
    WebSocket,
    expect,
)

from tests.browser import RECORD, NewPerson, needs_chromium, open_demo
from tests.demo import START_DEADLINE_SECONDS, Demo, Instance, OwnInstance
from tests.redis_server import RedisServer

pytestmark = needs_chromium


class Sending:
    """A file of a thousand bytes, of which the second half is sent when the test says so."""

    QUERY = "?bytes_per_second=5000"  # so slow that none of its stages is too short to be told
    CONTENT = b"x\n" * 500

    def __init__(self, instance: Instance) -> None:
        self._port = instance.port
        self._user = {"Authorization": "Bearer somebody"}
        body = json.dumps({"file_name": "rows.csv", "size": len(self.CONTENT)})
        created = self._connection()
        created.request("POST", "/uploads", body, self._user | {"Content-Type": "application/json"})
        self.upload_id: str = json.load(created.getresponse())["upload_id"]
        created.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_DEADLINE_SECONDS)

    def send_first_half(self) -> None:
        """Then it stands at 25 %: receiving a file is half of the bar."""
        self._sending = self._connection()
        self._sending.putrequest("PUT", f"/uploads/{self.upload_id}{self.QUERY}")
        for name, value in self._user.items():
            self._sending.putheader(name, value)
        self._sending.putheader("Content-Length", str(len(self.CONTENT)))
        self._sending.endheaders(self.CONTENT[:500])

    def send_second_half(self) -> None:
        self._sending.send(self.CONTENT[500:])

    def until_done(self) -> None:
        """Returns when the server has answered; the last message is published by then."""
        assert self._sending.getresponse().status == 200
        self._sending.close()


class Frames:
    """What the pages of a person say to the server and hear of it."""

    def __init__(self, person: BrowserContext) -> None:
        self.sent: list[Any] = []
        self.received: list[Any] = []
        person.on("page", lambda page: page.on("websocket", self._listen))

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framesent", lambda text: self.sent.append(json.loads(text)))
        socket.on("framereceived", lambda text: self.received.append(json.loads(text)))

    @property
    def positions(self) -> list[Any]:
        return [message["_fanwire"] for message in self.received if "_fanwire" in message]

    @property
    def subscriptions(self) -> list[Any]:
        return [message for message in self.sent if message.get("action") == "subscribe_upload"]

    @property
    def resyncs(self) -> list[Any]:
        return [message for message in self.received if message["action"] == "resync"]


def cut(own: OwnInstance) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", own.instance.port)
    connection.request("POST", "/cut")
    assert connection.getresponse().status == 200
    connection.close()


def expect_completed(page: Page) -> None:
    expect(page.locator(".card.completed .percent")).to_have_text("100 %")
    expect(page.locator(".card .stages li.done")).to_have_count(4)
    expect(page.locator(".card .result")).to_contain_text("500")
    expect(page.locator(".card .message")).to_be_hidden()


def test_a_tab_opened_late_on_the_other_instance_shows_the_state_at_once(
    new_person: NewPerson, redis_server: RedisServer
) -> None:
    with Demo("--redis", redis_server.url, instances=2) as demo:
        one, other = demo.instances
        sending = Sending(one)
        query = f"?watch={sending.upload_id}"
        waiting = open_demo(new_person(), other, query)
        expect(waiting.locator(".card .message")).to_have_text("Waiting for rows.csv")
        sending.send_first_half()
        expect(waiting.locator(".card .percent")).to_have_text("25 %")
        # From here on nothing is published, until the file goes on.
        late = open_demo(new_person(), other, query)
        expect(late.locator(".card .percent")).to_have_text("25 %")
        expect(late.locator(".card [aria-current=step]")).to_have_text("Receiving")
        sending.send_second_half()
        sending.until_done()
        for page in (waiting, late, open_demo(new_person(), other, query)):
            expect_completed(page)


def test_who_is_cut_off_again_and_again_sees_everything_once(
    new_person: NewPerson, redis_server: RedisServer
) -> None:
    with (
        OwnInstance(broker_url=redis_server.url) as one,
        OwnInstance(broker_url=redis_server.url) as other,
    ):
        sending = Sending(one.instance)
        person = new_person()
        frames = Frames(person)
        page = open_demo(person, other.instance, f"?watch={sending.upload_id}")
        expect(page.locator(".card .message")).to_have_text("Waiting for rows.csv")
        page.evaluate(RECORD)
        for send in (sending.send_first_half, sending.send_second_half):
            send()
            with page.expect_websocket():
                cut(other)
            expect(page.locator("#connection")).to_have_text("Live")
        sending.until_done()
        expect_completed(page)
        percents = [percent for percent, _ in page.evaluate("shown")]
        assert percents == sorted(percents)
        offsets = [position["offset"] for position in frames.positions]
        assert offsets == sorted(set(offsets)), "nothing came twice"
        assert frames.resyncs == []
        first, *others = frames.subscriptions
        assert "since" not in first
        assert len(others) == 2
        assert all(again["since"] in frames.positions for again in others)


def test_an_upload_that_ended_while_a_page_was_away_is_shown_as_completed(
    new_person: NewPerson, redis_server: RedisServer
) -> None:
    with (
        OwnInstance(broker_url=redis_server.url) as one,
        OwnInstance(broker_url=redis_server.url) as other,
    ):
        sending = Sending(one.instance)
        person = new_person()
        frames = Frames(person)
        page = open_demo(person, other.instance, f"?watch={sending.upload_id}")
        sending.send_first_half()
        expect(page.locator(".card .percent")).to_have_text("25 %")
        person.set_offline(True)
        cut(other)
        expect(page.locator("#connection")).to_contain_text("Reconnecting")
        sending.send_second_half()
        sending.until_done()
        expect(page.locator(".card .percent")).to_have_text("25 %")
        known = frames.positions[-1]
        person.set_offline(False)
        expect_completed(page)
        expect(page.locator("#connection")).to_have_text("Live")
        assert frames.subscriptions[-1]["since"] == known
        offsets = [position["offset"] for position in frames.positions]
        assert offsets == sorted(set(offsets)), "nothing came twice"
        assert frames.resyncs == []


def test_a_page_whose_history_is_gone_is_told_and_goes_on(
    new_person: NewPerson, own_redis: RedisServer
) -> None:
    with OwnInstance(broker_url=own_redis.url) as own:
        sending = Sending(own.instance)
        person = new_person()
        frames = Frames(person)
        page = open_demo(person, own.instance, f"?watch={sending.upload_id}")
        sending.send_first_half()
        expect(page.locator(".card .percent")).to_have_text("25 %")
        person.set_offline(True)
        own_redis.client.flushall()
        cut(own)
        person.set_offline(False)
        expect(page.locator(".card.waiting .message")).to_contain_text("has forgotten this upload")
        assert [message["upload_id"] for message in frames.resyncs] == [sending.upload_id]
        sending.send_second_half()
        expect_completed(page)
        epochs = list(dict.fromkeys(position["epoch"] for position in frames.positions))
        assert len(epochs) == 2
        sending.until_done()


def test_a_resync_puts_the_current_state_in_the_place_of_what_is_shown(
    new_person: NewPerson, own_redis: RedisServer
) -> None:
    with OwnInstance(broker_url=own_redis.url) as own:
        sending = Sending(own.instance)
        person = new_person()
        frames = Frames(person)
        page = open_demo(person, own.instance, f"?watch={sending.upload_id}")
        sending.send_first_half()
        expect(page.locator(".card .percent")).to_have_text("25 %")
        person.set_offline(True)
        cut(own)
        own_redis.client.flushall()
        sending.send_second_half()
        sending.until_done()
        person.set_offline(False)
        expect_completed(page)
        at = next(i for i, message in enumerate(frames.received) if message["action"] == "resync")
        assert frames.received[at + 1]["action"] == "upload_completed"


def test_a_second_tab_shows_what_the_first_one_has_seen(
    new_person: NewPerson, redis_server: RedisServer
) -> None:
    with OwnInstance(broker_url=redis_server.url) as own:
        person = new_person()
        second = open_demo(person, own.instance)
        sending = Sending(own.instance)
        first = open_demo(person, own.instance, f"?watch={sending.upload_id}")
        sending.send_first_half()
        sending.send_second_half()
        sending.until_done()
        expect_completed(first)
        # Its connection has been told all along, because a subscription is the user's.
        second.get_by_label("Watch another upload").fill(sending.upload_id)
        second.get_by_role("button", name="Watch").click()
        expect_completed(second)


def test_a_page_says_that_the_broker_is_away(new_person: NewPerson, own_redis: RedisServer) -> None:
    with OwnInstance(broker_url=own_redis.url) as server:
        page = open_demo(new_person(), server.instance)
        own_redis.kill()
        expect(page.locator("#connection")).to_have_text("The broker is away")
        late = new_person().new_page()
        late.goto(server.instance.url)
        expect(late.locator("#connection")).to_have_text("The broker is away")
        own_redis.start()
        for each in (page, late):
            expect(each.locator("#connection")).to_have_text("Live")
