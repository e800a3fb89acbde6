"""Making the runs of a plan: in this process, in several, on a cluster; and how far they are."""
