"""The page with chats at `/`, a client of the API through web/tailrace.js, and the pages of shared turns."""
