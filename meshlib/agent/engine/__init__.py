"""When and in what steps the kernel is brought to what is wanted: planning, pacing, guarding, remembering."""
