"""Run the Autobahn Testsuite's ``wstest`` on loopback only. This is Python 2.7, as the suite is.

``wstest`` itself listens on every interface. This program makes it listen on a free port of
127.0.0.1, and prints the line ``PORT n``. With ``--cases`` it lists all cases instead.

    python2.7 loopback.py --cases | MODE SPECIFICATION.json
"""

import json
import sys

from autobahntestsuite import caseset, fuzzing
from autobahntestsuite.case import (
    CaseBasename,
    CaseCategories,
    Cases,
    CaseSetname,
    CaseSubCategories,
)
from twisted.internet import reactor


def list_cases():
    names = caseset.CaseSet(CaseSetname, CaseBasename, Cases, CaseCategories, CaseSubCategories)
    return "\n".join(names.caseClasstoId(case) for case in Cases)


def listen_on_loopback(port, factory, backlog=50, interface=""):
    listener = listen(0, factory, backlog, "127.0.0.1")
    factory.externalPort = listener.getHost().port  # A client's Host header must name this port.
    sys.stdout.write("PORT " + str(factory.externalPort) + "\n")
    sys.stdout.flush()
    return listener


if sys.argv[1:] == ["--cases"]:
    sys.stdout.write(list_cases() + "\n")
else:
    listen, reactor.listenTCP = reactor.listenTCP, listen_on_loopback
    mode, path = sys.argv[1:]
    with open(path) as file:
        specification = json.load(file)
    if mode == "fuzzingserver":
        fuzzing.startServer(specification, 0)
    else:
        fuzzing.startClient(specification)
    reactor.run()
