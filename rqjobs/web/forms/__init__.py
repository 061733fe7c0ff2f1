"""The forms of the pages: inputs for the arguments of a call, for its options and for rules."""
