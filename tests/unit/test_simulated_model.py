"""The simulated Claude's list of models."""

import pytest
from anthropic.types import ModelInfo

from tailrace.deploy.simulated_claude.model import MODELS, Model


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_a_model_has_every_field_that_anthropics_sdk_requires(model: Model) -> None:
    """SDKs with strict types, such as the one for Java, raise an error if a field is missing."""
    ModelInfo.model_validate(model.card())
