"""Uploaded files: a step of the submission replaces the ids of files in messages by the contents of the files."""
