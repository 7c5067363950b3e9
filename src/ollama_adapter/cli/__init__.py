"""The command line: one file per group of commands. Nothing below this package prints or exits."""
