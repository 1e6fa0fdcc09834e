"""Exit statuses of the processes and of the command `tailrace`."""

EXIT_ERROR = 1
# An argument or a setting is invalid: a supervisor that starts the process again gets the same.
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # as in shells: 128 + SIGINT
