"""An agent on LangGraph that can be killed at any time, and pays for no call twice.

    python langgraph_agent.py RUN "How deep is the Rhine?"

LangGraph's checkpoints keep the steps that have ended. Tailrace keeps the call that was running: started again with the
same RUN, the agent sends this call again, and Tailrace attaches it. docs/AGENTS.md explains it.

It needs `pip install langgraph langgraph-checkpoint-sqlite langchain-anthropic`, and a gateway at TAILRACE_URL
(default: http://127.0.0.1:8000).
"""

import os
import sys

import anthropic
import httpx
import httpx2
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import RetryPolicy

if len(sys.argv) != 3:
    raise SystemExit(__doc__)
RUN, TASK = sys.argv[1:]
TRIES_MAX = 30


@tool
def measure_depth(river: str) -> str:
    """Measures the depth of a river in metres."""
    print(f"\nmeasuring the depth of the {river}", file=sys.stderr)
    return "7"  # here a real agent does its work


model = ChatAnthropic(
    base_url=os.environ.get("TAILRACE_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("TAILRACE_KEY", "none"),
    # This line is all that Tailrace needs: equal requests are one turn, which is paid once.
    default_headers={"Idempotency-Key": "auto"},
    model="claude-sonnet-5-5",
    max_tokens=2000,
    # Another run asks anew, even with the same question.
    model_kwargs={"metadata": {"user_id": RUN}},
    streaming=True,
    max_retries=TRIES_MAX,
).bind_tools([measure_depth])


def call(state: MessagesState) -> dict:
    return {"messages": [model.invoke(state["messages"])]}


graph = StateGraph(MessagesState)
# If the connection is lost in the middle, the same request attaches to the same turn. A refusal is final.
# The SDK raises the errors of its HTTP library: httpx before anthropic 1, which pip may choose.
LOST = (anthropic.APIConnectionError, httpx.TransportError, httpx2.TransportError)
graph.add_node("model", call, retry_policy=RetryPolicy(max_attempts=TRIES_MAX, retry_on=LOST))
graph.add_node("tools", ToolNode([measure_depth]))
graph.add_edge(START, "model")
graph.add_conditional_edges("model", tools_condition)
graph.add_edge("tools", "model")

with SqliteSaver.from_conn_string("checkpoints.sqlite") as checkpoints:
    agent = graph.compile(checkpoints)
    thread = {"configurable": {"thread_id": RUN}}
    before = agent.get_state(thread)
    if before.next or not before.values:
        # None continues after the last checkpoint.
        start = None if before.values else {"messages": [("user", TASK)]}
        for chunk, _ in agent.stream(start, thread, stream_mode="messages", durability="sync"):
            print(chunk.text, end="", file=sys.stderr, flush=True)
    print(agent.get_state(thread).values["messages"][-1].text)
