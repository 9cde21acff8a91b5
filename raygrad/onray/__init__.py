"""Everything that imports Ray: the host actors, the executor that feeds them, and starting or joining a Ray."""

import os

# Models and sums of up to a megabyte travel with the calls instead of through the object store, which costs more than
# they do. Ray reads this when it is imported.
os.environ.setdefault("RAY_max_direct_call_object_size", str(1 << 20))
# Ray prints this on the driver's stdout for each host that dies. A run counts and names its losses itself.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task")
