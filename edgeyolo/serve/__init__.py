"""A web page on which any phone of the network measures and checks a model, with no app (docs/phone.md)."""
