#!/usr/bin/env python3
"""Every service of a running gateway, tried through its API, with its costs recomputed from the published prices.

    check.py BASE_URL PAGES_URL        the key is CXMPUTE_API_KEY

BASE_URL is the gateway's API, PAGES_URL a site that a node may fetch and that the demo serves. Prints one line for each
service, and ends with 1 when one of them falls short. A service that no node serves here is a visible skip; CXMPUTE_SERVICES
names those that must be there (all, when it is not set).
"""

import base64
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import wave
from decimal import Decimal

BASE, PAGES = sys.argv[1].rstrip("/"), sys.argv[2].rstrip("/")
KEY = os.environ["CXMPUTE_API_KEY"]
DIGITS = "zero one two three four five six seven eight nine".split()

TRIPLES = [
    ("a cat sleeps on the sofa", "a kitten naps on the couch", "the stock market fell today"),
    ("how do I bake bread", "a recipe for a loaf of wheat bread", "the engine needs new spark plugs"),
    ("the doctor treats a patient", "a physician cares for the sick", "a guitar with six strings"),
    ("he drives a fast car", "he races an automobile", "she waters the flowers"),
    ("the sun is shining", "it is a bright and clear day", "the court rejected the appeal"),
    ("children play in the park", "kids have fun at the playground", "interest rates were raised"),
    ("a big house by the lake", "a large home near the water", "the program has a syntax error"),
    ("she reads a novel", "she is reading a book of fiction", "the train leaves at noon"),
    ("the team won the match", "our side was victorious in the game", "boil the potatoes for ten minutes"),
    ("a storm hit the coast", "heavy wind and rain reached the shore", "the painting hangs in a museum"),
    ("the president gave a speech", "the head of state spoke to the nation", "a puppy chews on a shoe"),
    ("buy milk and eggs", "get some groceries", "the volcano erupted in the night"),
    ("planes fly above the clouds", "an aircraft travels through the sky", "a lawyer reads the contract"),
    ("the river flows to the sea", "the stream runs into the ocean", "the actor forgot his lines"),
    ("he plays the piano well", "he is a good pianist", "the factory makes steel pipes"),
    ("it is very cold in winter", "winters here are freezing", "she solved the equation"),
    ("the phone has no battery left", "my mobile is out of power", "wolves live in packs"),
    ("a bank robbery took place", "thieves stole money from a bank", "grass is green"),
    ("they got married in June", "their wedding was in early summer", "the server rejected the password"),
    ("the soup is too salty", "there is too much salt in this broth", "a telescope looks at far stars"),
]

LINES = [
    ["Invoice 4711", "The quick brown fox jumps", "over the lazy dog.", "Total: 128.50 EUR"],
    ["Meeting notes", "We start at nine in room 12.", "Please bring the signed form."],
    ["Chapter 3", "The ship left the harbour at dawn", "and nobody looked back."],
    ["Warning", "Do not open this door", "while the red light is on."],
    ["Receipt 2026", "2 coffees and 1 tea", "Thank you for your visit."],
]


def call(method, path, body=None, form=None):
    """One request; gives its body and the id of its receipt."""
    headers = {"authorization": f"Bearer {KEY}"}
    data = None
    if form is not None:
        line = uuid.uuid4().hex
        headers["content-type"] = f"multipart/form-data; boundary={line}"
        parts = []
        for name, value in form.items():
            extra = '; filename="speech.wav"' if name == "file" else ""
            value = value if isinstance(value, bytes) else value.encode()
            head = f'--{line}\r\ncontent-disposition: form-data; name="{name}"{extra}\r\n\r\n'
            parts += [head.encode(), value, b"\r\n"]
        data = b"".join(parts) + f"--{line}--\r\n".encode()
    elif body is not None:
        headers["content-type"] = "application/json"
        data = json.dumps(body).encode()
    request = urllib.request.Request(f"{BASE}{path}", data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:
            return answer.read(), answer.headers.get("x-generation-id")
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from None


def receipt(generation):
    """The cost on the receipt of a request; it is readable at most a second after the end."""
    end = time.monotonic() + 10
    while True:
        try:
            return Decimal(json.loads(call("GET", f"/generation?id={generation}")[0])["data"]["total_cost"])
        except SystemExit:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class Service:
    """One service: what it cost, beside what its price says."""

    def __init__(self, model, unit):
        entry = json.loads(call("GET", f"/models/{model}")[0])
        self.model, self.micro = model, entry["pricing_micro"]
        self.price = self.micro[unit]
        self.ready = entry["availability"]["status"] == "ready"
        self.costs, self.wrong = Decimal(0), []

    def paid(self, generation, units):
        want = max(math.ceil(Decimal(units) * self.price / 1_000_000), self.micro["minimum"] if units else 0)
        cost = receipt(generation)
        self.costs += cost
        if cost != Decimal(want) / 1_000_000:
            self.wrong.append(f"{units} units cost {cost}, not {Decimal(want) / 1_000_000}")


def embeddings(service):
    right = 0
    for triple in TRIPLES:
        body, generation = call("POST", "/embeddings", {"model": service.model, "input": list(triple)})
        answer = json.loads(body)
        near, far = (dot(answer["data"][0]["embedding"], answer["data"][at]["embedding"]) for at in (1, 2))
        right += near > far
        service.paid(generation, answer["usage"]["prompt_tokens"])
    return right, len(TRIPLES), 18


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def speech(service, listener):
    """Digits said by one service and written down by another."""
    chance, right = random.Random(4711), 0
    for _ in range(10):
        digits = [chance.randrange(10) for _ in range(chance.randrange(4, 8))]
        text = " ".join(map(str, digits))
        said, generation = call(
            "POST",
            "/audio/speech",
            {"model": service.model, "input": text, "voice": "af_sky", "speed": 0.9, "response_format": "wav"},
        )
        service.paid(generation, len(text))
        with wave.open(io.BytesIO(said)) as sound:
            seconds = math.ceil(math.ceil(sound.getnframes() * 1000 / sound.getframerate()) / 1000)
        body, generation = call("POST", "/audio/transcriptions", form={"model": listener.model, "file": said})
        listener.paid(generation, seconds)
        heard = json.loads(body)["text"].split()
        right += heard == [DIGITS[digit] for digit in digits]
    return right, 10, 9


def reading(service):
    right = 0
    with tempfile.TemporaryDirectory() as folder:
        for at, lines in enumerate(LINES):
            page, picture = os.path.join(folder, f"{at}.html"), os.path.join(folder, f"{at}.png")
            rows = "".join(f'<div style="margin:14px 0">{line}</div>' for line in lines)
            with open(page, "w", encoding="utf-8") as file:
                file.write(f'<body style="font:26px DejaVu Sans,sans-serif;margin:40px;background:#fff">{rows}</body>')
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=900,420"]
            profile = f"--user-data-dir={os.path.join(folder, 'profile')}"
            subprocess.run(["chromium", *flags, profile, f"--screenshot={picture}", page], check=True, capture_output=True)
            with open(picture, "rb") as file:
                image = base64.b64encode(file.read()).decode()
            body, generation = call("POST", "/m/caption", {"model": service.model, "imageBase64": image})
            read = [line for line in json.loads(body)["caption"].split("\n") if line]
            right += read == lines
            if read != lines:
                print(f"  read {read} instead of {lines}")
            service.paid(generation, 1)
    return right, len(LINES), 5


def pages(service):
    """A page whose text its script writes, one without scripts, and one that nobody may fetch."""
    wanted = {"urls": [f"{PAGES}/script", f"{PAGES}/plain", "http://127.0.0.1/"], "format": "text", "render": True}
    body, generation = call("POST", "/scrape", {"model": service.model, **wanted})
    script, plain, private = json.loads(body)["results"]
    right = script["success"] and "written by a script" in script["data"]
    right += plain["success"] and "written by hand" in plain["data"] and plain["metadata"]["title"] == "Plain"
    right += not private["success"] and private["error"]["code"] == "address_loopback"
    if right != 3:
        print(f"  {script}\n  {plain}\n  {private}")
    service.paid(generation, 2)
    return right, 3, 3


def main():
    services = {
        "embeddings": [Service("all-minilm", "embedding")],
        "speech": [Service("espeak-ng", "character"), Service("pocketsphinx-digits", "second")],
        "reading": [Service("tesseract", "image")],
        "pages": [Service("scrape", "url")],
    }
    checks = {"embeddings": embeddings, "speech": speech, "reading": reading, "pages": pages}
    needed = os.environ.get("CXMPUTE_SERVICES", " ".join(checks)).split()
    passed, failed, skipped = 0, 0, 0
    for name, check in checks.items():
        of = services[name]
        missing = [service.model for service in of if not service.ready]
        if name == "reading" and not shutil.which("chromium"):
            missing.append("chromium")
        if name == "pages" and os.environ.get("CXMPUTE_TEST_WITHOUT_BROWSER"):
            missing.append("a browser in a namespace")
        if missing:
            skipped, failed = (skipped, failed + 1) if name in needed else (skipped + 1, failed)
            print(f"{name:10} {'FAILED' if name in needed else 'skipped'}: not here: {', '.join(missing)}")
            continue
        right, all_of_them, least = check(*of)
        wrong = [text for service in of for text in service.wrong]
        good = right >= least and not wrong
        passed, failed = passed + good, failed + (not good)
        costs = ", ".join(f"{service.model} {service.costs} credits" for service in of)
        print(f"{name:10} {'ok' if good else 'FAILED'}: {right} of {all_of_them} right (at least {least}); {costs}, as the prices say" if not wrong else f"{name:10} FAILED: {wrong}")
    if skipped:
        print(f"{skipped} skipped")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
