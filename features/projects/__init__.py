"""Projects: a row in the recorder's transaction for the project that a session names, and how a project is deleted."""
