"""examples/upload_file_streaming: what is done with an `UploadFile` is watched live."""

from pathlib import Path

import httpx2
import pytest

from tests.deadlines import DEADLINE_SECONDS
from tests.examples import MORE_AND_MORE, Example, Tap, Watcher, is_over, moved, story
from tests.redis_server import RedisServer, free_port

LINE = b"a line of a text, and not the only one\n"


def post(port: int, upload_id: str, content: bytes) -> httpx2.Response:
    """What the README's curl sends."""
    return httpx2.post(
        f"http://127.0.0.1:{port}/uploads/{upload_id}",
        files={"file": ("some-large-text", content)},
        timeout=DEADLINE_SECONDS,
        trust_env=False,
    )


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_progress_of_what_is_done_with_a_file(
    redis_server: RedisServer, tmp_path: Path, broker: str
) -> None:
    url = "memory://" if broker == "memory" else redis_server.url
    example = Example("upload_file_streaming", tmp_path, url)
    port = free_port()
    with example.running("uvicorn", {"8000": str(port)}, serves=port):
        for lines in MORE_AND_MORE:
            upload_id = f"text-{lines}"
            with Watcher.of(port, upload_id) as watcher:
                answer = post(port, upload_id, LINE * lines)
                assert (answer.status_code, answer.json()) == (200, {"lines": lines})
                seen = watcher.until_over()
            if moved(seen):
                break
        assert moved(seen)
        assert seen[-1]["action"] == "upload_completed"
        assert seen[-1]["description"] == f"some-large-text has {lines} lines."
        with Watcher.of(port, upload_id) as late:
            assert late.until_over() == seen[-1:]


def test_what_is_no_text_and_what_is_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    example = Example("upload_file_streaming", tmp_path, redis_server.url)
    port = free_port()
    tap = Tap(redis_server, "upload:*")
    with example.running("uvicorn", {"8000": str(port)}, serves=port):
        refused = post(port, "picture", b"\x89PNG\r\n")
        assert (refused.status_code, refused.json()["detail"]) == (415, "It is no text in UTF-8.")
        assert post(port, "nothing", b"").json() == {"lines": 0}
        with Watcher.of(port, "picture") as late:
            [failed] = late.until_over()
        tap.until(lambda: is_over(tap.of("upload:nothing")), "the end of the second one")
    tap.close()
    end = story(tap.of("upload:picture"), "queued", "counting_lines")
    assert (end["action"], end["error_message"]) == ("upload_failed", "It is no text in UTF-8.")
    assert failed == end
    end = story(tap.of("upload:nothing"), "queued", "counting_lines")
    assert (end["action"], end["description"]) == (
        "upload_completed",
        "some-large-text has 0 lines.",
    )
