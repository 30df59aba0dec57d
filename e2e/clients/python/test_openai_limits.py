"""Limits of a key: the official client waits as Retry-After says and tries again."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import openai
import pytest
from conftest import client_with, setting

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Held:
    """The only slot of a key, held for certain: by a request whose body does not end before it is told to.

    An answer that is being streamed would not do: a fast model has written all of it, and the buffers on the way have
    swallowed it, before its client reads the second event. The slot is taken before the body is read, and
    `100 Continue` is the gateway's word that it reads.
    """

    def __init__(self, key, model):
        base = urlsplit(setting("CXMPUTE_BASE_URL"))
        self.body = json.dumps({"model": model, "messages": QUESTION, "max_tokens": 1}).encode()
        self.socket = socket.create_connection((base.hostname, base.port), timeout=20)
        self.released = threading.Event()
        head = (
            f"POST {base.path}/chat/completions HTTP/1.1\r\nHost: {base.netloc}\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        self.socket.sendall(head.encode())
        begun = self.socket.recv(1024)
        assert begun.startswith(b"HTTP/1.1 100 "), begun
        self.feeder = threading.Thread(target=self.feed)
        self.feeder.start()

    def feed(self):
        # A body may be slow, but not slower than 1 KiB/s; space before JSON means nothing.
        while not self.released.wait(1):
            self.chunk(b" " * 2048)

    def chunk(self, data):
        self.socket.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def release(self):
        """Lets the request end; gives its status."""
        if self.released.is_set():
            return None
        self.released.set()
        self.feeder.join()
        self.chunk(self.body)
        self.chunk(b"")
        answer = b""
        while data := self.socket.recv(65536):
            answer += data
        return int(answer.split(b" ", 2)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()
        self.socket.close()


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
    with Held(key, chat_model) as held:
        with client_with(key) as impatient, pytest.raises(openai.RateLimitError) as failure:
            impatient.chat.completions.create(model=chat_model, messages=QUESTION, max_tokens=1)
        assert failure.value.code == "concurrency_limited"
        assert int(failure.value.response.headers["retry-after"]) >= 1
        refused = []

        def let_go_at_the_second(response):
            if response.status_code == 429:
                refused.append(response)
                assert len(refused) < 2 or held.release() == 200

        with client_with(key, max_retries=6) as patient:
            patient._client.event_hooks["response"].append(let_go_at_the_second)
            answer = patient.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0)
    assert len(refused) == 2
    assert "Paris" in answer.choices[0].message.content


def test_a_retry_waits_as_long_as_retry_after_says(chat_model):
    key = setting("CXMPUTE_SINGLE_KEY")
    seen = []

    def note(response):
        seen.append((response.status_code, time.monotonic(), response.headers.get("retry-after")))
        if response.status_code == 429:
            held.release()

    with Held(key, chat_model) as held, client_with(key, max_retries=5) as patient:
        patient._client.event_hooks["response"].append(note)
        answer = patient.chat.completions.create(model=chat_model, messages=QUESTION, max_tokens=1)
    assert answer.choices
    (refused, at, wait), (let_in, then, _) = seen
    assert (refused, let_in) == (429, 200)
    assert then - at >= int(wait)
