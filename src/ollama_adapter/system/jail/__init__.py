"""What stands between a spawned daemon and the rest of the machine."""

JAIL_UID = 61_999  # root's daemon becomes this: of a range that no account is given
