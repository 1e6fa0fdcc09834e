#!/bin/sh
# Makes .venv with the newest Python that is found. Called by the Makefile, in the root of the checkout.
# The pip of Python 3.11 compares each file of an index with each tag of the machine, for which it needs more than twice
# the CPU time of a newer one.
test -d tailrace/proto || {
	echo "tailrace/proto is no link to a folder: clone again on Linux or macOS, with git config core.symlinks true." >&2
	exit 1
}
for python in python3 python3.14 python3.13 python3.12 python3.11; do
	$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$python && break
done
test -n "$found" || {
	echo "Tailrace needs Python 3.11 or newer: install one and try again." >&2
	exit 1
}
$found -m venv .venv || {
	rm -rf .venv
	echo "$found cannot make a venv: install its venv package (Debian: apt install python3-venv)." >&2
	exit 1
}
