"""Where scoring runs: in this process, or on the actors of a Ray cluster; one protocol, one memo."""
