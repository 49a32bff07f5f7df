"""Logs in many files -> a training set, in stages of independent tasks.

    source    which files, which row groups: a task reads some of one file
    clean     its rows: checked, typed; bad ones to quarantine/                      stage clean
    exchange  hands rows over between tasks: one file a task, one bucket a reader
    settle    the rows of some users: sorted, doubles out, values counted            stage settle
    vocabulary, fit   ids of values, boundaries of numbers: from train alone         stage fit
    counters  events so far by key: another exchange, there and back                 stage count
    assemble  the same users' rows: ids, histories, labels, split                    stage assemble
    layout    random shares of all users' rows: permuted, written as one part        stage layout
    run       the stages in order, what is left of them after a kill, the manifest

A task writes its files, then its outcome by rename; a killed job goes on with what has none. Tasks
know of nothing but their files, so any executor may run them: processes here, Ray on a cluster.
"""
