"""Limits of a key: the official client waits as Retry-After says and tries again."""

import threading

import openai
import pytest
from conftest import client_with, setting

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]


def test_too_many_requests_are_refused_with_the_time_to_wait(chat_model):
    with client_with(setting("CXMPUTE_LIMITED_KEY")) as client:
        limited = None
        for _ in range(40):
            try:
                raw = client.chat.completions.with_raw_response.create(model=chat_model, messages=QUESTION, max_tokens=1)
                assert int(raw.headers["x-ratelimit-remaining-requests"]) >= 0
                assert int(raw.headers["x-ratelimit-limit-requests"]) == 20
            except openai.RateLimitError as failure:
                limited = failure
                break
        assert limited is not None, "20 a minute were allowed, 40 went through"
        assert limited.code == "rate_limited"
        assert int(limited.response.headers["retry-after"]) >= 1
        assert limited.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_client_with_retries_gets_through_by_itself(chat_model):
    key = setting("CXMPUTE_SINGLE_KEY")
    busy, release = threading.Event(), threading.Event()

    def hold():
        with client_with(key) as client, client.chat.completions.create(model=chat_model, messages=STORY, stream=True) as stream:
            for _ in stream:
                busy.set()
                release.wait(20)
                break

    holder = threading.Thread(target=hold)
    holder.start()
    assert busy.wait(20)
    with client_with(key) as impatient, pytest.raises(openai.RateLimitError) as failure:
        impatient.chat.completions.create(model=chat_model, messages=QUESTION, max_tokens=1)
    assert failure.value.code == "concurrency_limited"
    assert int(failure.value.response.headers["retry-after"]) >= 1
    release.set()
    with client_with(key, max_retries=6) as patient:
        answer = patient.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    holder.join(20)


def test_a_retry_waits_as_long_as_retry_after_says(chat_model):
    key = setting("CXMPUTE_SINGLE_KEY")
    with client_with(key) as client, client_with(key, max_retries=5) as patient:
        stream = client.chat.completions.create(model=chat_model, messages=STORY, stream=True)
        next(stream)
        seen = []
        patient._client.event_hooks["response"].append(lambda response: seen.append(response.status_code) or (stream.close() if response.status_code == 429 else None))
        answer = patient.chat.completions.create(model=chat_model, messages=QUESTION, max_tokens=1)
        stream.close()
    assert answer.choices
    assert seen[0] == 429 and seen[-1] == 200
