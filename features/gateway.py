"""The features of a gateway, in the order of their routes, and its settings with theirs."""

from tailrace.features.ops.gateway import FEATURE as OPS
from tailrace.features.pace.gateway import FEATURE as PACE
from tailrace.features.prompts.gateway import FEATURE as PROMPTS
from tailrace.features.tickets.gateway import FEATURE as TICKETS
from tailrace.gateway import app
from tailrace.gateway.feature import Features
from tailrace.gateway.http.route import Route
from tailrace.gateway.settings import Settings as CoreSettings
from tailrace.proto.runtime.settings import extend

FEATURES: Features = (OPS, TICKETS, PACE, PROMPTS)

Settings = extend(CoreSettings, [feature.settings for feature in FEATURES])
"""The settings of the core and of each feature."""

ROUTES: list[Route] = app.routes_of(FEATURES)
"""The routes of the core and of each feature."""
