"""What is built on the library, for trying and learning; `import onepass` loads none of it.

Modules
-------
search
    Choosing a learning rate before the training.
surface
    Error surfaces of two parameters, and the optimizers' paths down them.
compare, tune, bench
    The commands that train one network with every optimizer, search for the best settings, and time
    steps beside other libraries.
cli
    The command line.

`search`, `surface`, `compare` and `tune` are attributes of `onepass`, loaded when they are first
used: ``onepass.search``.
"""
