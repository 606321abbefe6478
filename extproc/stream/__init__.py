"""The ext_proc protocol, sans-IO: messages in, commands out."""
