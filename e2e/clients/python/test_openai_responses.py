"""OpenAI's Responses with the official client. See ../README.md for the variables."""

import openai
import pytest
from conftest import client_with, setting

QUESTION = "What is the capital of France?"
STORY = "Tell me a story."
LOOK = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
    "strict": True,
}


def assert_adds_up(usage):
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert float(usage.cost) > 0


def test_a_response_has_text_usage_and_a_status(client, chat_model):
    answer = client.responses.create(model=chat_model, input=QUESTION, temperature=0)
    assert (answer.object, answer.status, answer.model) == ("response", "completed", chat_model)
    assert answer.id.startswith("resp_")
    assert answer.output_text
    (item,) = answer.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert_adds_up(answer.usage)


def test_a_response_says_what_a_chat_says(client, chat_model):
    chat = client.chat.completions.create(
        model=chat_model, messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": STORY}], temperature=0
    )
    answer = client.responses.create(model=chat_model, instructions="Be kind.", input=STORY, temperature=0)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)


def test_a_stream_has_numbered_events_and_ends_with_the_whole(client, chat_model):
    whole = client.responses.create(model=chat_model, input=STORY, temperature=0)
    with client.responses.create(model=chat_model, input=STORY, temperature=0, stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 20
    assert "".join(deltas) == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    assert_adds_up(events[-1].response.usage)


def test_the_client_s_own_stream_helper_understands_it(client, chat_model):
    with client.responses.stream(model=chat_model, input=QUESTION, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text != ""


def test_a_cut_response_is_incomplete(client, chat_model):
    answer = client.responses.create(model=chat_model, input=STORY, max_output_tokens=5, temperature=0)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with client.responses.create(model=chat_model, input=STORY, max_output_tokens=5, temperature=0, stream=True) as stream:
        *_, last = stream
    assert last.type == "response.incomplete"


def test_a_required_call_is_an_item_and_its_answer_can_be_sent(client, chat_model):
    asked = {"model": chat_model, "tools": [LOOK], "temperature": 0}
    answer = client.responses.create(**asked, input="What is the weather in Paris?", tool_choice="required")
    call = next(item for item in answer.output if item.type == "function_call")
    assert (call.name, call.status) == ("get_weather", "completed")
    with client.responses.create(**asked, input="What is the weather in Paris?", tool_choice="required", stream=True) as stream:
        events = list(stream)
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == call.arguments
    assert "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta") == call.arguments
    turns = [
        {"role": "user", "content": "What is the weather in Paris?"},
        *(item.model_dump(exclude_none=True) for item in answer.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
    ]
    assert client.responses.create(**asked, input=turns).status == "completed"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(client, chat_model, more, param):
    with pytest.raises(openai.BadRequestError) as failure:
        client.responses.create(**{"model": chat_model, "input": "x", **more})
    assert failure.value.param == param


def test_a_wrong_key_is_refused():
    with client_with("cxk_wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.responses.create(model=setting("CXMPUTE_CHAT_MODEL"), input="x")
