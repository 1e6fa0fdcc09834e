"""The routes and dialects that streaming tutorials teach (`/chat/stream`, `/chat`, `/ai/chat`, `/api/start-job`)."""
