"""The backends of features, and a generator's settings including theirs. Imports no library of a backend."""

from tailrace.features.bedrock.generator import BACKEND as BEDROCK
from tailrace.features.claude_code.generator import BACKEND as CLAUDE_CODE
from tailrace.features.litellm.generator import BACKEND as LITELLM
from tailrace.features.vertex.generator import BACKEND as VERTEX
from tailrace.generators.backends.registry import Kinds
from tailrace.generators.settings import Settings as CoreSettings
from tailrace.proto.runtime.settings import extend

BACKENDS: Kinds = (BEDROCK, CLAUDE_CODE, LITELLM, VERTEX)

Settings = extend(CoreSettings, [kind.settings for kind in BACKENDS])
"""The settings of the core and of each backend."""
