"""The live page: a scene in the browser, while it is trained and afterwards."""
