"""Replays at a pace (`?pace=`): a wrapper of the routes that stream a turn writes stored entries with their pauses."""
