"""The examples of the OpenAPI document.

EXAMPLES has the example of a property under its name, or under `STRUCT.FIELD` where a name has several meanings.
Without a row there, the schema gives the example, such as the first value of an enumeration. The example of a JSON
response consists of the examples of its properties; a response without a Struct has its example in the row of its
route. BODIES has whole requests, and WHOLE has whole Structs, where the examples of single fields would contradict each
other.
"""

import hashlib
from typing import Any

from tailrace.features.batches.native_routes import links_of
from tailrace.proto.ids import TurnId
from tailrace.protocols.common.examples import ANSWER, BATCH, FILE, MODEL, PARENT, QUESTION, SESSION, TURN, UNIX_S

Json = dict[str, Any]

KEY_ID = "key_a38f6be3543f0e21"
KEY, TIME = "web", "2026-11-22T11:20:00Z"
MESSAGES = [{"role": "user", "content": QUESTION}]
TURN_PATH = f"/v1/turns/{TURN}"
SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
TOOL_CALL = "toolu_01"
TICKET = "trt_AV8mZ3Qk…"
IMAGE = "https://example.com/sky.png"

EXAMPLES: Json = {
    "citation": {"type": "web_search_result_location", "url": "https://a.example"}, "partial_json": '{"at":',
    "SessionEvent.running": [TURN], "block": {"type": "container_upload", "file_id": "file_1"}, "cause": None,
    "delta": {"type": "new_delta"}, "event": {"type": "new_event"}, "ToolUseEvent.id": "toolu_01",
    "answered_by": None, "text_chars": len(ANSWER),
    "text_sha256": hashlib.sha256(ANSWER.encode()).hexdigest(), "WaitingEvent.reason": "no such host",
    "KeyRecord.id": KEY_ID, "CreatedKey.id": KEY_ID, "CreatedKey.key": "tr_Rw8H…", "KeyRecord.created_at": UNIX_S,
    "CreatedKey.created_at": UNIX_S, "expires_at": None, "revoked_at": None, "replaced_by": None, "whole_since": None,
    "KeyRecord.replaces": None, "CreatedKey.replaces": None, "KeyRecord.name": "web shop",
    "CreatedKey.name": "web shop", "NewKeyBody.name": "web shop", "KeyRecord.limits": None, "CreatedKey.limits": None,
    "expires_in_s": 7776000, "scopes": ["read", "write"], "NewKeyBody.limits": {"requests": 600},
    "LimitsBody.limits": {"requests": 600, "usd_month": 500}, "LimitsBody.expected": {"requests": 600},
    "TenantBody.limits": {"requests": 600}, "users": "private",
    "UsageRecord.keys": ["web"], "SessionRecord.owner": None, "LimitRest.of": "key", "LimitRest.name": "usd_month",
    "LimitRest.limit": 500.0, "LimitRest.left": 481.25, "LimitRest.renews_at": TIME,
    "BudgetUse.name": "usd_month", "BudgetUse.limit": 500.0, "BudgetUse.spent": 18.75, "BudgetUse.left": 481.25,
    "BudgetUse.renews_at": TIME,
    "grace_s": 3600, "Limits.requests": 600,
    "Limits.tokens": 100000, "burst": 10, "running": 5,
    "streams": 100, "usd_day": 50.0, "usd_month": 500.0, "bytes_day": 1000000000,
    "accepted_at": TIME, "access_token": "tra_WyJrZXlf…",
    "active_claude_sessions": 2, "active_sessions": 2, "active_turns": 2,
    "aliases": ["claude-sonnet-5-5-latest"], "annotations": [], "api_version": "2023-06-01",
    "arguments": '{"city": "Oslo"}', "asked_at": TIME, "at": TIME, "attempt": 1, "audio": None,
    "AttemptStep.cause": "backend_failed", "AttemptStep.events": 12, "AttemptStep.reason": None,
    "EndStep.by": None, "EndStep.cause": None, "EndStep.code": None, "EndStep.message": None, "is_handed_over": False,
    "Prefix.system": "9f2c41ab08de77f1", "Prefix.tools": "4f53cda18c2baa0c", "Prefix.messages": "b3a8e0e1f9ab1bfe",
    "Prefix.thinking": "", "Prefix.block": 0, "Prefix.bytes": 4210, "Prefix.unchanged": 3980, "Prefix.changed": [],
    "Timeline.prompt": "",
    "max_cost_usd": None, "Timeline.attempts": [], "WaitStep.reason": "no such host",
    "backend": "anthropic", "background": True, "batch": BATCH,
    "begin_by": UNIX_S, "betas": ["context-1m-2025-08-07"], "blobs": 0, "by": "day", "cache": "5m",
    "cache_control": {"type": "ephemeral"}, "cache_creation_input_tokens": 0, "cache_read": 0.1,
    "cache_read_input_tokens": 0, "cache_write_1h": 4.0, "cache_write_5m": 2.5, "call_id": "call_1",
    "cancelled": [TURN], "capabilities": {"image_input": {"supported": True}}, "claude_sessions": [SESSION],
    "claude_version": "2.1.0", "clear_at": "never",
    "closed_at": TIME, "code": "request_invalid", "connected": {"nats": True},
    "content": QUESTION, "AssistantMessage.content": ANSWER,
    "context": "auto", "context_tokens": 1000000,
    "conversation": SESSION, "cost_usd": 0.0021, "created": UNIX_S, "created_at": TIME, "critical": 10.0,
    "counted_since": float(UNIX_S),
    "cursor": 42, "custom_id": "row-1", "delivered": "A reader was sent the whole turn.",
    "description": "What the team asks about support", "detail": "auto", "dialect": "tailrace",
    "display_name": "Claude Sonnet 5.5", "done": 9, "Supports.effort": ["low", "medium", "high"],
    "effort": "medium", "encrypted_content": "thinking:EqQB…", "ended_at": TIME,
    "endpoints": {"/v1/turns": ["GET", "POST"]},
    "entries": 14, "Failure.code": "backend_failed", "errorText": "The tool did not answer.",
    "MadeTicket.events": f"{TURN_PATH}/events?ticket={TICKET}", "every_s": 15.0, "expires_in": 600, "failed": 1,
    "file_data": "data:application/pdf;base64,JVBERi0…", "file_id": FILE, "file_url": "https://example.com/a.pdf",
    "filename": "report.pdf", "files": 0, "first_id": MODEL, "first_token_at": TIME,
    "from": "2026-11-01", "to": "2026-11-30", "function_call": "auto", "gateways": 2, "generator": "generator-1",
    "health": "/health", "id": SESSION, "ModelCard.id": MODEL, "ModelSheet.id": MODEL,
    "threadId": SESSION, "runId": "run-1", "protocolVersion": "1.0", "parentRunId": "run-0",
    "RunAgentInput.forwardedProps": {"model": MODEL}, "RunAgentInput.data": {},
    "AgentMessage.error": "The tool did not answer.",
    "encryptedValue": "EqQB…", "AgentContext.value": "The user looks at the cart.", "interruptId": TOOL_CALL,
    "ResumeEntry.payload": {"result": "12 °C"}, "className": "Tailrace", "RunAgentInput.state": {},
    "RunAgentInput.tools": [], "AgentMessage.id": "msg-1", "AgentCall.id": TOOL_CALL, "ForwardedProps.tools": [],
    "approve": ["get_weather"], "RunAgentInput.context": [],
    "RuntimeInfo.agents": {"default": {"name": "default", "className": "Tailrace", "description": "The default model"}},
    "ToolCall.id": "call_1", "Project.id": "support", "NewProjectBody.id": "support", "DeletedObject.id": TURN,
    "UIMessageParam.id": "msg-1", "InputItem.id": f"msg_{TURN}_0",
    "ErasureReport.id": "user-7", "idempotency_key": "order-7", "image_url": IMAGE,
    "include": [], "index": 0, "input": QUESTION, "UIPart.input": {"city": "Oslo"}, "call": TOOL_CALL,
    "ClientCall.input": {"city": "Oslo"}, "DecidedCall.next": TURN,
    "result": "12 °C", "reason": "too expensive", "Steer.at": "now", "steered": TURN, "successor": TURN,
    "waits_because": "The log is nearly full.", "since": TIME, "decided_at": TIME, "decided_by": KEY,
    "undecided_calls": [],
    "UsdPrices.input": 2.0,
    "LongPromptUsdPrices.input": 6.0, "input_file_id": FILE, "input_tokens": 12,
    "instructions": "Answer in one sentence.", "job_id": TURN,
    "key": KEY, "last_event_at": TIME, "last_id": MODEL, "last_used": TIME,
    "length": 3, "life_s": 3600,
    "line": "sonnet", "links": {"self": TURN_PATH, "events": f"{TURN_PATH}/events", "cancel": f"{TURN_PATH}/cancel"},
    "AcceptedBatch.links": links_of(TurnId(BATCH)), "BatchRecord.links": links_of(TurnId(BATCH)),
    "BudgetWebhook.links": {"limits": "/v1/limits"}, "WebhookPayload.links": {"self": TURN_PATH}, "log_entries": 28,
    "max_completion_tokens": 1024, "max_cost": 0.05, "max_input_tokens": 1000000, "max_output_tokens": 1024,
    "max_tokens": 1024, "mediaType": "image/png", "message": QUESTION, "Problem.message": "The body is not valid JSON.",
    "Failure.message": "The model's API did not answer.", "messageId": "msg-1", "message_batch": f"msgbatch_{BATCH}",
    "message_count": 24, "metadata": {"team": "search"}, "mode": "auto", "model": MODEL, "models_in_use": [MODEL],
    "name": "get_weather", "Line.name": "p50", "Directory.name": "Tailrace", "Prompt.name": "summary",
    "PromptUse.name": "summary", "Project.name": "Support", "NewProjectBody.name": "Support", "next": "MTc5NTM0NjQwMA",
    "of": 10, "on_disconnect": "grace:30", "opened_at": TIME,
    "options": {"thinking": {"type": "adaptive"}}, "outcome": "completed",
    "output_config": {"effort": "medium"},
    "output": "12 °C", "UsdPrices.output": 10.0, "LongPromptUsdPrices.output": 22.5, "output_tokens": 10,
    "over_tokens": 200000, "owned_by": "anthropic", "page": 1, "owner": "user-7", "parallel": 8, "param": "messages",
    "details": {"error_code": "thread_unsupported_request"},
    "parameters": SCHEMA, "params": {"message": QUESTION},
    "MessageBatchInput.params": {"model": MODEL, "max_tokens": 1024, "messages": MESSAGES}, "parent": PARENT,
    "parsed": {"colour": "blue"}, "parsed_arguments": {"city": "Oslo"}, "path": "support", "pauses": [],
    "per_page": 50, "previous_response_id": f"resp_{PARENT}", "problems": [], "project": "support",
    "project_id": "support", "projects": 0, "prompt": QUESTION,
    "Params.prompt": {"name": "summary", "variables": {"text": QUESTION}},
    "NewTurn.prompt": {"name": "summary", "variables": {"text": QUESTION}}, "prompt_cache_breakpoint": True,
    "providerMetadata": {"anthropic": {}}, "queue_position": 0, "readers": [], "reasoning_content": "Light scatters.",
    "refusal": "I cannot help with that.", "remembered_since": TIME, "replaces": ["claude-3-5-sonnet-20241022"],
    "retires": "2027-09-29", "retires_at": "2027-09-29T00:00:00Z", "retry_after_s": 5.0, "runbook": "docs/RUNBOOK.md",
    "safety_identifier": "user-7", "schema": SCHEMA, "seconds": 1.2, "section": "slow-first-token", "sent": 14,
    "session": SESSION, "session_id": SESSION, "SessionList.sessions": [], "sessions": 3, "skipped_entries": 0,
    "search_context_size": "medium", "city": "Oslo", "country": "NO", "region": "Oslo", "timezone": "Europe/Oslo",
    "server_tools": ["web_search", "code_execution"], "container_id": f"cntr_{PARENT}",
    "UIPart.data": "R0lGODlhAQABAAAAACwAAAAAAQABAAA=",
    "state": "output-available", "stop": ["END"], "stop_reason": "end_turn",
    "StartedJob.stream": f"/api/stream/{TURN}", "summary": "auto", "InputItem.summary": [],
    "system": "Answer in one sentence.", "system_prompt": "Answer in one sentence.", "temperature": 0.2,
    "tenant": "acme", "text": ANSWER, "ResponseRequest.text": {"format": {"type": "text"}},
    "thinking": {"type": "adaptive"}, "Supports.thinking": ["adaptive", "between_tools"],
    "ticket": TICKET, "times": [float(UNIX_S)], "timestamp": TIME, "title": "The colour of the sky",
    "preview": QUESTION,
    "toolCallId": TOOL_CALL, "toolName": "get_weather", "tool_call_id": "call_1",
    "tools": [{"name": "get_weather", "input_schema": SCHEMA}],
    "ChatCompletionRequest.tools": [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}],
    "ResponseRequest.tools": [{"type": "function", "name": "get_weather", "parameters": SCHEMA}],
    "Supports.tools": True,
    "Supports.forced_tools": False, "Supports.sampling": False, "Supports.prefill": False,
    "UsageOptions.include": True, "top_k": 40, "top_p": 0.9, "enabled": True, "exclude": True,
    "total_cost": 0.0021, "total_items": 3, "total_messages": 24,
    "total_pages": 1,
    "total_tokens": 264, "turn": TURN, "turns": 12, "Branch.turns": [TURN], "SessionTurns.turns": [], "type": "text",
    "WebhookPayload.type": "turn.completed", "BudgetWebhook.type": "budget.reached",
    "Problem.type": "invalid_request_error", "InputItem.type": "message",
    "unit": "s", "until": UNIX_S + 3600, "updated_at": TIME,
    "url": IMAGE, "usd_per_million_tokens_of_a_long_prompt": None, "user": "user-7", "values": [0.4],
    "variables": {"text": QUESTION}, "Prompt.variables": ["text"], "verbosity": "medium", "version": "1.4.0",
    "warning": 2.0, "webhook": "https://example.com/hooks/tailrace", "window_s": 60.0, "written": 42,
    "writes": [[9, 820, 12]],
    "percent": 80, "limit_usd": 50.0, "spent_usd": 40.2, "renews_at": TIME, "month_usd": 1.25,
    "ListedKey.id": KEY_ID, "ListedKey.created_at": UNIX_S, "ListedKey.replaces": None, "ListedKey.name": "web shop",
    "ListedKey.limits": {"requests": 600}, "ListedTenant.limits": {"requests": 600},
    "context_management": [], "functions": [], "image": {}, "logit_bias": {}, "logprobs": False,
    "max_tool_calls": 4, "modalities": ["text"], "moderation": None, "n": 1, "presence_penalty": 0,
    "frequency_penalty": 0, "prediction": None, "prompt_cache_key": "support", "prompt_cache_options": {},
    "prompt_cache_retention": "24h", "access_programs": {}, "seed": 7, "service_tier": "auto", "store": True,
    "background_options": {"completion_window": "soonest"}, "client_metadata": {"session_id": "rivers"},
    "top_logprobs": 0, "truncation": "disabled", "web_search_options": None, "output_expires_after": None,
    "ResponseRequest.prompt": None, "ResponseRequest.stream_options": {"include_obfuscation": False},
    "ModelSheet.lifecycle": "active", "ChatPart.image_url": {"url": IMAGE}, "deprecated_at": None,
}  # fmt: skip

CHAT = {"model": MODEL, "messages": MESSAGES, "stream": True}
BATCH_OPTIONS: Json = {"parallel": 8, "metadata": {"team": "search"}}
BODIES: dict[str, Json] = {
    "AIChatRequest": {"messages": MESSAGES},
    "ChatCompletionRequest": CHAT,
    "ChatRequest": {"message": QUESTION},
    "ChatStreamRequest": {"message": QUESTION},
    "CountTokensRequest": {"model": MODEL, "messages": MESSAGES},
    "MessagesRequest": {"model": MODEL, "max_tokens": 1024, "messages": MESSAGES, "stream": True},
    "NewBatch": {"requests": [{"custom_id": "row-1", "params": {"message": QUESTION}}], **BATCH_OPTIONS},
    "NewFileBatch": {"input_file_id": FILE, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "NewMessageBatch": {
        "requests": [{"custom_id": "row-1", "params": {"model": MODEL, "max_tokens": 1024, "messages": MESSAGES}}]
    },
    "LimitsBody": {"limits": {"requests": 600, "usd_month": 500}},
    "TenantSettingsBody": {"users": "private", "expected": "shared"},
    "NewKeyBody": {"tenant": "acme", "name": "web shop", "scopes": ["read", "write"], "expires_in_s": 7776000},
    "RotateBody": {"grace_s": 3600},
    "NewProjectBody": {"name": "Support", "id": "support"},
    "DecisionBody": {"result": "12 °C"},
    "NewSessionBody": {"id": SESSION, "title": "The colour of the sky"},
    "NewTicket": {"is_shared": True, "life_s": 3600},
    "NewTurn": {"message": QUESTION, "session": SESSION, "create_session": True, "max_cost": 0.05},
    "ChangeBody": {"title": "The colour of the sky"},
    "ResponseRequest": {"model": MODEL, "input": QUESTION, "stream": True},
    "RunAgentInput": {
        "threadId": SESSION,
        "runId": "run-1",
        "messages": [{"id": "msg-1", "role": "user", "content": QUESTION}],
        "tools": [],
        "context": [],
    },
    "StartJobRequest": {"prompt": QUESTION},
    "Steer": {"message": "Shorter, please."},
    "StopBody": {"runId": "run-1"},
    "UIChatRequest": {
        "id": SESSION,
        "messages": [{"id": "msg-1", "role": "user", "parts": [{"type": "text", "text": QUESTION}]}],
    },
}

# Responses that are not JSON, by media type.
STREAMS = {"application/x-ndjson": f'{{"custom_id":"row-1","turn":"{TURN}"}}\n', "text/plain": ANSWER}
# The examples of whole Structs, by name.
WHOLE: dict[str, Json] = {
    "WaitingCalls": {
        "session": SESSION, "turn": TURN, "since": TIME, "calls": [
            {
                "call": "toolu_01", "name": "get_weather", "input": {"city": "Oslo"},
                "decision": None, "decided_at": None, "decided_by": None,
            }
        ],
        "next": None, "waits_because": None,
    },
    "TurnRecord": {
        "turn": TURN, "session": SESSION, "parent": PARENT, "model": MODEL, "outcome": "completed", "input": MESSAGES,
        "content": [{"type": "text", "text": ANSWER}], "text": ANSWER, "stop_reason": "end_turn", "stop_sequence": None,
        "envelope": {}, "schema_valid": None, "error": None,
        "usage": {
            "input_tokens": 12, "output_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0
        },
        "usage_is_estimated": False, "cost_usd": 0.000124, "answered_by": None, "by_model": None, "attempts": 1,
        "metadata": {"team": "search"},
        "project": "support", "user": "user-7", "owner": None, "asked_at": "2026-11-22T11:20:00Z",
        "first_token_at": "2026-11-22T11:20:00.6Z", "ended_at": "2026-11-22T11:20:02.4Z", "cursor": 42,
        "first_token_s": 0.6, "duration_s": 2.4, "unchanged_prompt_tokens": None, "prefixes": [],
    },
    "AuditEntry": {
        "at": TIME, "action": "key.create", "by": "key_5d0c1e9f7a3b2846", "address": "203.0.113.7", "tenant": "acme",
        "target": KEY_ID, "before": None,
        "after": {
            "id": KEY_ID, "tenant": "acme", "scopes": ["read", "write"], "created_at": UNIX_S, "name": "web shop"
        },
        "error": None,
    },
}  # fmt: skip
IN_PATH: dict[str, tuple[str, str]] = {
    "turn": ("The id of the turn.", TURN),
    "session": ("The name of the session.", SESSION),
    "project": ("The id of the project.", "support"),
    "batch": ("The id of the batch.", BATCH),
    "file_batch": ("The id of the batch, as `POST /v1/batches` returns it.", f"batch_{BATCH}"),
    "call": ("The id of the tool call, as `GET /v1/sessions/{session}/calls` returns it.", TOOL_CALL),
    "message_batch": ("The id of the batch, as `POST /v1/messages/batches` returns it.", f"msgbatch_{BATCH}"),
    "sha256": (
        "The SHA-256 of the string, in hexadecimal.",
        "9f86d081884c7d659a2feaa0c55ad015" + "a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ),
    "file_id": ("The id of the file.", FILE),
    "response_id": ("The id of the response.", f"resp_{TURN}"),
    "job_id": ("The id of the job.", TURN),
    "chat": ("The id of the chat, which is its session.", SESSION),
    "agent": ("The name of the agent: `default`, or the id of a model.", "default"),
    "thread": ("The id of the thread, which is its session.", SESSION),
    "model": ("The id of the model, or an alias.", MODEL),
    "name": ("The name of the template.", "summary"),
    "key_id": ("The id of the key, as the list shows it.", "key_a38f6be3543f0e21"),
    "tenant": ("The name of the tenant.", "acme"),
    "file": ("The name of the file.", "page.js"),
    "guide": ("The name of the guide.", "API"),
}
