"""Whether a drafter, in any language, keeps to the draft protocol of `outrider/v1/draft.proto`.

`outrider-conformance ADDRESS` tries the rules one by one on a running drafter. The parts serve
tests as well: `Target` is the target's side of a link, `FaultyStream` a bad network.
"""
