"""Students in other people's simulation packages, one module per package; importing this one imports none of them."""
