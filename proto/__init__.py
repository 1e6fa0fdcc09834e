"""What two processes must agree on: names, shapes, the fold, the errors, and the door to the log."""
