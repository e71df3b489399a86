"""`aclserve doctor`: looks at what a server runs on and how it is set up, and tells what is wrong with the fix for it.

Everything that is looked at is an argument: a file system's root, an environment, options, a library. Nothing is
changed; the device is opened in a process of its own, or asked of the server that has it open.

Nothing is imported here: that process imports the package, too, and is to be quick.
"""
