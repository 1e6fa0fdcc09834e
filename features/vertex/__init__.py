"""The backend `vertex`: Claude on Google's Vertex AI."""
