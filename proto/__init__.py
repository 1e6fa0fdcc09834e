"""The protocol that all processes share: entries, fold, records, subjects, errors, and the NATS client."""
