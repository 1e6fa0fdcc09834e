"""The features of a gateway, in the order of their routes, and the settings of both."""

from tailrace.features.admin.gateway import FEATURE as ADMIN
from tailrace.features.admin_page.gateway import FEATURE as ADMIN_PAGE
from tailrace.features.api_reference.gateway import FEATURE as API_REFERENCE
from tailrace.features.auto_idempotency.gateway import FEATURE as AUTO_IDEMPOTENCY
from tailrace.features.batches.gateway import FEATURE as BATCHES
from tailrace.features.client_calls.gateway import FEATURE as CLIENT_CALLS
from tailrace.features.count_tokens.gateway import FEATURE as COUNT_TOKENS
from tailrace.features.departures.gateway import FEATURE as DEPARTURES
from tailrace.features.erasure.gateway import FEATURE as ERASURE
from tailrace.features.files.gateway import FEATURE as FILES
from tailrace.features.guides.gateway import FEATURE as GUIDES
from tailrace.features.jwt.gateway import FEATURE as JWT
from tailrace.features.limits.gateway import FEATURE as LIMITS
from tailrace.features.logins.gateway import FEATURE as LOGINS
from tailrace.features.models.gateway import FEATURE as MODELS
from tailrace.features.ops.gateway import FEATURE as OPS
from tailrace.features.page.gateway import FEATURE as PAGE
from tailrace.features.projects.gateway import FEATURE as PROJECTS
from tailrace.features.prompts.gateway import FEATURE as PROMPTS
from tailrace.features.queued_turns.gateway import FEATURE as QUEUED_TURNS
from tailrace.features.responses_socket.gateway import FEATURE as RESPONSES_SOCKET
from tailrace.features.sdk_retries.gateway import FEATURE as SDK_RETRIES
from tailrace.features.session_stream.gateway import FEATURE as SESSION_STREAM
from tailrace.features.steer.gateway import FEATURE as STEER
from tailrace.features.structured_output.gateway import FEATURE as STRUCTURED_OUTPUT
from tailrace.features.tickets.gateway import FEATURE as TICKETS
from tailrace.features.timeline.gateway import FEATURE as TIMELINE
from tailrace.features.turn_lists.gateway import FEATURE as TURN_LISTS
from tailrace.features.usage.gateway import FEATURE as USAGE
from tailrace.features.webhooks.gateway import FEATURE as WEBHOOKS
from tailrace.gateway import app
from tailrace.gateway.feature import Features
from tailrace.gateway.http.route import Route
from tailrace.gateway.settings import Settings as CoreSettings
from tailrace.gateway.streaming.dialect import Dialects
from tailrace.proto.runtime.settings import extend
from tailrace.protocols.absent_routes.gateway import FEATURE as ABSENT_ROUTES
from tailrace.protocols.ag_ui.gateway import FEATURE as AG_UI
from tailrace.protocols.ai_sdk.gateway import FEATURE as AI_SDK
from tailrace.protocols.anthropic.gateway import FEATURE as ANTHROPIC
from tailrace.protocols.openai.gateway import FEATURE as OPENAI
from tailrace.protocols.tutorials.gateway import FEATURE as TUTORIALS

FEATURES: Features = (
    ANTHROPIC,
    OPENAI,
    ABSENT_ROUTES,
    API_REFERENCE,
    TUTORIALS,
    AI_SDK,
    AG_UI,
    MODELS,
    TURN_LISTS,
    BATCHES,
    FILES,
    LIMITS,
    RESPONSES_SOCKET,
    SESSION_STREAM,
    CLIENT_CALLS,
    COUNT_TOKENS,
    PROMPTS,
    WEBHOOKS,
    QUEUED_TURNS,
    STEER,
    STRUCTURED_OUTPUT,
    AUTO_IDEMPOTENCY,
    SDK_RETRIES,
    TIMELINE,
    TICKETS,
    JWT,
    LOGINS,
    DEPARTURES,
    ERASURE,
    PROJECTS,
    USAGE,
    ADMIN,
    ADMIN_PAGE,
    OPS,
    GUIDES,
    PAGE,
)

Settings = extend(CoreSettings, [feature.settings for feature in FEATURES])
"""The settings of the core and of each feature."""

ROUTES: list[Route] = app.routes_of(FEATURES)
"""The routes of the core and of each feature."""

DIALECTS: Dialects = app.dialects_of(FEATURES)
"""The dialects of the core and of each feature."""
