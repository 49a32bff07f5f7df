"""Names of the tensors in a checkpoint; those of a table don't depend on the collection it is in.

model.tables.<table>.weight         rows
optimizer.tables.<table>.<state>    state of their optimizer, e.g. momentum1
model.<parameter>                   dense parameters
optimizer.<parameter>.<state>       state of their optimizers
changed.tables.<table>              bool by row, whether it may differ from the last publication;
                                    only of runs that publish
"""

import re

TABLE = re.compile(r"model\.tables\.([^.]+)\.weight")
CHANGED = "changed.tables."
_OLD_ROWS = re.compile(r"(model|optimizer)\.(?:model\.)*sparse\.embeddings\.embeddings\.([^.]+)\.")
_OLD_FIELDS = re.compile(r"\.tokens\.fields\.(?=weight_MED|bias_M1D)")


def current_name(saved: str) -> str:
    """Today's name of a tensor that an earlier version saved."""
    if old := _OLD_ROWS.match(saved):
        return f"{old[1]}.tables.{old[2]}.{saved.rpartition('.')[2]}"
    return _OLD_FIELDS.sub(".tokens.fields.by_width.0.", saved)
