"""The command line and its faces: commands, the shell, the demos. Only these print or exit."""
