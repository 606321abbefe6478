"""The replay lab: the product's own index and policies, driven by a trace in virtual time."""
