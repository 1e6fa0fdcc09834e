-- The fields of Anthropic's message object besides its content.

ALTER TABLE turns ADD COLUMN stop_sequence TEXT; -- which of the request's stop sequences ended it
ALTER TABLE turns ADD COLUMN envelope TEXT NOT NULL DEFAULT '{}'; -- JSON: container, context_management, further counts
