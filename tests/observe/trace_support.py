"""Traces, read as a viewer reads them, and checked against their format."""

import gzip
import json
from pathlib import Path

KINDS = {"wait", "step", "batch", "chunk", "pack", "room", "unpack", "copy", "begin", "ranks", "stage"}


class Trace:
    """A trace that is sound."""

    def __init__(self, path):
        data = Path(path).read_bytes()
        self.content = json.loads(gzip.decompress(data) if str(path).endswith(".gz") else data)
        self.events = self.content["traceEvents"]
        self.processes, self.lanes = {}, {}
        for event in self.events:
            assert {"ph", "ts", "pid", "tid", "name"} <= event.keys(), event
            assert event["ph"] in "XMCi", event
            if event["name"] == "process_name":
                self.processes[event["pid"]] = event["args"]["name"]
            if event["name"] == "thread_name":
                self.lanes[event["pid"], event["tid"]] = event["args"]["name"]
        self._check_events()
        self._check_lanes()

    def _check_events(self):
        for event in self.events:
            assert event["ts"] >= 0, event
            if event["ph"] == "X":
                assert event["cat"] in KINDS, event
                assert event["dur"] >= 0, event
            elif event["ph"] == "C":
                assert event["args"], event
                assert all(type(value) in (int, float) for value in event["args"].values()), event
            if event["ph"] != "M":
                assert event["pid"] in self.processes, event
            if event["ph"] == "X":
                assert (event["pid"], event["tid"]) in self.lanes, event

    def _check_lanes(self):
        """Spans of a lane are inside one another, or beside one another."""
        lanes = {}
        for event in self.spans():
            lanes.setdefault((event["pid"], event["tid"]), []).append(ends(event))
        for lane, spans in lanes.items():
            stack = []
            for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
                while stack and stack[-1] <= begin:
                    stack.pop()
                assert not stack or end <= stack[-1], (self.lanes[lane], begin, end, stack)
                stack.append(end)

    def spans(self, kind=None):
        """Spans of a kind, in the order of their beginnings."""
        found = [event for event in self.events if event["ph"] == "X" and kind in (None, event["cat"])]
        return sorted(found, key=lambda event: event["ts"])

    def lane(self, event):
        return self.lanes[event["pid"], event["tid"]]


def ends(event):
    """Begin and end of a span, in nanoseconds."""
    begin = round(event["ts"] * 1000)
    return begin, begin + round(event["dur"] * 1000)
