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
