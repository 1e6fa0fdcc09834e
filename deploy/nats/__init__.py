"""The setup of nats-server for Tailrace: streams, permissions, and the copy of the streams to another server."""
