"""Commands that work on files and devices from outside: verify, benchmark, android, fuzz."""
