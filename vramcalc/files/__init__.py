"""Reading what a user names, writing a file whole, and the folders of this user."""
