"""The backend `litellm`: models of other providers, through LiteLLM."""
