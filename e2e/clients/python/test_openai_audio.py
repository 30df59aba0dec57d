"""Speech and recordings with the official OpenAI client. What no node serves is shown as skipped."""

import io
import pathlib
import re
import wave

import openai
import pytest

# A recording of four spoken digits: the one with which the gateway checks nodes that listen.
RECORDING = pathlib.Path(__file__).parents[3] / "crates/gateway/src/fleet/canary/digits.wav"
TEXT = "Seven words that are to be said."
STAMP = r"\d\d:\d\d:\d\d[.,]\d{3}"


def ready(client, kind):
    for model in client.models.list():
        if model.kind == kind and model.availability["status"] == "ready":
            return model.id
    return pytest.skip(f"no model of the kind {kind} is ready here")


@pytest.fixture(scope="module")
def voice_model(client):
    return ready(client, "tts")


@pytest.fixture(scope="module")
def listening_model(client):
    return ready(client, "stt")


@pytest.fixture(scope="module")
def recording():
    return ("digits.wav", RECORDING.read_bytes(), "audio/wav")


def seconds_of(sound):
    """Length of a waveform that is not silent."""
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getsampwidth(), file.getnchannels()) == (2, 1)
        samples = file.readframes(file.getnframes())
        assert any(samples)
        return file.getnframes() / file.getframerate()


def recorded_seconds():
    return seconds_of(RECORDING.read_bytes())


# Speech


def test_speech_is_a_waveform(client, voice_model):
    answer = client.audio.speech.create(model=voice_model, voice="alloy", input=TEXT, response_format="wav")
    assert answer.response.headers["content-type"] == "audio/wav"
    assert 0.2 < seconds_of(answer.content) < 30


def test_speech_without_a_format_is_sound(client, voice_model):
    answer = client.audio.speech.create(model=voice_model, voice="alloy", input=TEXT)
    # mp3 as with OpenAI, where the gateway has an encoder.
    kind = answer.response.headers["content-type"]
    assert kind in {"audio/mpeg", "audio/wav"}
    assert answer.content[:3] in ({b"ID3"} if kind == "audio/mpeg" else {b"RIF"}) or answer.content[0] == 0xFF


def test_bare_samples_have_the_rate_that_openai_documents(client, voice_model):
    def ask(form):
        return client.audio.speech.create(model=voice_model, voice="alloy", input=TEXT, response_format=form).content

    samples, sound = ask("pcm"), ask("wav")
    assert len(samples) / 2 / 24_000 == pytest.approx(seconds_of(sound), abs=0.05)


def test_speech_is_streamed_to_a_file(client, voice_model, tmp_path):
    path = tmp_path / "speech.wav"
    with client.audio.speech.with_streaming_response.create(
        model=voice_model, voice="alloy", input=TEXT, response_format="wav"
    ) as answer:
        answer.stream_to_file(path)
    assert seconds_of(path.read_bytes()) > 0.2


@pytest.mark.parametrize(
    ("field", "value"),
    [("voice", "nobody-has-this-voice"), ("input", ""), ("input", "x" * 10_001), ("speed", 9.0), ("response_format", "midi")],
)
def test_what_cannot_be_said_names_its_field(client, voice_model, field, value):
    wanted = {"model": voice_model, "voice": "alloy", "input": TEXT, "response_format": "wav", field: value}
    with pytest.raises(openai.BadRequestError) as failure:
        client.audio.speech.create(**wanted)
    assert (failure.value.param, failure.value.type) == (field, "invalid_request_error")


def test_the_bill_of_speech_is_by_the_character(client, voice_model):
    answer = client.audio.speech.with_raw_response.create(model=voice_model, voice="alloy", input=TEXT, response_format="wav")
    row = client.get("/generation", cast_to=object, options={"params": {"id": answer.headers["x-request-id"]}})["data"]
    (model,) = [model for model in client.models.list() if model.id == voice_model]
    price = model.pricing_micro
    cost = -(-len(TEXT) * price["character"] // 10**6)
    assert row["total_cost_micro"] == max(cost, price["minimum"])


# Recordings


def test_a_recording_becomes_text(client, listening_model, recording):
    answer = client.audio.transcriptions.create(model=listening_model, file=recording)
    assert answer.text.strip()
    assert answer.usage.type == "duration"
    assert 0 <= answer.usage.seconds - recorded_seconds() < 1


def test_a_recording_becomes_plain_text(client, listening_model, recording):
    answer = client.audio.transcriptions.create(model=listening_model, file=recording, response_format="text")
    assert isinstance(answer, str)
    assert answer.strip()


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_a_recording_becomes_subtitles(client, listening_model, recording, form):
    answer = client.audio.transcriptions.create(model=listening_model, file=recording, response_format=form)
    assert answer.startswith("WEBVTT\n\n1\n" if form == "vtt" else "1\n")
    assert re.search(rf"^{STAMP} --> {STAMP}$", answer, re.MULTILINE)


def test_words_have_their_times(client, listening_model, recording):
    answer = client.audio.transcriptions.create(
        model=listening_model, file=recording, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert answer.duration == pytest.approx(recorded_seconds(), abs=0.01)
    assert answer.segments is None
    assert answer.words
    times = [time for word in answer.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= answer.duration + 1


def test_pieces_have_their_times(client, listening_model, recording):
    answer = client.audio.transcriptions.create(model=listening_model, file=recording, response_format="verbose_json")
    assert answer.words is None
    assert [piece.id for piece in answer.segments] == list(range(len(answer.segments)))
    assert all(0 <= piece.start <= piece.end <= answer.duration + 1 for piece in answer.segments)


def test_what_is_said_is_heard_again(client, voice_model, listening_model):
    sound = client.audio.speech.create(model=voice_model, voice="alloy", input="four seven one one", response_format="wav")
    answer = client.audio.transcriptions.create(model=listening_model, file=("said.wav", sound.content))
    assert answer.text.strip()


def test_a_file_that_is_no_sound_names_its_field(client, listening_model):
    with pytest.raises(openai.BadRequestError) as failure:
        client.audio.transcriptions.create(model=listening_model, file=("words.wav", b"These are words, not sound."))
    assert failure.value.param == "file"


def test_a_model_that_speaks_does_not_listen(client, voice_model, recording):
    with pytest.raises(openai.NotFoundError) as failure:
        client.audio.transcriptions.create(model=voice_model, file=recording)
    assert failure.value.code == "model_not_found"
