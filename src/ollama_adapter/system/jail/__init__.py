"""What stands between a spawned daemon and the rest of the machine."""
