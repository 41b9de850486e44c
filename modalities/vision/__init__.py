"""Images as input: patches or a timm tower to tokens, a class or its name as the answer."""
