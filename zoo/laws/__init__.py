"""Conformance checks over parts, driven by what they declare: `run` them, print a `report` or a `listing`."""

from zoo.laws.law import Law, LawBroken
from zoo.laws.suite import LAWS, Result, listing, report, run

__all__ = ["LAWS", "Law", "LawBroken", "Result", "listing", "report", "run"]
