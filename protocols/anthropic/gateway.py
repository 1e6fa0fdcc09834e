"""Anthropic's Messages as a feature of the gateway."""

from tailrace.gateway.feature import Feature, Parts
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.anthropic.routes import ROUTES
from tailrace.protocols.anthropic.stream import ANTHROPIC

FEATURE = Feature(
    NoSettings,
    lambda _, __: Parts(),
    routes=ROUTES,
    dialects=(ANTHROPIC,),
)
