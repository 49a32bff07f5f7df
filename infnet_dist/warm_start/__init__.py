"""Warm start: a new run begins with the weights and optimizer state of another run's checkpoint.

source      which checkpoint
inputs      the ordered inputs and tasks of a model, and which dense parameters depend on them
tables      rows and optimizer state of the tables: whether ids mean the same, which rows are taken
dense       the same of the dense part
matching    what becomes of every tensor
filling     reads the values into the model
report      the result as a table and as JSON
teacher     another model whose scores a run learns, with `teacher_inputs`, what it reads of a batch

Bit for bit: a value that is taken is that of the checkpoint, under any plan and number of workers.
"""
