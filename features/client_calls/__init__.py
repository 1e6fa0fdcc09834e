"""Calls of client tools that wait for a decision: a decided turn goes on once, also days later, after any restart."""
