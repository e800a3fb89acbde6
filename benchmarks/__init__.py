"""Speed and memory of this project, as ratios against the plain formulation, measured in one process."""
