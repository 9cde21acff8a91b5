"""The files of a run: its folder, tables, checkpoints and clients' states, on a disk or in an object store."""
