"""How the processes are started, kept alive and stopped; nothing imports this package."""
