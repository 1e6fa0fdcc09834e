"""Ids, names and texts that the examples of the OpenAPI document share."""

TURN, PARENT = "0197fd3a-1b2c-7d3e-9f40-5162738495a6", "0197fd39-0a1b-7c2d-8e3f-405162738495"
SESSION, BATCH = "support-4711", "0197fd3b-5c6d-7e8f-90a1-b2c3d4e5f607"
FILE = "file-0197fd3c-7d8e-7f90-a1b2-c3d4e5f60718"
MODEL, UNIX_S = "claude-sonnet-5-5", 1795346400
QUESTION, ANSWER = "Why is the sky blue?", "Air scatters blue light more than red light."
