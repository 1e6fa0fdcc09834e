// Prints at SIGUSR2 what keeps this process alive. setup.sh sends it at the time limit.

process.on("SIGUSR2", () => process.stderr.write(`Waits with: ${process.getActiveResourcesInfo().join(", ")}\n`));
