"""The lists of models (`/v1/models`) in the formats of OpenAI's and Anthropic's SDKs, with limits and prices."""
