"""The forms of the pages: an input for each parameter of a job function, and the inputs of options and rules."""
