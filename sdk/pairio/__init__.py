"""pairio: the client API and the SDK for authors of apps."""
