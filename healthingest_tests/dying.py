"""How a process in a test dies right after a named step: the beginning of a program that runs a command."""

#: `die_after(holder, name, step)` makes the process kill itself once `holder.name` is done, if `at` is `step`.
DIE_AFTER = """
import os, signal, sys

at, *sys.argv = sys.argv[1:]

def die_after(holder, name, step):
    whole = getattr(holder, name)
    def dying(*arguments, **said):
        done = whole(*arguments, **said)
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(holder, name, dying)

def die_after_a_group(holder):
    if at == "group":
        whole = holder.read_again
        def one_group(*arguments, **said):
            yield next(whole(*arguments, **said))
            os.kill(os.getpid(), signal.SIGKILL)
        holder.read_again = one_group
"""
