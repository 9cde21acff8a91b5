"""Where gangs run. Each executor runs the gangs of a phase and knows no rounds."""
