"""`raygrad run` as a script: `python jobs/train.py digits --name a --resume --run-root /shared/runs`.

It takes the same words and gives the same exit codes; inside a Ray job it joins the job's Ray:
`ray job submit --working-dir . -- python jobs/train.py digits --run-root /shared/runs`.
"""

import sys

from raygrad import cli

if __name__ == "__main__":
    sys.exit(cli.run(["run", *sys.argv[1:]]))
