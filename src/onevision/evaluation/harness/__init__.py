"""lmms-eval with our models: checkpoints as they are, and exported folders.

    plugin.py       what lmms-eval finds by the entry point group `lmms_eval.models`
    checkpoint.py   model `onevision`: a checkpoint of a run, without an export
    exported.py     model `onevision_exported`: an exported folder through lmms-eval's own class
    keeping.py      what both share: answers are kept, questions shared among ranks, failures counted
    responses.py, answering.py       the same without lmms-eval
    generation.py   how a task wants its questions answered
    library.py      lmms-eval, without what it changes in the whole process
    loading.py, complaints.py        tasks with their data; what their scorers say goes wrong
    tasks.py, heldout.py             task files for data on this disk; the held-out questions as a task
    published.py    figures that are known of 4B and 8B
    run.py          tasks -> results, a JSON file each

lmms-eval is an optional package (envs/eval.lock). plugin.py's classes, loading.py and run.py import it.
"""
