"""The command lines, a module a command: main(arguments) does it, parser() holds its flags, its docstring is its help.
The work is the other folders'; `pq` finds a command's module by its name (pq_command.py), scripts/ are doors to some.
"""
