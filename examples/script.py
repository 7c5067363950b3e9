"""Without await: for a script or a notebook."""

from ollama_adapter import BlockingAdapter

with BlockingAdapter() as adapter:
    for event in adapter.generate_stream("tinydoc", "What does sorted do?"):
        print(event.token, end="", flush=True)
    print()
    chat = adapter.chat("tinydoc", [{"role": "user", "content": "What does abs do?"}])
    print(chat.text)
    print(chat.statistics.finish, chat.statistics.tokens)
