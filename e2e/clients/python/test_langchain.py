"""LangChain's standard integration tests, as published, with its OpenAI classes pointed at the gateway.

A test that the model, not the interface, decides is listed in EXPECTED with its reason; it is reported as an expected
failure, and as an error should it ever pass.
"""

import pytest
from conftest import setting
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests


class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "base_url": setting("CXMPUTE_BASE_URL"),
            "api_key": setting("CXMPUTE_API_KEY"),
            "model": setting("CXMPUTE_CHAT_MODEL"),
            "use_responses_api": False,
            "stream_usage": True,
            "temperature": 0,
            "max_retries": 0,
        }

    @property
    def structured_output_kwargs(self):
        return {"method": "json_schema"}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_model_override(self):
        return True

    @property
    def model_override_value(self):
        return setting("CXMPUTE_CHAT_MODEL")


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self):
        return {
            "base_url": setting("CXMPUTE_BASE_URL"),
            "api_key": setting("CXMPUTE_API_KEY"),
            "model": setting("CXMPUTE_EMBEDDINGS_MODEL"),
            # Otherwise the class sends numbers of OpenAI's own vocabulary instead of text.
            "check_embedding_ctx_length": False,
            "max_retries": 0,
        }
