"""What make and the shell call: notebooks, trainings and clusters."""
