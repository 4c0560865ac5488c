"""Engine processes: how they are started, watched, introduced to each other, ended and started again."""
