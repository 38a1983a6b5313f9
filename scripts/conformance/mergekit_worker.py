"""Merges by mergekit, many in one process; started by the Python of an environment that has it.

    ENVIRONMENT/bin/python scripts/conformance/mergekit_worker.py < MERGES > OUTCOMES

Every line of the input is a JSON object: ``config`` (a merge configuration), ``output`` (a
directory), ``seed`` (of random numbers). Every line of the output is one too: ``error`` is null, or
what the merge ended with.
"""

import json
import logging
import sys


def main() -> None:
    """Run the merges of the input, one after the other."""
    # Only there where this is started.
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
        except Exception as raised:  # any: it is the answer
            error = f"{type(raised).__name__}: {raised}"
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
