"""Who may come in and with how much: accounts and sessions, the guard before every route, limits."""
