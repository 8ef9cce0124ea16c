"""New maps in context: a generated benchmark for memories."""
