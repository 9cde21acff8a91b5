"""What tables and JSON files tell of runs and sweeps: numbers, curves, pictures and pages."""
