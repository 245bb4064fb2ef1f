"""What processes of tests/forks.py have imported when they start: what a rank of training imports, in its way."""

from jobs.ranks import ready_model

ready_model()

import onevision.training.loop  # noqa: E402, F401
