"""Whether parts hold what their manifest and schema say."""
