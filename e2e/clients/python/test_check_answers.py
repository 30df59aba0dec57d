"""check_answers.py must see what is wrong, else it checks nothing."""

import json

import check_answers
import pytest

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}


def choice(index=0, reason=None, **delta):
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}


def chunk(*choices, **more):
    return {**HEAD, "choices": list(choices), **more}


def frames(*values, end="data: [DONE]\n\n"):
    return "".join(f"data: {json.dumps(value)}\n\n" for value in values) + end


GOOD = [chunk(choice(role="assistant", content="")), chunk(choice(content="Hi")), chunk(choice(reason="stop"))]
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def violations(text, request=None, path="/chat/completions", status=200, headers=STREAM):
    report = check_answers.Report()
    check_answers.check_answer(report, "POST", path, request or {}, status, headers, text.encode(), True)
    return report.violations


def test_a_good_stream_passes():
    assert violations(frames(*GOOD)) == []
    with_usage = [{**frame, "usage": None} for frame in GOOD] + [chunk(usage=USAGE)]
    assert violations(": waiting\n\n" + frames(*with_usage), {"stream_options": {"include_usage": True}}) == []
    assert violations(frames(*GOOD[:2], {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}, end="")) == []


@pytest.mark.parametrize(
    "text",
    [
        frames(*GOOD[1:]),
        frames(*GOOD[:2]),
        frames(*GOOD, end=""),
        frames(*GOOD) + frames(GOOD[1], end=""),
        frames(*GOOD, GOOD[1]),
        frames(GOOD[0], {**GOOD[1], "id": "another"}, GOOD[2]),
        frames(GOOD[0], {**GOOD[1], "provider": "x"}, GOOD[2]),
        frames(GOOD[0], chunk(choice(content=7)), GOOD[2]),
        frames(GOOD[0], chunk(choice(reason="because"))),
        frames(*GOOD, chunk(usage=USAGE)),
        frames(*GOOD)[:-3],
        "event: x\n\n" + frames(*GOOD),
        frames(*GOOD[:2], {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}),
        frames(*GOOD[:2], {"error": {"message": "m"}}, end=""),
    ],
)
def test_a_bad_stream_is_seen(text):
    assert violations(text)


def test_other_bad_answers_are_seen():
    json_head = {"content-type": "application/json"}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
    assert violations(json.dumps(whole), headers=json_head) == []
    assert violations(json.dumps({**whole, "created": "now"}), headers=json_head)
    assert violations(json.dumps({**whole, "server": "x"}), headers=json_head)
    error = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}, "request_id": "r"}
    assert violations(json.dumps(error), status=400, headers={**json_head, "x-request-id": "r"}) == []
    assert violations(json.dumps(error), status=400, headers=json_head)
    assert violations(json.dumps({"detail": "no"}), status=400, headers={**json_head, "x-request-id": "r"})
    assert violations(frames(*GOOD), headers={"content-type": "text/event-stream"})


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 0, "output_tokens": 0}}
EVENTS = [
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"input_tokens": 5, "output_tokens": 1, "cost": "0.000001"}},
    {"type": "message_stop"},
]
BROKEN = {"type": "error", "error": {"type": "api_error", "message": "m", "code": "provider_lost"}}


def named(*events):
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


def test_a_good_stream_of_messages_passes():
    assert violations(named(*EVENTS), path="/messages") == []
    assert violations(named({"type": "ping"}, *EVENTS[:3], BROKEN), path="/messages") == []


@pytest.mark.parametrize(
    "text",
    [
        named(*EVENTS[1:]),
        named(*EVENTS[:-1]),
        named(*EVENTS[:3], *EVENTS[4:]),
        named(EVENTS[0], *EVENTS[2:]),
        named(*EVENTS, EVENTS[-1]),
        named(*EVENTS[:3], BROKEN, EVENTS[-1]),
        named(*EVENTS[:3], {**BROKEN, "error": {"type": "server_error", "message": "m", "code": "c"}}),
        named(EVENTS[0], {**EVENTS[1], "content_block": {"type": "text"}}, *EVENTS[2:]),
        named(*EVENTS).replace("event: message_stop", "event: ping"),
        frames(*EVENTS, end=""),
    ],
)
def test_a_bad_stream_of_messages_is_seen(text):
    assert violations(text, path="/messages")


def test_errors_of_messages_have_their_own_shape():
    head = {"content-type": "application/json", "x-request-id": "r"}
    good = {**BROKEN, "request_id": "r"}
    assert violations(json.dumps(good), path="/messages", status=502, headers=head) == []
    assert violations(json.dumps({**good, "request_id": "x"}), path="/messages", status=502, headers=head)
    envelope = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}, "request_id": "r"}
    assert violations(json.dumps(envelope), path="/messages", status=400, headers=head)
def test_answers_with_sound_are_looked_at():
    def seen(value, kind="application/json", path="/audio/transcriptions"):
        text = value if isinstance(value, str) else json.dumps(value)
        return violations(text, path=path, headers={"content-type": kind})

    usage = {"type": "duration", "seconds": 3, "cost": "0.0003"}
    verbose = {"task": "transcribe", "language": "english", "duration": 2.1, "text": "one", "usage": usage}
    words = [{"word": "one", "start": 0.0, "end": 1.0}]
    assert seen({"text": "one", "usage": usage}) == []
    assert seen({**verbose, "words": words}) == []
    assert seen("RIFF", "audio/wav", "/audio/speech") == []
    assert seen("one\n", "text/plain; charset=utf-8") == []
    assert seen({"text": "one", "usage": usage, "server": "x"})
    assert seen({"usage": usage})
    assert seen({**verbose, "words": [{"word": "one", "start": "0", "end": 1.0}]})
    assert seen("", "audio/wav", "/audio/speech")
    assert seen("RIFF", "application/octet-stream", "/audio/speech")
