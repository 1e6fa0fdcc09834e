"""Repetitions by SDKs without a key: a step of the submission finds the turn of the first request."""
