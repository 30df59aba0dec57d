"""What all client tests share. See ../README.md for the variables."""

import os

import openai
import pytest


def setting(name):
    value = os.environ.get(name)
    if not value:
        pytest.fail(f"{name} is not set; e2e/clients/README.md lists what these tests need", pytrace=False)
    return value


def client_with(key, **options):
    return openai.OpenAI(base_url=setting("CXMPUTE_BASE_URL"), api_key=key, timeout=60, **{"max_retries": 0, **options})


@pytest.fixture(scope="session")
def client():
    with client_with(setting("CXMPUTE_API_KEY")) as client:
        yield client


@pytest.fixture(scope="session")
def chat_model():
    return setting("CXMPUTE_CHAT_MODEL")


@pytest.fixture(scope="session")
def embeddings_model():
    name = os.environ.get("CXMPUTE_EMBEDDINGS_MODEL")
    if not name:
        pytest.skip("CXMPUTE_EMBEDDINGS_MODEL is empty: no embeddings model is served here")
    return name


def pytest_collection_modifyitems(items):
    """Marks what a module lists as beyond the model, so that the reasons stand in one table."""
    for item in items:
        reason = getattr(item.module, "BEYOND_THE_MODEL", {}).get(item.originalname)
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
