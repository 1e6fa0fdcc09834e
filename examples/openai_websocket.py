"""OpenAI's SDK over a WebSocket (`pip install "openai[realtime]"`): the answer goes on after a cut."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="my-secret-key")


def resume(_: object) -> None:
    """The connection was lost: sends this on the next one, perhaps to another gateway."""
    rest = {"response_id": last.response_id, "starting_after": last.sequence_number}
    connection.send({"type": "response.resume", **rest})


with client.responses.connect(on_reconnecting=resume) as connection:
    connection.response.create(model="claude-sonnet-5-5", input="Name a river.")
    for last in connection:
        if last.type == "response.output_text.delta":
            print(last.delta, end="", flush=True)
        if last.type in ("response.completed", "response.incomplete", "response.failed", "error"):
            break
