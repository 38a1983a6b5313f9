"""Runs merges with mergekit, many in one process; started with the Python of its environment.

    ENVIRONMENT/bin/python scripts/conformance/mergekit_worker.py < MERGES > OUTCOMES

Each input line is a JSON object: ``config`` (a merge configuration), ``output`` (a directory),
``seed`` (of random numbers). Each output line is a JSON object: ``error`` is null or the error of
the merge.
"""

import json
import logging
import sys


def main() -> None:
    """Run the merges of the input one after another."""
    # Installed only in mergekit's environment.
    from mergekit.config import MergeConfiguration  # type: ignore[import-not-found,unused-ignore]
    from mergekit.merge import run_merge  # type: ignore[import-not-found,unused-ignore]
    from mergekit.options import MergeOptions  # type: ignore[import-not-found,unused-ignore]

    logging.disable(logging.WARNING)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        merge = json.loads(line)
        error = None
        try:
            config = MergeConfiguration.model_validate(merge["config"])
            options = MergeOptions(
                random_seed=merge["seed"], quiet=True, write_model_card=False, copy_tokenizer=False
            )
            run_merge(config, merge["output"], options)
        except Exception as raised:  # any error: it is reported to the caller
            error = f"{type(raised).__name__}: {raised}"
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
