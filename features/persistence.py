"""The features of a persistence process, and the settings of both."""

from tailrace.features.admin.persistence import FEATURE as ADMIN
from tailrace.features.batches.persistence import FEATURE as BATCHES
from tailrace.features.client_calls.persistence import FEATURE as CLIENT_CALLS
from tailrace.features.erasure.persistence import FEATURE as ERASURE
from tailrace.features.files.persistence import FEATURE as FILES
from tailrace.features.limits.persistence import FEATURE as LIMITS
from tailrace.features.postgresql.persistence import FEATURE as POSTGRESQL
from tailrace.features.projects.persistence import FEATURE as PROJECTS
from tailrace.features.retention.persistence import FEATURE as RETENTION
from tailrace.features.search.persistence import FEATURE as SEARCH
from tailrace.features.unstored.persistence import FEATURE as UNSTORED
from tailrace.features.usage.persistence import FEATURE as USAGE
from tailrace.features.webhooks.persistence import FEATURE as WEBHOOKS
from tailrace.persistence.feature import Features, databases_of, tables_of
from tailrace.persistence.settings import Settings as CoreSettings
from tailrace.proto.runtime.settings import extend

FEATURES: Features = (
    UNSTORED,
    WEBHOOKS,
    SEARCH,
    BATCHES,
    CLIENT_CALLS,
    FILES,
    LIMITS,
    PROJECTS,
    USAGE,
    ADMIN,
    ERASURE,
    RETENTION,
    POSTGRESQL,
)

Settings = extend(CoreSettings, [feature.settings for feature in FEATURES])
"""The settings of the core and of each feature."""

TABLES = tables_of(FEATURES)
"""The part of each feature in the database."""

DATABASES = databases_of(FEATURES)
"""The databases that persistence and the commands can open."""
