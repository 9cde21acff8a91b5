"""`raygrad sweep` as a script: `python jobs/sweep.py digits --alpha 'loguniform(0.01,0.5)' --run-root /shared/runs`.

It takes the same words and gives the same exit codes; inside a Ray job it joins the job's Ray:
`ray job submit --working-dir . -- python jobs/sweep.py digits --samples 40 --run-root /shared/runs`.
"""

import sys

from raygrad import cli

if __name__ == "__main__":
    sys.exit(cli.run(["sweep", *sys.argv[1:]]))
