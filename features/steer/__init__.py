"""Steering: a message is put into an answer that runs. Its turn, the successor, follows the steered turn."""
