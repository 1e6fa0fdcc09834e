-- What Anthropic's protocol says of a message besides its content, for who asks for the whole of it.

ALTER TABLE turns ADD COLUMN stop_sequence TEXT; -- which of the caller's own sequences ended it
ALTER TABLE turns ADD COLUMN envelope TEXT NOT NULL DEFAULT '{}'; -- JSON: container, context_management, further counts
