"""The client protocol, read in Rust: what a browser may send, and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fanwire

EPOCH = "0123456789abcdef"
LARGEST = 2**53 - 1
MOST_BYTES = 64 << 10
MEMBERS = ["action", "type", "token", "upload_id", "since", "epoch", "offset", "timestamp"]

Parsed = tuple[str, str | None, str | None, tuple[str, int] | None]


def parsed(text: str) -> Parsed:
    message = fanwire.ClientMessage.parse(text)
    return message.action, message.token, message.upload_id, message.since


def expected(text: str) -> Parsed:
    """The protocol written down a second time. A ValueError for what is not of it."""
    frame = json.loads(text)
    if not isinstance(frame, dict):
        raise ValueError("no object")  # noqa: TRY004 - as the protocol has it
    texts = {name: frame.get(name) for name in ("type", "action", "token", "upload_id")}
    if any(value is not None and not isinstance(value, str) for value in texts.values()):
        raise ValueError("no text")
    since = _since(frame.get("since"))
    if texts["type"] == "auth":
        return "auth", _there(texts["token"]), None, None
    match texts["action"]:
        case "subscribe_upload":
            return "subscribe_upload", None, _there(texts["upload_id"]), since
        case "unsubscribe_upload":
            return "unsubscribe_upload", None, _there(texts["upload_id"]), None
        case "ping" | "pong" as action:
            return action, None, None, None
    raise ValueError("unknown")


def _there(value: str | None) -> str:
    if value is None:
        raise ValueError("missing")
    return value


def _since(since: Any) -> tuple[str, int] | None:
    if since is None:
        return None
    if not isinstance(since, dict):
        raise ValueError("no object")  # noqa: TRY004 - as above
    epoch, offset = since.get("epoch"), since.get("offset")
    if not isinstance(epoch, str) or type(offset) is not int or not 0 <= offset <= LARGEST:
        raise ValueError("no position")
    return epoch, offset


# What is of the protocol


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"type": "auth", "token": "größe"}, ("auth", "größe", None, None)),
        ({"type": "auth", "token": "", "action": "ping"}, ("auth", "", None, None)),
        ({"action": "ping"}, ("ping", None, None, None)),
        ({"action": "pong", "type": None, "token": None}, ("pong", None, None, None)),
        ({"action": "ping", "type": "something"}, ("ping", None, None, None)),
        (
            {"action": "subscribe_upload", "upload_id": "ü\n1"},
            ("subscribe_upload", None, "ü\n1", None),
        ),
        (
            {"action": "subscribe_upload", "upload_id": "", "since": None},
            ("subscribe_upload", None, "", None),
        ),
        (
            {
                "action": "subscribe_upload",
                "upload_id": "u",
                "since": {"epoch": EPOCH, "offset": 17, "more": [1]},
            },
            ("subscribe_upload", None, "u", (EPOCH, 17)),
        ),
        (
            {
                "action": "subscribe_upload",
                "upload_id": "u",
                "since": {"epoch": "not one of ours", "offset": LARGEST},
            },
            ("subscribe_upload", None, "u", ("not one of ours", LARGEST)),
        ),
        (
            {"action": "unsubscribe_upload", "upload_id": "u", "timestamp": 1.5},
            ("unsubscribe_upload", None, "u", None),
        ),
    ],
    ids=str,
)
def test_what_is_of_the_protocol(frame: dict[str, Any], message: Parsed) -> None:
    for text in (json.dumps(frame), json.dumps(frame, ensure_ascii=False, indent=1)):
        assert parsed(text) == expected(text) == message


def test_what_it_shows_of_itself() -> None:
    message = fanwire.ClientMessage.parse('{"type":"auth","token":"hunter2"}')
    assert "hunter2" not in repr(message) + str(message)
    with pytest.raises(AttributeError):
        message.action = "ping"  # type: ignore[misc]
    with pytest.raises(TypeError):
        fanwire.ClientMessage()
    with pytest.raises(TypeError):
        fanwire.ClientMessage.parse(b'{"action":"ping"}')  # type: ignore[arg-type]


# What is not


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "null",
        "[]",
        "7",
        '"ping"',
        "{}",
        '{"action":"ping"',
        '{"action":"ping"}}',
        '{"action":"ping"} {"action":"ping"}',
        '{"action":"PING"}',
        '{"action":7}',
        '{"action":["ping"]}',
        '{"action":"subscribe_upload"}',
        '{"action":"subscribe_upload","upload_id":7}',
        '{"action":"unsubscribe_upload","upload_id":null}',
        '{"type":"auth"}',
        '{"type":"auth","token":7}',
        '{"type":"authenticate","token":"t"}',
        '{"action":"\\ud800"}',
        '{"action":"ping","type":7}',
        '{"action":NaN}',
        "{'action':'ping'}",
        '\ufeff{"action":"ping"}',
        '{"action":"ping"}\x00',
        "[" * 30_000,
        '{"a":' * 10_000,
    ],
    ids=lambda text: text[:40],
)
def test_what_is_not_of_the_protocol(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        fanwire.ClientMessage.parse(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "since",
    [
        "",
        7,
        [],
        [EPOCH, 17],
        {},
        {"epoch": EPOCH},
        {"offset": 17},
        {"epoch": EPOCH, "offset": "17"},
        {"epoch": EPOCH, "offset": 17.0},
        {"epoch": EPOCH, "offset": -1},
        {"epoch": EPOCH, "offset": True},
        {"epoch": EPOCH, "offset": LARGEST + 1},
        {"epoch": EPOCH, "offset": 2**64},
        {"epoch": 7, "offset": 17},
        {"epoch": None, "offset": 17},
        {"epoch": EPOCH, "offset": None},
    ],
    ids=str,
)
def test_what_is_no_position(since: Any) -> None:
    text = json.dumps({"action": "subscribe_upload", "upload_id": "u", "since": since})
    with pytest.raises(ValueError):
        fanwire.ClientMessage.parse(text)


def test_a_frame_of_just_the_allowed_size() -> None:
    def frame(size: int) -> str:
        begin, end = '{"action":"unsubscribe_upload","upload_id":"', '"}'
        return begin + "x" * (size - len(begin) - len(end)) + end

    assert fanwire.ClientMessage.parse(frame(MOST_BYTES)).action == "unsubscribe_upload"
    with pytest.raises(ValueError, match=r"65537 bytes are too many: 65536 are allowed"):
        fanwire.ClientMessage.parse(frame(MOST_BYTES + 1))
    # It is measured in bytes.
    with pytest.raises(ValueError, match="too many"):
        fanwire.ClientMessage.parse(frame(MOST_BYTES // 2).replace("x", "ü") + " " * 2**15)


def test_what_is_wrong_is_told_and_not_repeated() -> None:
    for text in ('{"action":"hunter2' * 100, f'{{"action":"{"hunter2" * 100}"}}', "hunter2"):
        with pytest.raises(ValueError) as raised:
            fanwire.ClientMessage.parse(text)
        assert str(raised.value).count("hunter2") <= 6


# Whatever it may be

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["auth", "ping", "pong", "subscribe_upload", "unsubscribe_upload", EPOCH])
)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(MEMBERS) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)
_positions = st.fixed_dictionaries(
    {
        "epoch": st.just(EPOCH) | st.text() | _leaves,
        "offset": st.integers(0, LARGEST) | st.integers() | _leaves,
    }
)
_frames = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["ping", "pong", "subscribe_upload", "unsubscribe_upload"])
        | _leaves,
        "type": st.just("auth") | _leaves,
        "token": st.text() | _leaves,
        "upload_id": st.text() | _leaves,
        "since": _positions | _values,
        "timestamp": _values,
    },
)
_PARTS = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "\\",
    "\\u0061",
    "0",
    "-1",
    "1e5",
    " ",
    *MEMBERS,
    "ping",
]
_texts = (
    st.text()
    | st.builds(json.dumps, _frames | _values, ensure_ascii=st.booleans())
    | st.builds(
        # The same member may come twice.
        lambda one, other: f"{json.dumps(one)[:-1]}, {json.dumps(other)[1:]}",
        _frames.filter(bool),
        _frames.filter(bool),
    )
    | st.lists(st.sampled_from(_PARTS)).map("".join)
)


@given(_texts)
@example('{"action":"ping","action":"pong"}')
@example('{"type":"auth","type":null,"action":"ping"}')
@example('{"\\u0061ction":"ping"}')
@example('{"action":"ping","x":1e999}')
def test_it_agrees_with_json(text: str) -> None:
    """What is read is what Python's json reads; whatever else there is is a ValueError."""
    try:
        message = parsed(text)
    except ValueError:
        return
    assert message == expected(text)


@given(_frames)
def test_it_reads_whatever_is_of_the_protocol(frame: dict[str, Any]) -> None:
    text = json.dumps(frame, ensure_ascii=False, allow_nan=True)
    try:
        message = expected(text)
        text.encode()
        json.dumps(frame, allow_nan=False)
    except ValueError:
        with pytest.raises(ValueError):
            fanwire.ClientMessage.parse(text)
    else:
        assert parsed(text) == message


@given(_frames, st.randoms(use_true_random=False))
def test_a_frame_that_was_damaged(frame: dict[str, Any], chance: Any) -> None:
    text = json.dumps(frame)
    at = chance.randrange(len(text))
    for damaged in (text[:at], text[:at] + text[at + 1 :], text[:at] + chr(at) + text[at:]):
        try:
            message = parsed(damaged)
        except ValueError:
            continue
        assert message == expected(damaged)
