"""Logs in many files -> a training set, in stages of independent tasks.

    source    which files, which row groups: a task reads some of one file
    clean     its rows: by convert and rules typed and checked, side tables joined;
              bad ones to quarantine/                                                stage clean
    exchange  hands rows over between tasks: one file a task, one bucket a reader
    settle    the rows of some users: sorted, doubles out, values counted            stage settle
    vocabulary  ids of values: from train alone                                      stage fit
    counters  events so far by key: another exchange, there and back                 stage count
    assemble  the same users' rows: ids, histories, labels, split                    stage assemble
    layout    random shares of all users' rows: permuted, written as one part        stage layout
    read, fit, make   run these stages: clean and settle, fit, the others
    job       all in order; workplace: what they share
    run       what is new, what is left after a kill, the lock; publish puts all into its place

A task writes its files, then its outcome by rename; a killed job goes on with what has none. Tasks
know of nothing but their files, so any executor may run them: processes here, Ray on a cluster.
"""
