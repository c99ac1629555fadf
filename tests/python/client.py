"""The official client against a node: client.py BASE_URL MODEL. Prints what it got as JSON."""

import json
import sys

import openai


def main() -> None:
    base_url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    request = dict(model=model, messages=messages, max_tokens=24, temperature=0, seed=7)

    whole = client.chat.completions.create(**request)
    assert whole.object == "chat.completion", whole
    assert whole.choices[0].message.role == "assistant", whole
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    pieces, finish, usage = [], None, None
    stream = client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk", chunk
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert len(pieces) > 2, "the answer came in one piece"
    assert finish == whole.choices[0].finish_reason, (finish, whole)
    assert usage == whole.usage, (usage, whole.usage)

    text = client.completions.create(model=model, prompt="Once", max_tokens=4, temperature=0)
    assert text.object == "text_completion", text

    models = [entry.id for entry in client.models.list()]
    assert model in models, models

    try:
        client.chat.completions.create(**{**request, "model": "no-such-model"})
        raise AssertionError("an unknown model was accepted")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error

    print(json.dumps({"whole": whole.choices[0].message.content, "streamed": "".join(pieces)}))


main()
