"""Access control: accounts, sessions, allowed hosts and endpoints, limits of request bodies."""
