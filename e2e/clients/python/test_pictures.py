"""Pictures with the official OpenAI and Anthropic clients, unmodified, against a gateway whose node runs the server of
e2e/src/atelier.rs: it names the colours that it finds in the pixels, so an answer proves that the picture arrived."""

import base64
import struct
import zlib

import anthropic
import openai
import pytest
from conftest import setting

QUESTION = "What is there?"
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 50, 200)}


def png(left, right, width=64, height=32):
    """A picture with two halves."""
    line = b"\0" + bytes(COLOURS[left]) * (width // 2) + bytes(COLOURS[right]) * (width // 2)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(line * height)) + chunk(b"IEND", b"")


def encoded(file):
    return base64.b64encode(file).decode()


def data_url(left, right):
    return "data:image/png;base64," + encoded(png(left, right))


def turn(*urls):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, *images]}]


@pytest.fixture(scope="module")
def model():
    return setting("CXMPUTE_VISION_MODEL")


@pytest.fixture(scope="module")
def artist():
    return setting("CXMPUTE_IMAGE_MODEL")


@pytest.fixture(scope="module")
def claude():
    base = setting("CXMPUTE_BASE_URL").removesuffix("/v1")
    with anthropic.Anthropic(base_url=base, api_key=setting("CXMPUTE_API_KEY"), timeout=60, max_retries=0) as client:
        yield client


def test_a_chat_sees_a_picture(client, model):
    answer = client.chat.completions.create(model=model, messages=turn(data_url("red", "green")))
    assert answer.choices[0].message.content == "I see red beside green in 64x32."
    assert answer.usage.prompt_tokens > 255
    assert answer.usage.prompt_tokens_details.image_tokens == 255


def test_a_streamed_chat_sees_two_pictures(client, model):
    pictures = turn(data_url("red", "green"), setting("CXMPUTE_PICTURE_URL"))
    stream = client.chat.completions.create(
        model=model, messages=pictures, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "I see red beside green in 64x32; red beside blue in 600x300."
    assert chunks[-1].usage.prompt_tokens_details.image_tokens == 255 + 425


def test_a_response_sees_a_picture(client, model):
    parts = [
        {"type": "input_text", "text": QUESTION},
        {"type": "input_image", "image_url": data_url("blue", "green"), "detail": "low"},
    ]
    answer = client.responses.create(model=model, input=[{"role": "user", "content": parts}])
    assert answer.output_text == "I see blue beside green in 64x32."


def test_a_private_address_is_not_fetched(client, model):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=turn("http://192.168.1.1/a.png"))
    assert refused.value.param == "messages[0].content[1].image_url.url"


def test_a_message_sees_pictures(claude, model):
    source = {"type": "base64", "media_type": "image/png", "data": encoded(png("green", "blue"))}
    blocks = [
        {"type": "image", "source": source},
        {"type": "image", "source": {"type": "url", "url": setting("CXMPUTE_PICTURE_URL")}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": blocks}]
    answer = claude.messages.create(model=model, max_tokens=64, messages=messages)
    wanted = "I see green beside blue in 64x32; red beside blue in 600x300."
    assert answer.content[0].text == wanted
    assert answer.usage.input_tokens > 255 + 425
    with claude.messages.stream(model=model, max_tokens=64, messages=messages) as stream:
        assert stream.get_final_text() == wanted
    counted = claude.messages.count_tokens(
        model=model, messages=[{"role": "user", "content": [blocks[0], blocks[2]]}]
    )
    assert counted.input_tokens == answer.usage.input_tokens - 425


def test_a_broken_picture_is_a_bad_request(claude, model):
    source = {"type": "base64", "media_type": "image/png", "data": encoded(png("green", "blue")[:50])}
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(
            model=model,
            max_tokens=64,
            messages=[{"role": "user", "content": [{"type": "image", "source": source}]}],
        )


def test_pictures_are_drawn(client, artist):
    answer = client.images.generate(model=artist, prompt="a red door", n=2, size="256x64", response_format="b64_json")
    assert len(answer.data) == 2
    assert answer.created > 1_700_000_000
    for picture in answer.data:
        file = base64.b64decode(picture.b64_json)
        assert file.startswith(b"\x89PNG")
        assert struct.unpack(">II", file[16:24]) == (256, 64)
        assert picture.url is None
    assert (answer.usage.images, answer.usage.cost) == (4, "0.200000")


def test_a_picture_has_the_model_s_own_size_and_another_packing(client, artist):
    answer = client.images.generate(model=artist, prompt="a blue door", output_format="jpeg", quality="auto")
    assert (answer.size, answer.output_format) == ("128x64", "jpeg")
    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\xff\xd8\xff")


def test_no_address_of_a_picture_is_given(client, artist):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model=artist, prompt="a blue door", response_format="url")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "response_format")
