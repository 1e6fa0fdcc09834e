"""Webhooks: a durable consumer of its own receives each `end`; they are sent in order (ADR 18)."""
