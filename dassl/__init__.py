"""The engine: configs, data loading, the epoch loop, evaluation. It keeps Dassl's public names and knows no method."""
