"""The backend `bedrock`: Claude in Amazon Bedrock."""
