"""Hardware: what the data sheets say of common devices, what was measured on others, and how long requests take."""
