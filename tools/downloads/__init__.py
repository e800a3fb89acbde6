"""Getting datasets: downloads, archives, layouts, sources."""
