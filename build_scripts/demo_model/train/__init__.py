"""The demo model's world: scenes of simple shapes, questions about them, and what it takes to train on both."""
