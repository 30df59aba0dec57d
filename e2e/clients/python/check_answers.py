"""Checks every answer and every stream frame that tap.py kept against the published types of OpenAI and Anthropic.

    check_answers.py FOLDER

The types are those of the official Python clients. Beyond them, only the extensions listed here may occur. Prints what
was checked and each violation; ends 1 if there is one, or if there was nothing to check.
"""

import base64
import collections
import json
import pathlib
import struct
import sys
from urllib.parse import urlsplit

import h11
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.audio import Transcription, TranscriptionVerbose
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.shared import ErrorObject
from pydantic import BaseModel, TypeAdapter, ValidationError

# What our answers say beyond OpenAI's types, by type.
EXTENSIONS = {
    "CompletionUsage": {"cost", "cost_details", "source", "code", "attempts"},
    "Usage": {"cost", "cost_details", "source", "code", "attempts", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"},
    # `Usage` above is the name of Anthropic's type, too.
    "MessageDeltaUsage": {"cost", "cost_details", "source", "code"},
    "ResponseUsage": {"cost", "cost_details", "source", "code"},
    "Model": {
        "name", "description", "aliases", "context_length", "architecture", "pricing", "pricing_micro", "top_provider",
        "supported_parameters", "quantizations", "availability", "stats", "evidence", "dimensions", "kind", "digest",
        "max_completion_tokens",
    },
    "UsageDuration": {"cost", "cost_details"},
    "TranscriptionVerbose": {"task"},
    "ErrorObject": None,
}  # fmt: skip

WORK = {
    "/chat/completions": (ChatCompletion, ChatCompletionChunk),
    "/completions": (Completion, Completion),
    "/embeddings": (CreateEmbeddingResponse, None),
    "/responses": (Response, ResponseStreamEvent),
    "/messages": (Message, RawMessageStreamEvent),
    "/messages/count_tokens": (MessageTokensCount, None),
}
# Streams whose events have names: what opens one, and what ends it.
NAMED = {
    "/responses": ("response.created", {"response.completed", "response.incomplete", "response.failed"}),
    "/messages": ("message_start", {"message_stop", "error"}),
}
ANTHROPIC_ERRORS = {
    "invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error",
    "request_too_large", "rate_limit_error", "api_error", "overloaded_error", "timeout_error",
}  # fmt: skip


class Report:
    def __init__(self):
        self.checked = collections.Counter()
        self.violations = []
        self.where = ""

    def violation(self, text):
        self.violations.append(f"{self.where}: {text}")

    def check(self, kind, value, what):
        self.checked[what] += 1
        try:
            model = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            for fault in error.errors():
                self.violation(f"{what}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}")
            return None
        self.extra(model, what)
        return model

    def extra(self, value, what):
        if isinstance(value, BaseModel):
            allowed = EXTENSIONS.get(type(value).__name__, set())
            for name in value.model_extra or {}:
                if allowed is not None and name not in allowed:
                    self.violation(f"{what}: {type(value).__name__} has the unknown field {name}")
            for name in type(value).model_fields:
                self.extra(getattr(value, name, None), what)
        elif isinstance(value, list):
            for item in value:
                self.extra(item, what)


def path_of(target):
    path = urlsplit(target.decode()).path
    for prefix in ("/api/v1", "/v1"):
        if path.startswith(prefix + "/"):
            return path[len(prefix) :]
    return path


def requests_of(data):
    """(method, target, body) of every whole request of a connection."""
    if not data:
        return
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    head, body = None, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            yield head.method.decode(), head.target, body
            rest, _ = connection.trailing_data
            if not rest:
                return
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
            connection.receive_data(rest)
        else:  # nothing more, or the client went away in the middle
            return


def answers_of(data, methods):
    """(status, headers, body, whole) of every answer of a connection."""
    for method, target, _ in methods:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        connection.send(h11.Request(method=method, target=target, headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        if not data:  # h11 takes no bytes for the end of the connection
            return
        connection.receive_data(data)
        head, body, whole = None, b"", False
        while True:
            event = connection.next_event()
            if isinstance(event, h11.InformationalResponse):
                continue
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                whole = True
                break
            else:
                break
        if head is None:
            return
        yield head.status_code, {k.decode().lower(): v.decode() for k, v in head.headers}, body, whole
        if not whole:
            return
        data, _ = connection.trailing_data


def check_error(report, value, headers):
    if not isinstance(value, dict) or not isinstance(value.get("error"), dict):
        return report.violation("an error without the envelope")
    report.check(ErrorObject, value["error"], "error")
    extra = set(value) - {"error", "request_id"}
    if extra:
        report.violation(f"an error envelope with {sorted(extra)}")
    if headers is not None and "x-request-id" not in headers:
        report.violation("an error without x-request-id")


def check_message_error(report, value, headers):
    report.checked["error"] += 1
    body = value.get("error")
    if value.get("type") != "error" or not isinstance(body, dict) or set(value) - {"type", "error", "request_id"}:
        return report.violation("an error of another shape than Anthropic's")
    if body.get("type") not in ANTHROPIC_ERRORS or not body.get("message") or not body.get("code"):
        report.violation(f"an error without a class, words or a code: {body}")
    if headers is not None and value.get("request_id") != headers.get("x-request-id"):
        report.violation("an error without its request id")


def check_named_stream(report, path, text, whole):
    frames = text.split("\n\n")
    complete, rest = frames[:-1], frames[-1]
    if whole and rest:
        report.violation("a stream that ends inside a frame")
    first, last = NAMED[path]
    seen, open_blocks = [], set()
    for frame in complete:
        if frame.startswith(":"):
            continue
        name, _, data = frame.partition("\n")
        if not name.startswith("event: ") or not data.startswith("data: ") or "\n" in data:
            report.violation(f"a frame without name or data: {frame[:60]!r}")
            continue
        name, value = name[7:], json.loads(data[6:])
        if value.get("type") != name:
            report.violation(f"an event called {name} of type {value.get('type')}")
        if seen and seen[-1] in last:
            report.violation("a frame after the end")
        if name == "ping" and path == "/messages":
            continue
        seen.append(name)
        if name == "error" and path == "/messages":
            check_message_error(report, value, None)
            continue
        report.check(WORK[path][1], value, f"{path} frame")
        if path == "/responses" and value.get("sequence_number") != len(seen) - 1:
            report.violation(f"event {len(seen) - 1} has the number {value.get('sequence_number')}")
        if name in ("content_block_start", "response.output_item.added"):
            open_blocks.add(value.get("index", value.get("output_index")))
        elif name in ("content_block_stop", "response.output_item.done"):
            open_blocks.discard(value.get("index", value.get("output_index")))
        elif name == "content_block_delta" and value["index"] not in open_blocks:
            report.violation("a block goes on that is not open")
    if seen and seen[0] not in (first, "error"):
        report.violation(f"a stream that begins with {seen[0]}")
    if whole and not (seen and seen[-1] in last):
        report.violation("a whole stream without an end")
    if seen and seen[-1] in ("message_stop", "response.completed", "response.incomplete") and open_blocks:
        report.violation("a complete stream with open blocks")


def check_stream(report, request, chunk_kind, text, whole):
    frames = text.split("\n\n")
    complete, rest = frames[:-1], frames[-1]
    if whole and rest:
        report.violation("a stream that ends inside a frame")
    wants_usage = bool((request.get("stream_options") or {}).get("include_usage") or (request.get("usage") or {}).get("include"))
    heads, ended, failed, usages, opened, finished = set(), False, False, 0, set(), {}
    for frame in complete:
        data = [line[5:].lstrip(" ") for line in frame.split("\n") if line.startswith("data:")]
        if not data:
            if not all(line.startswith(":") for line in frame.split("\n")):
                report.violation(f"a frame that is neither data nor comment: {frame[:60]!r}")
            continue
        if ended or failed:
            report.violation("a frame after the end")
        if data == ["[DONE]"]:
            ended = True
            continue
        value = json.loads("\n".join(data))
        if "error" in value:
            failed = True
            check_error(report, value, None)
            continue
        if chunk_kind is Completion:
            # The type is that of a whole answer; in a stream the reason is null until the end, as OpenAI sends it.
            open_choices = [choice for choice in value.get("choices", []) if choice.get("finish_reason", "") is None]
            for choice in open_choices:
                choice["finish_reason"] = "stop"
        chunk = report.check(chunk_kind, value, f"{chunk_kind.__name__} frame")
        if chunk is None:
            continue
        heads.add((chunk.id, chunk.created, chunk.model, chunk.object))
        if not chunk.choices:
            usages += 1
            if chunk.usage is None:
                report.violation("a chunk without choices and without usage")
        elif wants_usage and chunk_kind is ChatCompletionChunk and value.get("usage", "absent") is not None:
            report.violation("a content chunk whose usage is not null although usage was asked for")
        elif not wants_usage and value.get("usage") is not None:
            report.violation("usage that nobody asked for")
        for choice in chunk.choices:
            if chunk_kind is ChatCompletionChunk and choice.index not in opened and choice.delta.role != "assistant":
                report.violation("the first chunk of a choice does not name the role")
            opened.add(choice.index)
            if choice.index in finished:
                report.violation("a choice goes on after its end")
            open_still = chunk_kind is Completion and any(o.get("index") == choice.index for o in open_choices)
            if choice.finish_reason and not open_still:
                finished[choice.index] = choice.finish_reason
    if len(heads) > 1:
        report.violation(f"id, created, model or object change within a stream: {heads}")
    if ended:
        if finished.keys() != opened:
            report.violation("[DONE] came before every choice had ended")
        if usages != (1 if wants_usage else 0):
            report.violation(f"{usages} usage chunks, wanted: {wants_usage}")
    elif whole and not failed:
        report.violation("a whole stream without [DONE] and without an error")


def unpacked(value):
    """Embeddings that came as base64, as the lists that the type describes."""
    for item in value.get("data", []):
        if isinstance(item.get("embedding"), str):
            raw = base64.b64decode(item["embedding"], validate=True)
            item["embedding"] = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return value


def check_answer(report, method, path, request, status, headers, body, whole):
    kind = headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        if kind != "text/event-stream; charset=utf-8" or headers.get("cache-control") != "no-store":
            report.violation(f"stream headers: {kind}, {headers.get('cache-control')}")
        text = body.decode("utf-8", errors="ignore" if not whole else "strict")
        if path in NAMED:
            return check_named_stream(report, path, text, whole)
        return check_stream(report, request, WORK[path][1], text, whole)
    if not whole:
        return None
    if status == 200 and path.startswith("/audio/") and not kind.startswith("application/json"):
        report.checked["sound or bare text"] += 1
        if not body or not kind.startswith(("audio/", "text/")):
            report.violation(f"{len(body)} bytes of the type {kind}")
        return None
    value = json.loads(body)
    if status >= 400 and path.startswith("/messages"):
        return check_message_error(report, value, headers)
    if status >= 400:
        return check_error(report, value, headers)
    if path == "/audio/transcriptions":
        what = TranscriptionVerbose if "duration" in value else Transcription
        return report.check(what, value, what.__name__)
    if path in WORK:
        what = WORK[path][0]
        return report.check(what, unpacked(value) if path == "/embeddings" else value, what.__name__)
    if path == "/models":
        if set(value) != {"object", "data"} or value["object"] != "list":
            report.violation("a list of models of another shape")
        for model in value["data"]:
            report.check(Model, model, "Model")
    elif path.startswith("/models/"):
        report.check(Model, value, "Model")
    return None


def main(folder):
    report = Report()
    for sent in sorted(pathlib.Path(folder).glob("*.sent")):
        asked = list(requests_of(sent.read_bytes()))
        answers = answers_of(sent.with_suffix(".received").read_bytes(), asked)
        for (method, target, body), (status, headers, answer, whole) in zip(asked, answers, strict=False):
            path = path_of(target)
            report.where = f"{sent.stem} {method} {path} {status}"
            report.checked["answers"] += 1
            try:
                request = json.loads(body) if body else {}
            except ValueError:
                request = {}
            try:
                check_answer(report, method, path, request if isinstance(request, dict) else {}, status, headers, answer, whole)
            except (ValueError, KeyError) as error:
                report.violation(f"{type(error).__name__}: {error}")
    for what, count in sorted(report.checked.items()):
        print(f"{count:6} {what}")
    for violation in report.violations[:50]:
        print(f"VIOLATION {violation}")
    frames = report.checked["ChatCompletionChunk frame"]
    failed = len(report.violations) + (0 if frames and report.checked["error"] else 1)
    print(f"\n{sum(report.checked.values()) - len(report.violations)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
