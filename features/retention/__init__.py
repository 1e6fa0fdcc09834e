"""Deletion of old sessions: a part beside the recorder deletes sessions of which the log has no turn any more."""
