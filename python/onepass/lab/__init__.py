"""What is built on the library, for trying and learning; `import onepass` loads none of it.

Modules
-------
search
    Choosing a learning rate before the training.
surface
    Error surfaces of two parameters, and the optimizers' paths down them.
compare, tune
    The commands that train one network with every optimizer, and search for the best settings.
cli
    The command line.

The first four are attributes of `onepass`, loaded when they are first used: ``onepass.search``.
"""
