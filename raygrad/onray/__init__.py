"""Everything that imports Ray: the host actors, the executor that feeds them, and starting or joining a Ray."""
