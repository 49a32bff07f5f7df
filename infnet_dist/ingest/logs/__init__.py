"""Logs in many files -> a training set, in stages of independent tasks.

    pipeline   `ingest_logs`: all stages in order
    reading/   log files: which files, which rows, their types, checks and side tables
    encoding/  values to ids and dense features; the schema
    stages/    the task of each stage, the runner, and the files that tasks exchange
    extend     whether logs may be added to an existing set; publish moves new files into it

A task writes its files, then its outcome, by rename; a job that was killed resumes with the tasks
that have no outcome. Tasks communicate through files only, so any executor can run them: processes
of this machine, or Ray on a cluster.
"""
