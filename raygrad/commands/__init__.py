"""The commands of the command line, one file per group. What is slow to import is imported when a command needs it."""
