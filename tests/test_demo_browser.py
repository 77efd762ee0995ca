"""The demo's page as a person sees it, in a real browser."""

import hashlib
import json
import random
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser import RECORD, NewPerson, needs_chromium, open_demo
from tests.conftest import Unique
from tests.deadlines import until_blocking
from tests.demo import Demo, OwnInstance
from tests.redis_server import RedisServer, free_port

pytestmark = needs_chromium


def drop(page: Page, file: Path) -> None:
    """Drops a file of the disk on the page, as the desktop would."""
    box = page.locator("#drop").bounding_box()
    assert box is not None
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": box["x"] + box["width"] / 2,
                "y": box["y"] + box["height"] / 2,
                "data": {"items": [], "files": [str(file)], "dragOperationsMask": 1},
            },
        )


def slow_down(page: Page, bytes_per_second: int) -> None:
    """Gives the page a slow line, so that a file takes its time to arrive."""
    conditions = {"offline": False, "latency": 0, "downloadThroughput": -1}
    page.context.new_cdp_session(page).send(
        "Network.emulateNetworkConditions", {**conditions, "uploadThroughput": bytes_per_second}
    )


def test_a_file_dropped_on_one_instance_is_watched_on_the_other(
    new_person: NewPerson, redis_server: RedisServer, tmp_path: Path
) -> None:
    content = random.Random(3).randbytes(2_000_000) + b"row\n" * 250_000
    file = tmp_path / "measurements.csv"
    file.write_bytes(content)
    with Demo("--redis", redis_server.url, instances=2) as demo:
        one, other = demo.instances
        ada = new_person()
        uploading, following = open_demo(ada, one), open_demo(ada, other)
        watching = open_demo(new_person(), other)
        expect(watching.locator("#broker")).to_have_text(redis_server.url)
        expect(watching.locator("#broker")).to_have_attribute("title", redis_server.url)
        slow_down(uploading, 400_000)
        for page in (following, watching):
            page.evaluate(RECORD)

        drop(uploading, file)
        upload_id = uploading.locator(".card .id").inner_text()
        watching.get_by_label("Watch another upload").fill(upload_id)
        watching.get_by_role("button", name="Watch").click()

        for page in (uploading, following, watching):
            expect(page.locator(".card .name")).to_have_text("measurements.csv")
            expect(page.locator(".card .percent")).to_have_text("100 %")
            result = page.locator(".card .result")
            expect(result).to_contain_text("3,000,000 bytes")
            expect(result).to_contain_text(hashlib.sha256(content).hexdigest())
            expect(result).to_contain_text(f"{content.count(10):,}")
        for page in (following, watching):
            check_what_was_shown(page)


def check_what_was_shown(page: Page) -> None:
    shown = page.evaluate("shown")
    percents = [percent for percent, _ in shown]
    assert percents == sorted(percents)
    # The file takes seven seconds to arrive: the bar has moved, and not jumped.
    assert len({percent for percent in percents if 0 < percent < 50}) > 5, shown
    stages = ["Receiving", "Hashing", "Counting lines", "completed"]
    steps = [step for step in dict.fromkeys(step for _, step in shown) if step in stages]
    # Each in its turn. One that is over soon may be overwritten on its way, and need not be seen.
    turns = iter(stages)
    assert all(step in turns for step in steps), steps
    assert {"Receiving", "completed"} <= set(steps)


def test_a_link_watches_and_a_cancelled_upload_is_told(
    new_person: NewPerson, redis_server: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(3_000_000))
    with Demo("--redis", redis_server.url, instances=2) as demo:
        one, other = demo.instances
        uploading = open_demo(new_person(), one)
        slow_down(uploading, 100_000)
        uploading.locator("#file").set_input_files(file)
        upload_id = uploading.locator(".card .id").inner_text()
        watching = open_demo(new_person(), other, f"?watch={upload_id}")
        expect(watching.locator(".card [aria-current=step]")).to_have_text("Receiving")
        uploading.get_by_role("button", name="Cancel upload").click()
        for page in (uploading, watching):
            expect(page.locator(".card.failed .reason")).to_have_text("The upload was cancelled.")


def test_the_bar_never_runs_backwards(
    new_person: NewPerson, redis_server: RedisServer, unique: Unique
) -> None:
    upload = unique("upload")  # another test's may have a history
    with OwnInstance(broker_url=redis_server.url) as own:
        page = open_demo(new_person(), own.instance, f"?watch={upload}")
        page.evaluate(RECORD)
        state = f"{own.instance.url}/state"
        until_blocking(lambda: page.request.get(state).json()["watched"] == [upload], "it watches")
        # As a stage of another app would be told, and the second message overtaken by the first.
        # A note between them keeps the later from taking the place of the earlier on the way.
        note = json.dumps({"action": "note", "upload_id": upload})
        for second, percent in ((5, 40), (4, 30), (6, 70)):
            message = {
                "action": "upload_progress",
                "payload": {
                    "upload_id": upload,
                    "stage": "vision_analysis",
                    "progress_percent": percent,
                    "message": f"{percent} frames",
                },
                "timestamp": f"2026-01-01T00:00:0{second}Z",
            }
            redis_server.publish(f"upload:{upload}", json.dumps(message))
            redis_server.publish(f"upload:{upload}", note)
        expect(page.locator(".card .percent")).to_have_text("70 %")
        expect(page.locator(".card .message")).to_have_text("70 frames")
        percents = {percent for percent, _ in page.evaluate("shown")}
        assert {40, 70} <= percents
        assert 30 not in percents


def test_a_file_over_the_limit_is_refused_in_words(new_person: NewPerson, tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(1001))
    with OwnInstance(max_upload_bytes=1000) as own:
        page = open_demo(new_person(), own.instance)
        page.locator("#file").set_input_files(file)
        expect(page.locator(".card.failed .reason")).to_have_text(
            "The file is larger than the limit of 1.0 kB."
        )


def test_an_answer_that_a_shutdown_cut_off_is_told_in_words(
    new_person: NewPerson, tmp_path: Path
) -> None:
    file = tmp_path / "small.txt"
    file.write_text("one\n")
    with OwnInstance() as own:
        page = open_demo(new_person(), own.instance)
        page.route("**/uploads", lambda route: route.fulfill(status=503, body='{"detail": "The'))
        page.locator("#file").set_input_files(file)
        expect(page.locator(".card.failed .reason")).to_have_text("The server is shutting down.")


def test_the_page_comes_back_when_its_instance_does(new_person: NewPerson, tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text("one\ntwo\n")
    port = free_port()
    with OwnInstance(listen_on=port) as own:
        page = open_demo(new_person(), own.instance)
    expect(page.locator("#connection")).to_contain_text("Reconnecting")
    with OwnInstance(listen_on=port):
        expect(page.locator("#connection")).to_have_text("Live")
        page.locator("#file").set_input_files(file)
        expect(page.locator(".card .percent")).to_have_text("100 %")


def test_who_sends_a_file_gets_the_result_though_the_broker_is_down(
    new_person: NewPerson, own_redis: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "small.txt"
    file.write_text("one\ntwo\n")
    with OwnInstance(broker_url=own_redis.url) as own:
        page = open_demo(new_person(), own.instance)
        own_redis.kill()
        page.locator("#file").set_input_files(file)
        result = page.locator(".card.completed .result")
        expect(result).to_contain_text(hashlib.sha256(b"one\ntwo\n").hexdigest())
        expect(result).to_contain_text("The broker did not deliver this in time")
        own_redis.start()  # and what waited for it goes out
        expect(result).not_to_contain_text("The broker did not deliver this in time")
        expect(result).to_contain_text(hashlib.sha256(b"one\ntwo\n").hexdigest())


def test_the_page_needs_nobody_else_and_fits_a_phone(new_person: NewPerson, tmp_path: Path) -> None:
    file = tmp_path / ("a-very-long-name-without-any-space" * 5 + ".txt")
    file.write_text("one\n")
    with OwnInstance() as own:
        person = new_person(width=360)
        asked: list[str] = []
        trouble: list[str] = []
        person.on("request", lambda request: asked.append(request.url))
        person.on("console", lambda message: trouble.append(message.text))
        person.on("weberror", lambda error: trouble.append(str(error.error)))
        page = open_demo(person, own.instance)
        page.locator("#file").set_input_files(file)
        expect(page.locator(".card.completed")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert trouble == []
        own_or_inline = (own.instance.url, "data:")
        assert [url for url in asked if not url.startswith(own_or_inline)] == []
