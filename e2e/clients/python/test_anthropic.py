"""The official Anthropic client for Python, unmodified, against a running gateway. See ../README.md for the variables."""

import anthropic
import pytest
from conftest import setting

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
# This version of the client has no argument for it any more; the API has.
GREEDY = {"temperature": 0}
LOOK = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
    "strict": True,
}


def claude_with(key):
    # This client adds /v1 itself.
    base = setting("CXMPUTE_BASE_URL").removesuffix("/v1")
    return anthropic.Anthropic(base_url=base, api_key=key, timeout=60, max_retries=0)


@pytest.fixture(scope="module")
def claude():
    with claude_with(setting("CXMPUTE_API_KEY")) as client:
        yield client


def test_a_message_has_text_usage_and_a_reason(claude, chat_model):
    answer = claude.messages.create(model=chat_model, messages=QUESTION, max_tokens=64, extra_body=GREEDY)
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", chat_model, "end_turn")
    assert answer.id.startswith("msg_")
    (block,) = answer.content
    assert block.type == "text"
    assert block.text
    assert answer.usage.input_tokens > 0 < answer.usage.output_tokens
    assert float(answer.usage.cost) > 0


def test_a_message_says_what_a_chat_says(claude, client, chat_model):
    turns = [{"role": "system", "content": "Be kind."}, *STORY]
    chat = client.chat.completions.create(model=chat_model, messages=turns, max_tokens=128, temperature=0)
    answer = claude.messages.create(model=chat_model, system="Be kind.", messages=STORY, max_tokens=128, extra_body=GREEDY)
    assert answer.content[0].text == chat.choices[0].message.content
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)


def test_a_stream_flows_and_ends_with_the_whole(claude, chat_model):
    asked = {"model": chat_model, "messages": STORY, "max_tokens": 128, "extra_body": GREEDY}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 20
    assert "".join(pieces) == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert final.usage.input_tokens == whole.usage.input_tokens
    with claude.messages.create(**asked, stream=True) as stream:
        kinds = [event.type for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_max_tokens_and_stop_sequences_end_a_message(claude, chat_model):
    asked = {"model": chat_model, "messages": STORY, "extra_body": GREEDY}
    cut = claude.messages.create(**asked, max_tokens=5)
    assert (cut.stop_reason, cut.usage.output_tokens <= 5) == ("max_tokens", True)
    whole = claude.messages.create(**asked, max_tokens=128).content[0].text
    stop = whole.split()[3]
    stopped = claude.messages.create(**asked, max_tokens=128, stop_sequences=[stop])
    assert stopped.stop_reason == "end_turn"
    assert stopped.content[0].text == whole[: whole.index(stop)]


def test_a_tool_is_called_and_its_result_can_be_sent(claude, chat_model):
    asked = {"model": chat_model, "tools": [LOOK], "max_tokens": 128, "extra_body": GREEDY}
    answer = claude.messages.create(**asked, messages=WEATHER, tool_choice={"type": "any"})
    assert answer.stop_reason == "tool_use"
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "get_weather"
    assert set(call.input) == {"city"}
    with claude.messages.stream(**asked, messages=WEATHER, tool_choice={"type": "any"}) as stream:
        final = stream.get_final_message()
    assert next(block for block in final.content if block.type == "tool_use").input == call.input
    turns = [
        *WEATHER,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}]},
    ]
    assert claude.messages.create(**asked, messages=turns).usage.output_tokens > 0


def test_tokens_are_counted_as_they_are_billed(claude, chat_model):
    count = claude.messages.count_tokens(model=chat_model, system="Be kind.", messages=STORY)
    answer = claude.messages.create(model=chat_model, system="Be kind.", messages=STORY, max_tokens=5)
    assert count.input_tokens == answer.usage.input_tokens


def test_refusals_are_the_client_s_own_errors(claude, chat_model):
    asked = {"model": chat_model, "messages": QUESTION, "max_tokens": 5}
    with pytest.raises(anthropic.BadRequestError) as bad:
        claude.messages.create(**asked, extra_body={"temperature": 3})
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    assert (bad.value.body["error"]["code"], bad.value.body["error"]["param"]) == ("invalid_parameter", "temperature")
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(**{**asked, "model": "no-such-model"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(**asked, thinking={"type": "enabled", "budget_tokens": 1024})
    with claude_with("cxk_wrong") as stranger, pytest.raises(anthropic.AuthenticationError) as unknown:
        stranger.messages.create(**asked)
    assert unknown.value.body["error"]["type"] == "authentication_error"
    with claude_with(setting("CXMPUTE_EMPTY_KEY")) as poor, pytest.raises(anthropic.APIStatusError) as unpaid:
        poor.messages.create(**asked)
    assert (unpaid.value.status_code, unpaid.value.body["error"]["code"]) == (402, "insufficient_credits")


def test_after_an_abandoned_stream_the_next_request_works(claude, chat_model):
    asked = {"model": chat_model, "messages": STORY, "max_tokens": 128, "extra_body": GREEDY}
    stream = claude.messages.create(**asked, stream=True)
    for _ in range(4):
        next(stream)
    stream.close()
    assert claude.messages.create(**asked).stop_reason in ("end_turn", "max_tokens")
