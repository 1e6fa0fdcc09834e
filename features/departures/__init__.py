"""`on_disconnect`: cancels a turn if its policy says so and no reader connects in time."""
