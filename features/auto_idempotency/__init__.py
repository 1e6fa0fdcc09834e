"""`Idempotency-Key: auto`: a step of the submission derives the key of a turn from its request."""
