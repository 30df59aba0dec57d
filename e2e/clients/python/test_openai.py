"""The official OpenAI client for Python, unmodified, against a running gateway. See ../README.md for the variables."""

import base64
import json
import math
import struct
from decimal import Decimal

import openai
import pytest
from conftest import client_with, setting

STORY = [{"role": "user", "content": "Tell me a story."}]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def assert_adds_up(usage):
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


# Models


def test_the_list_of_models_names_the_chat_model(client, chat_model):
    models = list(client.models.list())
    assert chat_model in [model.id for model in models]
    assert {model.object for model in models} == {"model"}


def test_one_model_can_be_retrieved(client, chat_model):
    model = client.models.retrieve(chat_model)
    assert (model.id, model.object) == (chat_model, "model")
    assert model.created > 0
    assert model.owned_by


def test_retrieving_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as failure:
        client.models.retrieve("no-such-model")
    assert failure.value.code == "model_not_found"


# Chat


def test_a_chat_answer_has_text_usage_and_an_end(client, chat_model):
    answer = client.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == chat_model
    assert answer.created > 0
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "stop")
    assert choice.message.content
    assert_adds_up(answer.usage)


def test_the_parts_of_a_cost_add_up_to_it(client, chat_model):
    answer = client.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0)
    pricing = client.models.retrieve(chat_model).pricing
    details = answer.usage.cost_details
    prompt, completion = (Decimal(details[part]) for part in ("prompt", "completion"))
    assert prompt == answer.usage.prompt_tokens * Decimal(pricing["prompt"])
    assert completion == answer.usage.completion_tokens * Decimal(pricing["completion"])
    assert prompt + completion + Decimal(details["adjustment"]) == Decimal(answer.usage.cost) > 0


def test_the_speed_of_a_model_is_measured(client, chat_model):
    client.chat.completions.create(model=chat_model, messages=STORY, temperature=0)
    model = client.models.retrieve(chat_model)
    assert 0 < model.stats["ttft_ms_p50"] <= model.stats["ttft_ms_p95"]
    assert model.stats["tokens_per_s_p50"] > 0
    assert model.availability["nodes"] >= 1


def test_max_tokens_ends_an_answer_with_length(client, chat_model):
    answer = client.chat.completions.create(model=chat_model, messages=STORY, max_tokens=5, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens <= 5


def test_a_stop_string_ends_an_answer_and_is_not_shown(client, chat_model):
    whole = client.chat.completions.create(model=chat_model, messages=STORY, temperature=0).choices[0].message.content
    stop = whole.split()[3]
    cut = client.chat.completions.create(model=chat_model, messages=STORY, temperature=0, stop=[stop])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == whole[: whole.index(stop)]


def test_a_stream_with_usage_begins_flows_ends_and_reports(client, chat_model):
    with client.chat.completions.create(
        model=chat_model, messages=STORY, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    *answer, report = chunks
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in answer)
    assert answer[0].choices[0].delta.role == "assistant"
    assert len([chunk for chunk in answer if chunk.choices[0].delta.content]) > 20
    ends = [chunk.choices[0].finish_reason for chunk in answer if chunk.choices[0].finish_reason]
    assert ends == ["stop"]
    assert answer[-1].choices[0].finish_reason == "stop"
    assert report.choices == []
    assert_adds_up(report.usage)
    assert report.usage.completion_tokens > 20


def test_a_stream_without_include_usage_has_no_usage_chunk(client, chat_model):
    with client.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0, stream=True) as stream:
        chunks = list(stream)
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stream_and_single_answer_say_the_same(client, chat_model):
    single = client.chat.completions.create(model=chat_model, messages=STORY, temperature=0)
    with client.chat.completions.create(
        model=chat_model, messages=STORY, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == single.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == single.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == single.usage.prompt_tokens


def test_after_an_abandoned_stream_the_next_request_works(client, chat_model):
    stream = client.chat.completions.create(model=chat_model, messages=STORY, temperature=0, stream=True)
    for _ in range(3):
        next(stream)
    stream.close()
    answer = client.chat.completions.create(model=chat_model, messages=QUESTION, temperature=0)
    assert answer.choices[0].finish_reason == "stop"


# Completions


def test_a_completion_continues_the_prompt(client, chat_model):
    answer = client.completions.create(model=chat_model, prompt="Once there was a small", max_tokens=16, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == chat_model
    (choice,) = answer.choices
    assert choice.text
    assert choice.finish_reason in ("stop", "length")
    assert_adds_up(answer.usage)
    assert answer.usage.completion_tokens <= 16


def test_a_completion_stream_says_the_same_and_reports_usage(client, chat_model):
    wanted = {"model": chat_model, "prompt": "Once there was a small", "max_tokens": 16, "temperature": 0}
    single = client.completions.create(**wanted)
    with client.completions.create(**wanted, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    *answer, report = chunks
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert "".join(chunk.choices[0].text for chunk in answer) == single.choices[0].text
    ends = [chunk.choices[0].finish_reason for chunk in answer if chunk.choices[0].finish_reason]
    assert ends == [single.choices[0].finish_reason]
    assert report.choices == []
    assert report.usage.completion_tokens == single.usage.completion_tokens


# Embeddings


def test_embeddings_are_the_same_as_floats_and_as_base64(client, embeddings_model):
    floats = client.embeddings.create(model=embeddings_model, input="The cat purrs.", encoding_format="float")
    by_default = client.embeddings.create(model=embeddings_model, input="The cat purrs.")  # the client asks for base64
    assert (floats.object, floats.data[0].object, floats.data[0].index) == ("list", "embedding", 0)
    assert len(floats.data[0].embedding) == len(by_default.data[0].embedding) > 0
    assert by_default.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
    assert any(floats.data[0].embedding)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0


def test_base64_embeddings_are_little_endian_floats(client, embeddings_model):
    raw = client.embeddings.with_raw_response.create(model=embeddings_model, input="The cat purrs.", encoding_format="base64")
    text = json.loads(raw.http_response.content)["data"][0]["embedding"]
    assert isinstance(text, str)
    packed = base64.b64decode(text, validate=True)
    decoded = struct.unpack(f"<{len(packed) // 4}f", packed)
    floats = client.embeddings.create(model=embeddings_model, input="The cat purrs.", encoding_format="float")
    assert decoded == pytest.approx(floats.data[0].embedding, abs=1e-6)


def test_a_batch_of_embeddings_keeps_its_order(client, embeddings_model):
    sentences = ["The cat purrs.", "A gateway takes a request.", "The cat purrs."]
    batch = client.embeddings.create(model=embeddings_model, input=sentences)
    assert [item.index for item in batch.data] == [0, 1, 2]
    first, second, third = (item.embedding for item in batch.data)
    assert first == pytest.approx(third, abs=1e-4)
    assert math.dist(first, second) > 0.01
    alone = client.embeddings.create(model=embeddings_model, input=sentences[1]).data[0].embedding
    assert second == pytest.approx(alone, abs=1e-4)


# Errors


def test_a_value_of_the_wrong_type_is_a_bad_request_that_names_the_field(client, chat_model):
    with pytest.raises(openai.BadRequestError) as failure:
        client.chat.completions.create(model=chat_model, messages=QUESTION, temperature="hot")
    assert failure.value.param == "temperature"
    assert failure.value.type == "invalid_request_error"
    assert failure.value.code == "invalid_parameter"


def test_a_request_without_messages_is_a_bad_request_that_names_them(client, chat_model):
    with pytest.raises(openai.BadRequestError) as failure:
        client.post("/chat/completions", cast_to=object, body={"model": chat_model})
    assert failure.value.param == "messages"


def test_an_unknown_key_is_an_authentication_error(chat_model):
    with client_with("cxk_00000000000000000000000000000000") as stranger, pytest.raises(openai.AuthenticationError) as failure:
        stranger.chat.completions.create(model=chat_model, messages=QUESTION)
    assert failure.value.code == "invalid_api_key"
    # OpenAI's own word for a wrong key, whatever the class is called in its libraries.
    assert failure.value.type == "invalid_request_error"


def test_a_key_without_credits_gets_402(chat_model):
    with client_with(setting("CXMPUTE_EMPTY_KEY")) as poor, pytest.raises(openai.APIStatusError) as failure:
        poor.chat.completions.create(model=chat_model, messages=QUESTION)
    assert failure.value.status_code == 402
    assert failure.value.code == "insufficient_credits"


def test_a_stream_that_cannot_be_paid_fails_with_402_before_it_begins(chat_model):
    with client_with(setting("CXMPUTE_EMPTY_KEY")) as poor, pytest.raises(openai.APIStatusError) as failure:
        poor.chat.completions.create(model=chat_model, messages=QUESTION, stream=True)
    assert failure.value.status_code == 402


def test_chat_with_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as failure:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert failure.value.code == "model_not_found"


def test_every_error_carries_a_request_id_and_a_sentence(client):
    with pytest.raises(openai.NotFoundError) as failure:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert failure.value.body["message"]
    assert failure.value.response.json()["request_id"]
